"""The tree of tasks of a Trio program, as values.

It must know no server, and no way to show a tree. It stands above the programs, which show their
tasks.
"""
