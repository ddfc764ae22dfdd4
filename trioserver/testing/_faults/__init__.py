"""What can be wrong with a network: kinds of faults, the set of those there are, and their work.

It must not know of servers under test: it wraps a listener, and a transport.
"""
