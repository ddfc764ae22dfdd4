"""The TLS context of a worker: its own, made by the server's function, as often as the server's."""

from __future__ import annotations

import logging
import math
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
    _told_of: float = -math.inf

    def of(self, as_of: float) -> ssl.SSLContext:
        """The context for a client.

        Args:
          as_of: when the server has made its own, by `time.monotonic`. If that was after the
            one that there is here, it is made anew, too. If that fails, it is logged, once,
            and tried again for the next client; the one that there is serves meanwhile.
        """
        credentials = self.credentials
        assert credentials is not None  # noqa: S101  (for the type: the server has some)
        if credentials.as_of < as_of:
            try:
                credentials.reload()
            except Exception as error:  # noqa: BLE001  (whatever somebody's own raises)
                if self._told_of == as_of:
                    return credentials.context
                self._told_of = as_of
                message = "a worker keeps the TLS context that it has: ssl_context() has raised"
                log_safely(error_log, logging.ERROR, message, exc_info=error)
        return credentials.context
