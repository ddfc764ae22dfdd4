"""The worker's end of the line to its server.

Descriptors come with the first byte of their frame. `socket.recv_fds` would do, but it
leaves them open in every program that a handler starts.
"""

from __future__ import annotations

import array
import os
import socket
import threading
from collections import deque
from typing import Any

import trio

from ...._sockets.making import NO_SIGNAL
from .frames import Frames, Message, encode_facts, frame

_PORTION = 65_536
_ROOM = socket.CMSG_SPACE(4 * array.array("i").itemsize)
# Plain ints: to add two of socket's enums took as long as the system call.
_CLOSE_ON_EXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_TRUNCATED = int(socket.MSG_CTRUNC)
_NOT_WAITING = int(socket.MSG_DONTWAIT)


class NoDescriptor(Exception):
    """This process has no descriptor left for the connection that it was given."""


class Channel:
    """Frames from the server, with the descriptors that come along, and frames to the server.

    Any thread may `say` something, at any time. One thread or task at a time may listen.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._frames = Frames()
        self._said: deque[tuple[Message, bytes]] = deque()
        self._descriptors: deque[int] = deque()
        # The same thread may come twice: a signal handler, or a finalizer, that logs.
        self._lock = threading.RLock()
        self._unsaid: deque[bytes] = deque()
        self._speaks = False

    def say(self, kind: Message, payload: bytes = b"", **facts: Any) -> None:
        """Send the server a frame, and wait until it is on its way.

        Args:
          kind: what the frame is about.
          payload: bytes that come after the facts.
          facts: see `encode_facts`.
        """
        data = frame(kind, encode_facts(payload, **facts))
        with self._lock:
            self._unsaid.append(data)
            if self._speaks:  # amid a frame: the sender of that one sends this one next
                return
            self._speaks = True
            try:
                while self._unsaid:
                    self._control.sendall(self._unsaid.popleft(), NO_SIGNAL)
            finally:
                self._speaks = False

    def listen(self) -> tuple[Message, bytes] | None:
        """The next frame; None when the server has closed the line."""
        while not self._said:
            if not self._receive(0):
                return None
        return self._said.popleft()

    async def listen_in_trio(self) -> tuple[Message, bytes] | None:
        """As `listen`, for a task of Trio. Cancelled, it has lost no frame."""
        while not self._said:
            await trio.lowlevel.wait_readable(self._control)
            try:
                if not self._receive(_NOT_WAITING):
                    return None
            except BlockingIOError:
                continue
        return self._said.popleft()

    def take_descriptor(self) -> int:
        """The descriptor that came with a frame; the caller's from now on."""
        return self._descriptors.popleft()

    def close(self) -> None:
        """Close the line: nothing is said or heard any more."""
        self._control.close()

    @property
    def is_closed(self) -> bool:
        """Whether this side has hung up."""
        return self._control.fileno() == -1

    def fileno(self) -> int:
        """The descriptor to wait for, which has input when the server says something."""
        return self._control.fileno()

    def _receive(self, flags: int) -> bool:
        """Take in what is there; false at the end.

        Raises:
          NoDescriptor: of what is there, the descriptor is lost.
        """
        data, ancillary, found, _ = self._control.recvmsg(_PORTION, _ROOM, _CLOSE_ON_EXEC | flags)
        if found & _TRUNCATED:
            raise NoDescriptor("it has too many descriptors open to take one more connection")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._descriptors.extend(numbers)
        if not _CLOSE_ON_EXEC:  # a program that is started in between has it for its life
            for number in self._descriptors:
                os.set_inheritable(number, False)
        self._said.extend(self._frames.feed(data))
        return bool(data)
