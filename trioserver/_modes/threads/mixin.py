"""Threads: the mix-in under which synchronous handlers run, and the four ready-made servers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import attrs
import trio

from ..._facts.address import Address
from ..._facts.events import Mode
from ..._facts.validators import LARGEST_INT, count, true_or_false
from ..._requests.connection import Connection
from ..._requests.datagram import Datagram
from ..._servers.base import BaseServer
from ..._servers.fields import make_fields
from ..._servers.ip_servers import TCPServer, UDPServer
from ..._servers.unix_servers import UnixDatagramServer, UnixStreamServer
from ..._sockets.stream_sockets import SocketTransport
from ..._sockets.transport import Data
from .blocking_socket import BlockingSocket
from .handlers import SyncDatagramSocket, SyncHandler, check_sync_handler, handle
from .lent_connection import LentConnection
from .thread_call import ThreadCall

LEAST_PATIENCE = 0.1
"""A thread that is not waited for still gets this many seconds to end, once its socket is
shut. Most need a thousandth of it, and would otherwise be logged as left behind."""


@make_fields
class ThreadingMixIn(BaseServer):
    """Runs each handler in a thread: put it first in the bases of a server.

    Handlers are synchronous: derived from the classes of `socketserver`, or
    plain functions. All else (hooks, time-outs, limits, the drain, records)
    is as without it, and runs in Trio's own thread.

    A thread has a blocking `socket.socket`, or a pair of data and a socket that
    can only ``sendto``. When its request is cancelled, whatever it waits for
    in that socket ends at once, and ``trio.from_thread.check_cancelled`` raises
    `trio.Cancelled`. A thread that takes no notice is left behind after
    ``timeouts.cleanup`` seconds: named in the log with its stack, and counted
    as ``Outcome.ABANDONED``. It keeps its slot until it ends.

    Args:
      max_threads: how many threads at once; of it and ``limits.requests`` the
        smaller counts.
      daemon_threads: leave a thread that was cancelled behind after a tenth of a
        second, not after ``timeouts.cleanup``.
      block_on_close: whether closing waits for threads beyond the grace, for
        ``timeouts.cleanup`` seconds; False: for a tenth of one.
      ends_idle_reads: whether a drain ends a read that waits when nothing was
        read since the last write: a keep-alive connection between two requests.
    """

    if TYPE_CHECKING:  # the same field, for handlers of the other colour
        RequestHandlerClass: SyncHandler = attrs.field(kw_only=False)  # type: ignore[assignment]

    max_threads: int = attrs.field(
        default=40, validator=count(1, most=LARGEST_INT, unit="of threads ")
    )
    daemon_threads: bool = attrs.field(default=False, validator=true_or_false)
    block_on_close: bool = attrs.field(default=True, validator=true_or_false)
    ends_idle_reads: bool = attrs.field(default=True, validator=true_or_false)

    _mode: ClassVar[Mode] = "thread"
    _connection_class: ClassVar[type[Connection]] = LentConnection

    async def finish_request(self, request: Any, client_address: Address) -> None:
        """Construct the handler in a thread, which handles the request."""
        if isinstance(request, LentConnection):
            await self._finish_connection(request, client_address)
        elif isinstance(request, Datagram):
            await self._finish_datagram(request, client_address)
        else:
            raise TypeError(
                f"get_request returned {request!r}: a handler in a thread needs the Connection"
                " or Datagram itself"
            )

    async def _finish_connection(self, request: LentConnection, client_address: Address) -> None:
        await request._flush()
        loan = request._lend(ends_idle=self.ends_idle_reads)
        sock = BlockingSocket.over(cast("SocketTransport", request._wire).socket, loan)
        call = self._call_for(request, request._interrupt, clean_up=sock.end_for_good)
        try:
            handler = self.RequestHandlerClass
            await call.run(partial(sock.call, partial(handle, handler, sock, client_address, self)))
        finally:
            if call.is_left_behind:
                request._give_away()
            else:
                sock.end()
                request._take_back()

    async def _finish_datagram(self, request: Datagram, client_address: Address) -> None:
        token = trio.lowlevel.current_trio_token()

        def send(data: Data, address: Any) -> int:
            return trio.from_thread.run(request.socket.sendto, data, address, trio_token=token)

        way_back = SyncDatagramSocket(send, request.info)
        pair = (request.data, way_back)
        call = self._call_for(request, request.close)
        await call.run(partial(handle, self.RequestHandlerClass, pair, client_address, self))

    def _call_for(
        self,
        request: LentConnection | Datagram,
        interrupt: Callable[[], object],
        clean_up: Callable[[], object] = lambda: None,
        run_sync: Callable[..., Awaitable[object]] | None = None,
    ) -> ThreadCall:
        return ThreadCall(
            request.info,
            request,
            run_sync=run_sync,
            interrupt=interrupt,
            patience=partial(self._patience, request),
            clean_up=clean_up,
        )

    def _patience(self, request: LentConnection | Datagram) -> float:
        closes = self.draining or not request.cancel_scope.cancel_called  # cancelled from outside
        waits = not self.daemon_threads and (self.block_on_close or not closes)
        return self.timeouts.cleanup if waits else min(LEAST_PATIENCE, self.timeouts.cleanup)

    def _most_requests(self) -> int:
        return min(self.limits.requests, self.max_threads)

    @classmethod
    def _check_handler(cls, handler: object) -> None:
        check_sync_handler(handler, kind=getattr(cls, "socket_type", None))


@make_fields
class ThreadingTCPServer(ThreadingMixIn, TCPServer):
    """Serves TCP connections, each handler in a thread."""


@make_fields
class ThreadingUDPServer(ThreadingMixIn, UDPServer):
    """Serves UDP datagrams, each handler in a thread."""


@make_fields
class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer):
    """Serves Unix stream connections, each handler in a thread."""


@make_fields
class ThreadingUnixDatagramServer(ThreadingMixIn, UnixDatagramServer):
    """Serves Unix datagrams, each handler in a thread."""
