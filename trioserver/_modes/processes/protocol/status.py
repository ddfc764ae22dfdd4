"""What a worker does with its request, for the server to look at: memory that both share.

The worker writes, the server reads, and neither waits. So `snapshot()` can tell what a
handler in another process waits for, and the record of a request whose worker was killed
tells how far it had come. The server writes one thing: that it drains. A worker asks for that
at every write of a synchronous handler.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from .files import new_file

State: TypeAlias = Literal["working", "reading", "idle", "writing"]

_STATES: Sequence[State] = get_args(State)
WORKING, READING, IDLE, WRITING = range(len(_STATES))
_NUMBERS = {state: number for number, state in enumerate(_STATES)}

REQUEST, RECEIVED, SENT, STATE, DRAINS, TLS = range(6)


class SharedStatus:
    """A few numbers in memory that two processes share.

    The processor writes each of them in one step. Together they are only as consistent as
    a look at work in another process can be.

    Attributes:
      cells: the numbers. `RECEIVED`, `SENT` and `STATE` may be written here one by one:
        at every operation of a socket, a call would cost too much.
    """

    def __init__(self, number: int) -> None:
        """Map the file with the descriptor ``number``, which can be closed then.

        With -1 there is no file, and no other process sees it.
        """
        self._memory = mmap.mmap(number, mmap.PAGESIZE)
        self.cells = memoryview(self._memory).cast("q")

    def close(self) -> None:
        """Give the memory back; to look at it raises `ValueError` then. Twice is once."""
        self.cells.release()
        self._memory.close()

    def begin(
        self, request_id: int, received: int = 0, sent: int = 0, *, tls: bool = False
    ) -> None:
        """Note that the worker has begun with a request.

        Args:
          request_id: that of the request.
          received: bytes that the server has read of it already.
          sent: bytes that the server has written already.
          tls: whether the worker speaks TLS with the client.
        """
        self.cells[TLS] = tls
        # First, so that the server does not take the end of the request before for this one's.
        self.publish(received, sent, "working")
        self.cells[REQUEST] = request_id

    def publish(self, received: int, sent: int, state: State) -> None:
        """Write how far the request has come, for the server to look at."""
        self.cells[RECEIVED] = received
        self.cells[SENT] = sent
        self.cells[STATE] = _NUMBERS[state]

    def tls_begins(self) -> None:
        """Note that the worker speaks TLS with the client from now on."""
        self.cells[TLS] = 1

    @property
    def speaks_tls(self) -> bool:
        """Whether the worker speaks TLS with the client, or has."""
        return bool(self.cells[TLS])

    @property
    def drains(self) -> bool:
        """Whether the server has said that it drains."""
        return bool(self.cells[DRAINS])

    def drain_begins(self) -> None:
        """Write that the server drains, for the worker to look at."""
        self.cells[DRAINS] = 1

    @property
    def request(self) -> int:
        """The request that the worker has begun last; 0 before the first."""
        return self.cells[REQUEST]

    @property
    def received(self) -> int:
        """Bytes read so far."""
        return self.cells[RECEIVED]

    @property
    def sent(self) -> int:
        """Bytes written so far."""
        return self.cells[SENT]

    @property
    def state(self) -> State:
        """What the handler does; "working" if the number there means nothing."""
        number = self.cells[STATE]
        return _STATES[number] if 0 <= number < len(_STATES) else "working"


def new_shared_status() -> int:
    """The descriptor of a file for the numbers of one worker, which has no name."""
    number = new_file()
    os.ftruncate(number, mmap.PAGESIZE)
    return number
