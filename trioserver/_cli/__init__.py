"""The command line: what the library does for people who run servers.

Made of public names alone, as programs are. It must not know how a server serves.
"""
