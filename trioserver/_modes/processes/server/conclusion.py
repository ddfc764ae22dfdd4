"""What a request has ended with in its worker, as the server goes on with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from ...._facts.errors import Draining, IdleTimeout, LimitExceeded, PeerGone, RequestEnded
from ...._facts.events import Outcome
from ...._requests.datagram import Datagram
from ..protocol.errors import HandlerFailed, Traceback, WorkerCrashed
from .job import Job
from .passed_connection import PassedConnection

_ENDED: dict[str, type[RequestEnded]] = {
    Outcome.TIMED_OUT: IdleTimeout,
    Outcome.REFUSED: LimitExceeded,
    Outcome.DISCONNECTED: PeerGone,
    Outcome.DRAINED: Draining,
}
"""What a request ends with on the server, by the outcome that it had in its worker."""


async def conclude(job: Job, request: PassedConnection | Datagram) -> None:
    """Raise what the request has ended with."""
    result = job.result
    if result is None:
        raise WorkerCrashed(job.pid, job.status)
    if result.error:
        raise HandlerFailed(result.error) from Traceback(result.traceback)
    if result.outcome == Outcome.CANCELLED:
        request.cancel_scope.cancel(reason=result.reason)
        await trio.lowlevel.checkpoint()
    if result.outcome in _ENDED:
        raise _ENDED[result.outcome](result.reason, info=request.info)


async def error_of(send: Callable[[], Any]) -> Exception | None:
    """What sending raises, if anything: the handler's affair."""
    try:
        await send()
    except Exception as error:  # noqa: BLE001  (the worker is told)
        return error
    return None
