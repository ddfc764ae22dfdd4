"""A request that a worker has, and what has become of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import attrs
import trio

from ..protocol.frames import FrameError
from ..protocol.result import Result
from ..protocol.task import WorkerTask


class Outbox:
    """The datagrams that a worker wants sent: one at a time, as it waits for the answer."""

    def __init__(self) -> None:
        self._put, self._got = trio.open_memory_channel[tuple[bytes, Any]](1)

    def put(self, data: bytes, address: Any) -> None:
        """Add a datagram that the worker wants sent.

        Raises:
          FrameError: the one before it was not sent yet, so the worker cannot have asked.
        """
        try:
            self._put.send_nowait((data, address))
        except trio.WouldBlock:
            raise FrameError("a second datagram before the first one was sent") from None
        except trio.BrokenResourceError:
            pass  # the request has been cancelled, and so has the worker

    def close(self) -> None:
        """Note that the worker wants nothing sent any more."""
        self._put.close()

    def __aiter__(self) -> AsyncIterator[tuple[bytes, Any]]:
        return self._got


@attrs.define(eq=False)
class Job:
    """A request that a worker has.

    Attributes:
      task: what the worker is told to do.
      pid: the worker's process id.
      result: how it went; None while the worker has not told.
      status: the exit status of the worker, if it ended without having told.
      begun: whether the worker has begun with it.
      arrived: of an arrival, whether TLS is agreed on: the worker has the connection still.
      was_writing: whether it was ended in the middle of a write.
      by_tls: whether the worker has spoken TLS with the client.
      received: bytes that it was last seen to have read, if it has not told.
      sent: bytes that it was last seen to have written, if it has not told.
      over: set when all this is known.
      replies: of a datagram's request, datagrams to send and their addresses,
        until it is over.
    """

    task: WorkerTask
    pid: int
    result: Result | None = None
    status: int = 0
    begun: bool = False
    arrived: bool = False
    was_writing: bool = False
    by_tls: bool = False
    received: int = 0
    sent: int = 0
    over: trio.Event = attrs.field(factory=trio.Event)
    replies: Outbox | None = None

    def finish(self) -> None:
        """Note that nothing more comes of it."""
        if self.replies is not None:
            self.replies.close()
        self.over.set()
