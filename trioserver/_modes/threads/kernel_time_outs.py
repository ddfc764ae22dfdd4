"""Time-outs that are options of a socket: ``SO_RCVTIMEO`` and ``SO_SNDTIMEO``.

Nobody waits in the kernel here, so whoever sets one means the waits that are ours.
"""

from __future__ import annotations

import socket
import struct
import sys

OPTIONS = {socket.SO_RCVTIMEO: "idle", socket.SO_SNDTIMEO: "write"}
"""Each option, and which wait it bounds: its name in `LoanTerms`, and in `LoanState`."""


def time_out_of(sock: socket.socket, option: int) -> float:
    """Seconds of one of the options; 0 if it is not set."""
    # Not by a method that a class of sockets may have for itself.
    value = socket.socket.getsockopt(sock, socket.SOL_SOCKET, option, 16)
    if len(value) < 8:  # Windows: milliseconds
        return int.from_bytes(value, sys.byteorder) / 1000
    seconds, microseconds = struct.unpack("ll", value)
    return float(seconds + microseconds / 1_000_000)


def time_outs_of(sock: socket.socket) -> dict[str, float]:
    """Seconds of those that are set, by the names of what they bound.

    A connection has those of its listener.
    """
    found = {name: time_out_of(sock, option) for option, name in OPTIONS.items()}
    return {name: seconds for name, seconds in found.items() if seconds}
