"""The TLS context of a worker: its own, made by the server's function, as often as the server's."""

from __future__ import annotations

import logging
import ssl

import attrs

from ...._facts.observers import error_log, log_safely
from ...._sockets.credentials import Credentials


@attrs.define(eq=False)
class Contexts:
    """Has the context that was made when the worker started, or when the server has last done so.

    Attributes:
      credentials: of the copy of the server; None without TLS.
    """

    credentials: Credentials | None
    _generation: int = 0

    def of(self, generation: int) -> ssl.SSLContext:
        """The context for a client.

        Args:
          generation: how often the server had made its own anew when the client came. If that
            is more than here, it is made anew here, too. If that fails, it is logged, and the
            one that there is stays, as it would on the server.
        """
        credentials = self.credentials
        assert credentials is not None  # noqa: S101  (for the type: the server has some)
        if generation != self._generation:
            try:
                credentials.reload()
                self._generation = generation
            except Exception as error:  # noqa: BLE001  (whatever somebody's own raises)
                message = "a worker keeps the TLS context that it has: ssl_context() has raised"
                log_safely(error_log, logging.ERROR, message, exc_info=error)
        return credentials.context
