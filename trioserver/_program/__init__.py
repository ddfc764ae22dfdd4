"""A whole program that is nothing but its servers: signals, grace, exit.

It uses the public side of servers alone, and must not know how one serves.
"""
