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

    It has the listener's face: whatever else is asked of it is the listener's. So an
    override can look at the listener, and what it has taken is known also when it
    returns something else, or raises; a ``get_request`` that is called from inside
    another one, as it begins the drain, has an offer of its own.

    Args:
      listener: where the client is.
      accept: accepts a client of it now, if one is there.
      drop: refuses a client that was taken.

    Attributes:
      request: the client that was taken last; None so far.
    """

    _listener: Listener
    _accept: Callable[[Listener], AnyRequest | None]
    _drop: Callable[[AnyRequest], object]
    request: AnyRequest | None = None

    def take(self) -> AnyRequest | None:
        """Accept a client, now; None when none is there.

        One that was taken before is dropped: an override looks for the right one.

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
