"""Time-outs that are options of a socket: ``SO_RCVTIMEO`` and ``SO_SNDTIMEO``.

Nobody waits in the kernel here, so whoever sets one means the waits that are ours.
"""

from __future__ import annotations

import socket
import struct
import sys

OPTIONS = {socket.SO_RCVTIMEO: "idle", socket.SO_SNDTIMEO: "write"}
"""Each option, and which wait it bounds: its name in `LoanTerms`, and in `LoanState`."""


# Plain ones, as each connection is asked for both.
_getsockopt, _SOCKET, _NONE = socket.socket.getsockopt, int(socket.SOL_SOCKET), bytes(16)


def time_out_of(sock: socket.socket, option: int) -> float:
    """Seconds of one of the options; 0 if it is not set."""
    # Not by a method that a class of sockets may have for itself.
    value = _getsockopt(sock, _SOCKET, option, 16)
    if value == _NONE:  # as of nearly every connection
        return 0
    if len(value) < 8:  # Windows: milliseconds
        return int.from_bytes(value, sys.byteorder) / 1000
    seconds, microseconds = struct.unpack("ll", value)
    return float(seconds + microseconds / 1_000_000)


def time_outs_of(sock: socket.socket) -> dict[str, float]:
    """Seconds of those that are set, by the names of what they bound.

    A connection has those of its listener.
    """
    return {
        name: seconds for option, name in OPTIONS.items() if (seconds := time_out_of(sock, option))
    }
