"""What a handler gets: a connection or a datagram, and files over it.

Every operation is a cancellation point, and a cancelled read has taken nothing. It must
not know what server, run or mode it is part of.
"""
