"""Handlers in threads, with a socket that blocks for them alone.

A handler's thread has the socket on loan while its task waits. It must not use Trio but
through the loan.
"""
