"""A server under test, as a test sees it: its address, clients, requests, errors and faults."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

import trioserver

from .._faults.faults import Faults
from .._memory.datagrams import MemoryDatagramClient
from .clients import KernelDatagramClient
from .exchanges import A_SECOND, Exchange, Recorder
from .network import Network
from .options import check_flag
from .tls import TestTLS, TLSClient


class RunningServer:
    """A server under test, while it runs; made by `open_test_server`.

    Attributes:
      server: the server itself.
      address: where it listens: ``(host, port, ...)``, or a path.
    """

    def __init__(
        self,
        server: trioserver.BaseServer,
        network: Network,
        recorder: Recorder,
        tls: TestTLS | None = None,
    ) -> None:
        self.server = server
        self.address: Any = server.server_address
        self._network = network
        self._recorder = recorder
        self._tls = tls

    def __repr__(self) -> str:
        return f"<trioserver.testing.RunningServer: {self.server!r}>"

    @property
    def port(self) -> int:
        """The port number of an internet server.

        Raises:
          TypeError: it has none.
        """
        match self.address:
            case (_, int(port), *_):
                return port
        raise TypeError(f"{self.address!r} has no port")

    @property
    def faults(self) -> Faults:
        """What is wrong with the network; may be changed at any time.

        Raises:
          RuntimeError: it is a real one, and none were asked for at the beginning.
        """
        return self._network.faults

    @property
    def exchanges(self) -> list[Exchange]:
        """Its requests so far, in the order in which they began."""
        return list(self._recorder.exchanges)

    @property
    def tls(self) -> TestTLS:
        """The authority, the server's files, and a context for clients.

        Raises:
          RuntimeError: the server was opened without TLS.
        """
        if self._tls is None:
            raise RuntimeError("this server was opened without TLS: give tls=True")
        return self._tls

    async def connect(
        self, *, tls: bool | None = None, client_context: ssl.SSLContext | None = None
    ) -> trio.abc.HalfCloseableStream:
        """Connect; the stream is closed with the server at the latest.

        Args:
          tls: whether to speak TLS, as a `TLSClient`; None: if the server was opened so. False
            gives the connection beneath it.
          client_context: for TLS; None is that of `tls`.

        Raises:
          ConnectionRefusedError: nobody listens any more, or there is a `Refuse`.
          TypeError: ``tls`` is none of these.
          trio.BrokenResourceError: the TLS handshake has failed.
        """
        if tls is None:
            tls = self._tls is not None
        check_flag("tls", tls)
        stream = await self._network.connect(self.address)
        if not tls:
            return stream
        client = TLSClient(stream, client_context or self.tls.client_context)
        await client.do_handshake()
        return client

    async def client(self) -> MemoryDatagramClient | KernelDatagramClient:
        """Somebody who sends datagrams, and receives the replies; closed with the server."""
        return await self._network.client(self.address)

    async def wait_requests(self, number: int = 1) -> list[Exchange]:
        """Wait until so many requests have ended; all that have, the first to begin first.

        Raises:
          RuntimeError: the server has ended, with fewer.
        """

        def ended() -> list[Exchange]:
            return [one for one in self._recorder.exchanges if one.record is not None]

        if not await self._recorder.until(lambda: len(ended()) >= number):
            await trio.sleep(A_SECOND)  # one that has failed cancels this
            raise RuntimeError(
                f"the server has ended, and so have {len(ended())} requests: there will be no"
                f" {number}"
            )
        return ended()

    async def wait_idle(self) -> None:
        """Wait until no request is open."""
        await self._recorder.until(lambda: not self._recorder.open)

    def check(self) -> None:
        """Raise what handlers and hooks have raised so far, which is forgotten by that.

        Raises:
          ExceptionGroup: of the errors; of each only once, so not at the end again.
        """
        self._recorder.check()

    async def stop(self, grace: float = 0) -> trioserver.ShutdownReport:
        """Shut the server down, and wait for its end.

        Args:
          grace: seconds that requests in flight have to end by themselves.
        """
        self.server.shutdown(grace)
        return await self.server.wait_closed()

    @asynccontextmanager
    async def expect_error(
        self, kind: type[Exception] | tuple[type[Exception], ...] = Exception
    ) -> AsyncIterator[list[Exception]]:
        """In the block, a handler or a hook raises this, which then does not fail the test.

        Gives a list, which has the errors in it when the block is over. They may come a
        second after it, by the Trio clock.

        Raises:
          AssertionError: none came.
        """
        found: list[Exception] = []
        errors, before = self._recorder.errors, list(self._recorder.errors)

        def new() -> list[Exception]:
            return [error for error in errors if error not in before]

        def came() -> bool:
            return any(isinstance(error, kind) for error in new())

        yield found
        with trio.move_on_after(A_SECOND):
            await self._recorder.until(came)
        others = [error for error in new() if not isinstance(error, kind)]
        found += (error for error in new() if isinstance(error, kind))
        errors[:] = [error for error in errors if error not in found]
        if not found:
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = " or ".join(one.__name__ for one in kinds)
            instead = f"; there was {', '.join(map(repr, others))}" if others else ""
            raise AssertionError(f"no handler has raised {names}, which this test expects{instead}")
