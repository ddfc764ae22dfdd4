"""What runs in a worker process: one request at a time.

It has a copy of the server, and speaks to the original by the protocol alone. It must not
know how its process was started.
"""
