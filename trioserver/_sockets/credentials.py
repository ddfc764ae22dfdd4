"""The TLS context of a server: given, or made by a function, which can be called again."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

import attrs

from .tls_records import learn_server_name

ContextSource: TypeAlias = "ssl.SSLContext | Callable[[], ssl.SSLContext]"

_EXPECTED = "an ssl.SSLContext for servers (ssl.PROTOCOL_TLS_SERVER)"


def fault_of_context(context: object) -> tuple[type[Exception], str] | None:
    """Why a server cannot use this as its context: the kind of error, and what is expected."""
    if not isinstance(context, ssl.SSLContext):
        return TypeError, _EXPECTED
    if context.protocol is ssl.PROTOCOL_TLS_CLIENT:
        return ValueError, f"{_EXPECTED}, not for clients"
    return None


def check_context(what: str, context: object) -> ssl.SSLContext:
    """A context that servers can use.

    Args:
      what: where it comes from, for messages.

    Raises:
      TypeError, ValueError: it is something else.
    """
    if fault := fault_of_context(context):
        kind, expected = fault
        raise kind(f"{what} must be {expected}, not {context!r}")
    assert isinstance(context, ssl.SSLContext)  # noqa: S101  (for the type)
    return context


@attrs.define(eq=False)
class Credentials:
    """What a server shows its clients in a TLS handshake, while it is bound.

    Attributes:
      context: for new connections; those that there are have the one of their beginning.
      as_of: when the function was called that has made it, by `time.monotonic`; for workers,
        who make their own.
    """

    _source: ContextSource
    _name: str
    context: ssl.SSLContext = attrs.field(init=False)
    as_of: float = attrs.field(factory=time.monotonic)
    # A signal handler may reload amid a reload, in the same thread.
    _lock: threading.RLock = attrs.field(factory=threading.RLock)

    def __attrs_post_init__(self) -> None:
        self.context = self._made()

    def _made(self) -> ssl.SSLContext:
        source = self._source
        made = source if isinstance(source, ssl.SSLContext) else source()
        context = check_context(f"what {self._name}.ssl_context returns", made)
        learn_server_name(context)
        return context

    def reload(self) -> None:
        """Call the function again. What it raises is raised, and the old context stays.

        Raises:
          RuntimeError: there is no function.
          TypeError, ValueError: it returns something else than a context for servers.
        """
        if isinstance(self._source, ssl.SSLContext):
            raise RuntimeError(  # noqa: TRY004  (the call is what is wrong)
                f"{self._name}.ssl_context is a context, and would be the same again: give a"
                " function that returns one, which reload() calls"
            )
        with self._lock:
            before, as_of = self.context, time.monotonic()
            context = self._made()
            if self.context is before:  # else one that has come amid this one knows better
                self.context, self.as_of = context, as_of
