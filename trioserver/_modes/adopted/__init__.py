"""Serving with a server object of `socketserver`, or of its kin.

Their hooks are called in their order, in a thread that is theirs. It must not change their
classes.
"""
