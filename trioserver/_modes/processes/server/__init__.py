"""The server's side of its workers: starting them, passing requests, ending them.

It runs in the server's Trio and waits within bounds. It must not trust what a worker says.
"""
