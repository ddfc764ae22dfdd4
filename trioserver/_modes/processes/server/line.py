"""The server's end of the line to one worker: frames out, bytes in, and nobody else waits.

What is sent while a frame is only half out comes after it. A worker that has ended
reads no more, which is no error: whoever listens finds out.
"""

from __future__ import annotations

import array
import socket
from contextlib import suppress
from typing import Any

import attrs
import trio

from ...._sockets.making import NO_SIGNAL
from ..protocol.frames import LONGEST_FROM_WORKER, Frames, Message, frame

_PORTION = 65_536


@attrs.define(eq=False)
class Line:
    """A non-blocking socket, over which a worker hears what to do and says what it has done.

    Attributes:
      frames: cuts what it says.
    """

    _socket: socket.socket
    frames: Frames = attrs.field(factory=lambda: Frames(LONGEST_FROM_WORKER))
    _unsent: bytearray = attrs.field(factory=bytearray)
    _is_posted: trio.Event = attrs.field(factory=trio.Event)

    async def send(self, kind: Message, body: bytes, descriptor: int | None) -> None:
        """Send a message, and wait until it is on its way.

        Args:
          descriptor: one that goes with it; None: there is none.

        Raises:
          OSError: the system does not pass the descriptor.

        Cancelled, the rest of the message is sent with the next one.
        """
        data = frame(kind, body)
        ancillary: list[Any] = []
        if descriptor is not None:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor])))
        with suppress(ConnectionError):
            sent = self._socket.sendmsg([data], ancillary, NO_SIGNAL)
            if sent < len(data):
                await self._send_rest(data[sent:])

    def send_now(self, kind: Message, body: bytes = b"") -> None:
        """Send a short message at once: there is room, as a worker waits for it or for nothing."""
        data = frame(kind, body)
        if self._unsent:  # amid a frame: this one comes after it
            self._unsent += data
            return
        with suppress(OSError):
            self._socket.send(data, NO_SIGNAL)

    def post(self, kind: Message, body: bytes) -> None:
        """Send a message after all others, as soon as there is room; see `send_posted`."""
        self._unsent += frame(kind, body)
        self._send_what_fits()
        if self._unsent:
            self._is_posted.set()

    async def send_posted(self) -> None:
        """Send what was posted and did not fit; until cancelled."""
        while True:
            await self._is_posted.wait()
            self._is_posted = trio.Event()
            while self._unsent:
                await trio.lowlevel.wait_writable(self._socket)
                self._send_what_fits()

    def _send_what_fits(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent, NO_SIGNAL)]
        except BlockingIOError:
            pass
        except OSError:  # it has ended, and reads no more
            self._unsent.clear()

    async def _send_rest(self, data: bytes) -> None:
        self._unsent += data
        while self._unsent:
            await trio.lowlevel.wait_writable(self._socket)
            with suppress(BlockingIOError):
                del self._unsent[: self._socket.send(self._unsent, NO_SIGNAL)]

    def hang_up(self) -> None:
        """Send nothing more: the worker ends when it has nothing more to do."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    async def receive(self) -> bytes:
        """What the worker has said, as soon as there is something; nothing at its end."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._take()
            except BlockingIOError:
                continue

    def receive_now(self) -> bytes:
        """The bytes that have come from the worker and were not read yet; ``b""`` if none have."""
        with suppress(BlockingIOError):
            return self._take()
        return b""

    def _take(self) -> bytes:
        try:
            return self._socket.recv(_PORTION)
        except BlockingIOError:
            raise
        except OSError:  # it has ended without having read everything
            return b""
