"""Whole servers in several processes, which accept from the same listening sockets.

Each worker has all the servers of a program, and serves them as a program of one process
does. The program itself binds, starts the workers, replaces them, and tells them what to do. It
uses the parts of process mode for that: how a process is started, ended, and spoken to.
"""
