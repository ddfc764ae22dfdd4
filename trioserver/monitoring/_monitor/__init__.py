"""The monitor: shows the servers of a program to others, by a socket, and on a web page.

It must know no other view, and nothing of how servers work: it asks them for snapshots, and is a
program of trioserver itself.
"""
