"""The kernel's side: binding, listening, transports, datagrams, socket files.

Operations happen now or not at all, and waits move nothing. It must not know what a
request or a server is.
"""
