"""A scenario run again and again, with a fault after every step: one run, all runs, what strikes.

It must know no transport: a scenario makes what it needs.
"""
