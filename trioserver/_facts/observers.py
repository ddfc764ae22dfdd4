"""Who is told of what happens: observers, and the one that logs.

Observers are called at the instant of the event, from the server's own tasks,
so they must not wait; what they raise is theirs alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from .address import Address, describe
from .callables import has_yield, is_async_callable
from .chains import shows
from .events import (
    LEFT_IN_SILENCE,
    Outcome,
    RequestInfo,
    RequestRecord,
    ShutdownReport,
    current_request,
)
from .validators import reject
from .verdict import cancellations

access_log = logging.getLogger("trioserver.access")
error_log = logging.getLogger("trioserver.error")


class Observer:
    """Somebody who is told of a server's events.

    Derive from it and override what you care about, or give any object with at
    least one of these methods. All are plain functions that must not wait. One
    that raises is logged once and never called again in this run; the server
    does not notice. ``SystemExit`` from one stops the server, in order.
    """

    def server_listening(self, addresses: tuple[Address, ...]) -> None:
        """The server listens on ``addresses``."""

    def request_started(self, info: RequestInfo) -> None:
        """A request has arrived, and is going to be served; or, if all slots are taken, told so."""

    def request_finished(self, info: RequestInfo, outcome: Outcome, record: RequestRecord) -> None:
        """The outcome of a request that had started is decided, and its slot is free again."""

    def arrival_failed(self, info: RequestInfo, record: RequestRecord) -> None:
        """A request has ended before it was to be served; its slot is free again.

        In the place of both other calls: ``verify_request`` has refused it, say. The record
        has its outcome, and the reason in words.
        """

    def request_refused(self, client_address: Address, reason: str) -> None:
        """A client was turned away before it became a request."""

    def accept_failed(self, server_address: Address, error: OSError) -> None:
        """An accept failed with ``error``."""

    def draining(self, grace: float) -> None:
        """The server stopped accepting; requests have ``grace`` seconds left."""

    def server_closed(self, report: ShutdownReport) -> None:
        """The run is over; nothing of it remains."""


EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


def valid_observers(server: object, field: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is not a sequence of observers."""
    expected = "a sequence of observers, each with at least one of the plain methods "
    expected += ", ".join(EVENTS)
    if not isinstance(value, tuple):
        reject(TypeError, server, field, expected, value)
    for observer in value:
        methods = [getattr(observer, event) for event in EVENTS if hasattr(observer, event)]
        plain = all(
            callable(one) and not is_async_callable(one) and not has_yield(one) for one in methods
        )
        if isinstance(observer, type) or not methods or not plain:
            reject(TypeError, server, field, expected, observer)


@attrs.frozen
class LoggingObserver(Observer):
    """The observer every server has: one record a request, on ``trioserver.access``.

    Attributes:
      level: of what comes of clients; of those who only look whether the port is open it is
        DEBUG.
      is_worker: whether it is one of several processes that serve the same: then they listen,
        drain and close at DEBUG, since the program says that for all of them.
    """

    level: int = logging.INFO
    is_worker: bool = False

    def server_listening(self, addresses: tuple[Address, ...]) -> None:
        shown = ", ".join(map(describe, addresses))
        level = logging.DEBUG if self.is_worker else logging.INFO
        log_safely(access_log, level, "listening on %s", shown)

    def request_finished(self, info: RequestInfo, outcome: Outcome, record: RequestRecord) -> None:
        self.arrival_failed(info, record)

    def arrival_failed(self, info: RequestInfo, record: RequestRecord) -> None:
        level = logging.DEBUG if record.reason.endswith(LEFT_IN_SILENCE) else self.level
        if access_log.isEnabledFor(level):
            fields = {"client_address": info.client_address, "outcome": record.outcome.value}
            log_safely(access_log, level, "%s", record, extra={"request_id": info.id, **fields})

    def request_refused(self, client_address: Address, reason: str) -> None:
        log_safely(
            access_log, self.level, "client %s refused (%s)", describe(client_address), reason
        )

    def draining(self, grace: float) -> None:
        level = logging.DEBUG if self.is_worker else self.level
        log_safely(access_log, level, "draining, %g s of grace", grace)

    def server_closed(self, report: ShutdownReport) -> None:
        level = logging.DEBUG if self.is_worker else self.level
        log_safely(access_log, level, "closed: %s", report.summary)


class RequestLogFilter(logging.Filter):
    """Puts the current request on every log record that passes.

    Add it to a handler or logger; the record then has ``request_id`` and
    ``client_address``, both None outside of requests. Attributes that are set
    already are left alone.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; lets every record through."""
        info = current_request()
        fields = {
            "request_id": info and info.id,
            "client_address": info and info.client_address,
        }
        for name, value in fields.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


@attrs.define(eq=False)
class _Seat:
    """One observer, and whether it is still told of anything."""

    observer: Any
    dropped: bool = False


@attrs.define(eq=False)
class Audience:
    """The observers of one run; forgets those that raise."""

    _seats: Mapping[str, Sequence[_Seat]]  # by event, those that may hear of it
    _log_level: int
    _on_exit: Callable[[BaseException], None]

    @classmethod
    def of(
        cls,
        observers: Iterable[object],
        log: LoggingObserver,
        on_exit: Callable[[BaseException], None],
    ) -> Audience:
        """The given observers, after the one that logs.

        Args:
          observers: who is told.
          log: the one that logs.
          on_exit: raises what is no `Exception`, a ``SystemExit`` say, where
            nothing is half done.
        """
        seats = [_Seat(observer) for observer in (log, *observers)]
        hearing = {
            event: [seat for seat in seats if not _is_deaf(seat.observer, event)]
            for event in EVENTS
        }
        return cls(hearing, log.level, on_exit)

    def hears(self, event: str) -> bool:
        """Whether anybody wants to know of the end of a request, be it the log."""
        return len(self._seats[event]) > 1 or access_log.isEnabledFor(self._log_level)

    def tell(self, event: str, *facts: object) -> None:
        """Call the method named ``event`` on every observer that has it.

        One event can lead to another: an observer may shut the server down.
        """
        for seat in self._seats[event]:
            if seat.dropped:
                continue
            try:
                method = getattr(seat.observer, event, None)
                if method is not None:
                    method(*facts)
            except Exception as error:  # noqa: BLE001  (the observer's, not the server's)
                seat.dropped = True
                message = "an observer raised in %s and is not called again: %s"
                name = type(seat.observer).__name__
                log_safely(error_log, logging.ERROR, message, event, name, exc_info=error)
            except BaseException as error:  # noqa: BLE001  (on_exit has it raised)
                self._on_exit(error)


def _is_deaf(observer: object, event: str) -> bool:
    """Whether it has of `Observer` alone what it does then: nothing."""
    inherited = getattr(type(observer), event, None) is getattr(Observer, event)
    return inherited and event not in getattr(observer, "__dict__", {})


def log_safely(logger: logging.Logger, level: int, message: str, *values: Any, **more: Any) -> None:
    """Log, and drop whatever that raises.

    A logging handler or filter of the program's may raise, and an exception's
    own ``__str__`` may. Neither is a reason for a server to end, and there is
    nobody left to tell.
    """
    with contextlib.suppress(Exception):
        logger.log(level, message, *values, stacklevel=2, **more)


def log_lost(error: BaseException | None, second: BaseException, message: str, value: Any) -> None:
    """Log an error in whose place a second one goes on, unless that one's traceback shows it."""
    if error is not None and not shows(second, error) and not cancellations(error):
        log_safely(error_log, logging.ERROR, message, value, exc_info=error)
