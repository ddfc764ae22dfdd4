"""A server that follows a script, to test clients with: its steps, and how input is matched.

It must know no more of a server under test than `open_test_server` gives.
"""
