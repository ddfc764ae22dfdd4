"""A connection that a worker has taken from its server, for an asynchronous handler."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import attrs

from ...._requests.connection import Connection
from ...._sockets.stream_sockets import SocketTransport
from ...._sockets.tls_transport import TLSTransport


@attrs.define(eq=False)
class SharedTransport(SocketTransport):
    """The transport of a connection whose descriptor the server has, too.

    Attributes:
      is_over: whether the handler has ended: the rest is left to the server.
    """

    is_over: bool = False

    def close(self) -> None:
        if not self.is_over:  # the server still has the descriptor, so the peer must be told
            with suppress(OSError):
                self.send_eof()
        super().close()

    def reset(self) -> None:
        self.is_over = True  # the server's close is the reset: no orderly end before it
        super().reset()


class TakenConnection(Connection):
    """A connection that the server has accepted, and perhaps read from."""

    _on_tls: Callable[[], object]

    def _speak_by(self, tls: TLSTransport) -> None:
        self._on_tls()  # the server is not to send anything in clear from now on
        super()._speak_by(tls)

    @property
    def shared(self) -> SharedTransport:
        """The transport of what is on its way."""
        wire = self._wire
        assert isinstance(wire, SharedTransport)  # noqa: S101  (for the type)
        return wire
