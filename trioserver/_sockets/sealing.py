"""How the queue of a listening socket is closed to new clients, and can still be accepted from.

Between the last accept of a drain and the close of the socket a client could still come in: its
connect succeeds, it begins to send, and the close resets it. Of 1000 clients that came as fast
as they could to a server that was shut down 20 times, one did. So the queue is closed first.
A client that comes then is refused, as after the close; by TCP a second later, since the kernel
does not answer and the client's asks again.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from contextlib import suppress

_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>; the socket module does not have it

# The instructions of a filter (struct sock_filter, <linux/bpf_common.h>) that drops what asks for
# a new connection. A client that has sent the first packet may finish: the last one is on its way.
_INSTRUCTIONS = (
    (0x30, 0, 0, 13),  # load the byte with the flags of TCP,
    (0x54, 0, 0, 0x12),  # of which SYN and ACK count:
    (0x15, 0, 1, 0x02),  # if it is SYN alone,
    (0x06, 0, 0, 0),  # drop the packet,
    (0x06, 0, 0, 0xFFFF_FFFF),  # else take all of it
)
_DROP_SYN = b"".join(struct.pack("=HBBI", *fields) for fields in _INSTRUCTIONS)


def seal(sock: socket.socket) -> None:
    """Let nobody else into the queue, if the system can do that. Clients in it stay.

    For whoever else has the socket, too.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError):  # then there is that moment, as elsewhere
        if sock.family == socket.AF_UNIX:
            sock.shutdown(socket.SHUT_RD)  # connect(2) looks for that, and accept(2) does not
        else:
            _drop_new_ones(sock)


def _drop_new_ones(sock: socket.socket) -> None:
    program = ctypes.create_string_buffer(_DROP_SYN)
    fields = struct.pack("@HP", len(_INSTRUCTIONS), ctypes.addressof(program))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fields)
