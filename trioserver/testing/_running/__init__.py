"""A server under test, in its block, for fixtures or from a thread, and clients of it.

It puts together what the rooms above have; it must know nothing of scripts and sweeps.
"""
