"""What ``get_request`` is offered: a listener, from which it may take a client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from .._requests.any_request import AnyRequest
from .._sockets.transport import Listener


@attrs.define(eq=False)
class Offer:
    """One call of ``get_request``: the listener it is given, and what it has taken.

    It looks like the listener: every attribute that it does not have is the listener's.
    So an override can ask the listener, and the engine knows what an override has taken
    also when that returns something else, or raises. When an override begins the drain,
    the drain calls ``get_request`` from inside it, with an offer of its own.

    Args:
      listener: where the client is.
      accept: accepts a client of the listener now, if one is there.
      drop: refuses a client that was taken, and closes its connection.

    Attributes:
      request: the client that was taken last; None if none was.
    """

    _listener: Listener
    _accept: Callable[[Listener], AnyRequest | None]
    _drop: Callable[[AnyRequest], object]
    request: AnyRequest | None = None

    def take(self) -> AnyRequest | None:
        """Accept a client, now; None when none is there.

        A client that was taken before is dropped: an override may take clients until
        it has one that it wants.

        Raises:
          OSError: the accept failed; see the accept tiers.
        """
        request = self._accept(self._listener)
        if request is not None:
            if self.request is not None:
                self._drop(self.request)
            self.request = request
        return request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)
