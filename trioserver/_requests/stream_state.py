"""What is known of one connection's bytes, whoever serves it.

A connection has one `StreamState`. Its two halves write it while a task of Trio has the
connection. A handler in a thread that the socket is lent to writes the same object. A worker
process gets a copy with its task, and the result of that brings the copy back. So a new fact
is one attribute here, and no other file has to pass it on.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

Breakage: TypeAlias = tuple[type[Exception], str]
"""What every later send raises, and its message."""


@attrs.define(weakref_slot=False)  # 16 bytes less, of each idle connection
class StreamState:
    """The facts of one connection's bytes. One side at a time writes them.

    Attributes:
      received: bytes that were read from the transport.
      sent: bytes that the transport took.
      pending: input that was received, and that no handler has taken yet.
      at_eof: whether a read has met the end of the peer's input.
      output_ended: whether this side has ended its output.
      broken: why nothing more can be sent; None while it can.
      ended_idle: whether a drain has ended a wait between two requests.
      detached: whether a handler has taken the descriptor over, with all that is still
        to come.
      may_have_sent: whether a handler may have written by the descriptor's number, which
        nobody counts.
    """

    received: int = 0
    sent: int = 0
    pending: bytearray = attrs.field(factory=bytearray)
    at_eof: bool = False
    output_ended: bool = False
    broken: Breakage | None = None
    ended_idle: bool = False
    detached: bool = False
    may_have_sent: bool = False

    def copy(self) -> StreamState:
        """A state of its own, for somebody else to write."""
        return attrs.evolve(self, pending=bytearray(self.pending))


def cut_line(buffer: bytearray, most: int) -> bytes | None:
    """Take a line of up to ``most`` bytes off the front of ``buffer``; None if it holds none."""
    end = buffer.find(b"\n", 0, most) + 1
    if not end:
        return None
    line = bytes(buffer[:end])
    del buffer[:end]
    return line


def cut(buffer: bytearray, size: int) -> bytes:
    """Take up to ``size`` bytes off the front of ``buffer``."""
    if size >= len(buffer):
        data = bytes(buffer)
        buffer.clear()
    else:
        data = bytes(buffer[:size])
        del buffer[:size]
    return data
