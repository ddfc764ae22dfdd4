"""Arrival: the step between the accept of a request and ``process_request``.

It runs in the request's own task, inside its slot and its scope, and has
``timeouts.handshake`` seconds. So far it is `verify_request`, and before that, of an
adopted server, its own ``get_request`` and TLS handshake. Whatever is to be agreed on
with a client before anybody serves it belongs here.

The rules that this file keeps:

* An arrival that fails is that request's business: its slot comes back, and it has one
  record, with an outcome and the reason in words. What was agreed on, or was refused, is
  no error of the program: `handle_error` is not called.
* While it arrives, a request is ``arriving`` in snapshots. In a drain it is a new
  connection, and it has the time of one for its first request once it has arrived.
* The arrival may learn who the client is. ``request.info`` is where that is said: the task
  reads it again at the end, whether or not the arrival has failed.
* ``per_client`` is counted before the arrival, in `Admission`, by the address that
  ``get_request`` gave: a client that has its share is refused at once.
"""

from __future__ import annotations

from typing import Any

import trio

from .._facts.address import Address
from .._facts.events import Outcome
from .hooks import RequestHooks, call_hook


async def arrive(
    hooks: RequestHooks, hook_argument: Any, client_address: Address
) -> tuple[Outcome, str] | None:
    """Have a request arrive: None if it has, else its outcome and the reason.

    Raises:
      Exception: what a hook raises, which is for the request to judge.
    """
    with trio.move_on_after(hooks.timeouts.handshake):
        if await call_hook(hooks._arrive, hook_argument, client_address):
            return None
        return Outcome.REFUSED, "verify_request"
    return Outcome.TIMED_OUT, "verify_request took too long (handshake)"
