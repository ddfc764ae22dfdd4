"""Looking at a program from outside: open descriptors, shields, and where a test hangs.

It must know no server, and no other room of the tools.
"""
