"""Arrival: the step between the accept of a request and ``process_request``.

It runs in the request's own task, inside its slot and its scope. First the request is
introduced, if a proxy has to say who the client is, within ``timeouts.proxy``. Then, within
``timeouts.handshake``, there is `verify_request`, and after it the TLS handshake. Of an adopted
server, its own ``get_request`` and TLS handshake come before that. Whatever is to be agreed on
with a client before anybody serves it belongs here.

The rules that this file keeps:

* An arrival that fails is that request's business: its slot comes back, and it has one
  record, with an outcome and the reason in words. What was agreed on, or was refused, is
  no error of the program: `handle_error` is not called.
* While it arrives, a request is ``arriving`` in snapshots. In a drain it is a new
  connection, and it has the time of one for its first request once it has arrived.
* The arrival may learn who the client is. ``request.info`` is where that is said: the task
  reads it again at the end, whether or not the arrival has failed.
* ``per_client`` is counted when it is known who the client is: in `Admission`, by the address
  that ``get_request`` gave, or, by what a proxy has said, after the introduction.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

import trio

from .._facts.address import Address
from .._facts.events import Outcome, RequestInfo, enter_request, same_request
from .._requests.any_request import AnyRequest
from .._sockets.tls_errors import NO_HANDSHAKE_IN_TIME
from .hooks import RequestHooks, call_hook

T = TypeVar("T")
Failure = tuple[Outcome, str]


class Arriving(Protocol):
    """What an arrival needs of the task of a request."""

    request: AnyRequest
    info: RequestInfo
    hook_argument: Any
    client_address: Address

    @property
    def has_introduction(self) -> bool: ...
    def is_refused(self) -> str:
        """Count the client, now that it is known; why it is refused, or ``""``."""


async def arrive(task: Arriving, hooks: RequestHooks) -> Failure | None:
    """Have a request arrive: None if it has, else its outcome and the reason.

    Raises:
      Exception: what a hook raises, which is for the request to judge.
      RequestEnded: the peer has left before it was introduced, or the server drains.
      RuntimeError: a hook has put the facts of another request in the place of this one's.
    """
    if task.has_introduction and (failure := await _introduce(task, hooks)):
        task.request._must_not_linger = True
        return failure
    failure = await _learn_by(task, _verify(task, hooks))
    if failure is None:
        task.request._note_arrival()
    return failure


async def arrive_to_hear(task: Arriving, hooks: RequestHooks) -> bool:
    """Have a request arrive that is to be told that the server is full; false if it fails.

    Nobody asks whether to serve it, and it is not counted: it holds no slot.

    Raises as `arrive` does.
    """
    if task.has_introduction:
        why_not = await _learn_by(task, hooks._introduce(task.request))
        if why_not:
            task.request._must_not_linger = True
            return False
    await hooks._secure_here(task.request)
    return True


async def _introduce(task: Arriving, hooks: RequestHooks) -> Failure | None:
    peer = task.info.client_address
    with trio.move_on_after(hooks.timeouts.proxy):
        why_not = await _learn_by(task, hooks._introduce(task.request))
        if task.client_address == peer:  # else get_request knows better
            task.client_address = task.info.client_address
        why_not = why_not or task.is_refused()
        return (Outcome.REFUSED, why_not) if why_not else None
    return Outcome.TIMED_OUT, "no PROXY header came in time (proxy)"


async def _verify(task: Arriving, hooks: RequestHooks) -> Failure | None:
    late = hooks._LATE
    with trio.move_on_after(hooks.timeouts.handshake):
        if not await call_hook(hooks._arrive, task.hook_argument, task.client_address):
            return Outcome.REFUSED, "verify_request"
        late = NO_HANDSHAKE_IN_TIME
        await hooks._secure(task.request)
        return None
    return Outcome.TIMED_OUT, late


async def _learn_by(task: Arriving, step: Awaitable[T]) -> T:
    """Await a step, and take over what the request has become by it, or has failed as."""
    try:
        result = await step
    finally:
        info = task.request.info
        if info is not task.info and same_request(info, task.info):
            task.info = info
            enter_request(info)
    if info is not task.info:
        raise RuntimeError(f"request.info is now of another request: {info!r}")
    return result
