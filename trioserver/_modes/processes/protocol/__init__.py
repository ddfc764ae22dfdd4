"""What a server and its workers say to each other, encoded beside decoded.

Bounded frames over one line, and status in shared memory. It must not know who speaks.
"""
