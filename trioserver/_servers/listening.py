"""What a program can do with the listening sockets of a server that is bound.

A server accepts from its bind to its drain. In between it can be suspended, and its sockets
can be handed over to whoever comes after it. In both cases the kernel keeps who connects.
"""

from __future__ import annotations

from socket import SOCK_DGRAM
from socket import socket as KernelSocket  # noqa: N812  (the class has a property of that name)

from .._engine.phase import Phase
from .._engine.run import Run
from .._facts.validators import check_seconds
from .lifecycle import Lifecycle


class Listening(Lifecycle):
    """The methods for listening sockets. All are plain, and are called in Trio's thread alone."""

    def suspend(self) -> None:
        """Stop accepting for a while, in this very step; the connections that there are go on.

        Who connects meanwhile waits in the kernel's queue, and is served after `resume`, or by
        a drain that comes first. Twice is once. A server that is only bound begins to serve
        suspended; one that drains accepts nobody anyway.

        Raises:
          RuntimeError: the server is not bound; it serves datagrams, of which the kernel
            would throw away what nobody receives in time; or this is another thread than
            Trio's.
        """
        run = self._run_here("suspend")
        if getattr(self, "socket_type", None) == SOCK_DGRAM:
            raise RuntimeError(
                f"a {type(self).__name__} cannot be suspended: its clients have no connection"
                " that could wait, and the kernel drops what nobody receives in time"
            )
        run.suspend()

    def resume(self) -> None:
        """Accept again, whoever has come meanwhile included. Twice is once.

        Raises:
          RuntimeError: the server is not bound, or this is another thread than Trio's.
        """
        self._run_here("resume").resume()

    def hand_over(self, grace: float | None = None) -> tuple[KernelSocket, ...]:
        """Begin the drain as `shutdown` does, and leave the listening sockets open, to the caller.

        The sockets share their queues with those of the server, which it has closed when
        this returns. It takes in nobody more: who is queued, or comes now, is served by
        whoever accepts from these sockets next. A socket file stays where it is. So is a server
        replaced without any client being turned away: start the next one on the same sockets,
        then hand over, and close what this returns, if that one is another process.

        Args:
          grace: as for `shutdown`.

        Returns:
          The listening sockets, non-blocking, to serve on or to close; IPv4 first.

        Raises:
          RuntimeError: the server is not bound, is being bound, has stopped accepting, or
            listens on something else than sockets; or this is another thread than Trio's.
          OSError: there are no descriptors left. Whatever it raises, nothing has changed.
        """
        check_seconds("grace", grace, zero=True, optional=True)
        run = self._run_here("hand_over")
        if run.phase.now is Phase.BINDING:
            raise RuntimeError(f"this {type(self).__name__} is being bound: it has no sockets yet")
        return run.hand_over(self.timeouts.shutdown if grace is None else grace)

    def _give_away(self, grace: float) -> None:
        """Begin the drain, and leave the queues to somebody who has the sockets already."""
        self._bound_run().give_away(grace)

    def _run_here(self, method: str) -> Run:
        """The run, of a server that is bound, to a method that was called in its own thread."""
        run = self._bound_run()
        if not run.home.is_here():
            raise RuntimeError(
                f"{method}() is for the thread of the server's Trio: elsewhere, call"
                f" trio.from_thread.run_sync(server.{method})"
            )
        return run
