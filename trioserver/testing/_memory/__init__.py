"""A network in memory, for a virtual clock: pipes, listeners, datagrams, and servers on them.

It must know neither faults nor tests.
"""
