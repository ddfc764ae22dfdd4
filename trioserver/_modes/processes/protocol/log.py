"""Log records of a worker, for the loggers of its server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from types import NoneType
from typing import TYPE_CHECKING, Any

from ...._facts.address import Address
from ...._facts.events import RequestInfo, current_request
from .frames import FrameError, Message, address_from_json, address_to_json, shorten

if TYPE_CHECKING:  # for workers, and so for POSIX
    from .channel import Channel

_ROOT = ""

# What is kept of a record: what formatters ask for, and nothing that does not travel.
_TEXTS = ("name", "pathname", "funcName", "threadName", "processName")
_MORE = ("exc_text", "stack_info")
_LONGEST = 4096  # characters of each of those: a path has no more
_TOO_LARGE = 1 << 63
_NUMBERS = ("levelno", "lineno", "created", "thread", "process")


def levels() -> dict[str, int]:
    """The levels that are set in this process, by the names of their loggers."""
    found = {name: logger.level for name, logger in _named().items() if logger.level}
    return {_ROOT: logging.root.level, **found}


def _named() -> dict[str, logging.Logger]:
    """The loggers of this process, but for the root, by their names."""
    known = dict(logging.root.manager.loggerDict)
    return {name: one for name, one in known.items() if isinstance(one, logging.Logger)}


def forward_records(
    channel: Channel, levels: Mapping[str, int], *, with_requests: bool = False
) -> None:
    """Have what is logged in this process, a worker, be logged by its server, and not here.

    Args:
      levels: the server's, so that what it would not log does not travel.
      with_requests: whether to tell for which request something was logged, for
        `RequestLogFilter`: of a worker of one request at a time the server knows that.
    """
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)
    # In the place of other handlers, which modules have added here, too, as they were imported.
    for logger in _named().values():
        logger.handlers.clear()
        logger.propagate = True
    logging.root.handlers[:] = [_ToServer(channel, with_requests=with_requests)]


class _ToServer(logging.Handler):
    """Sends records to the server, which logs them."""

    def __init__(self, channel: Channel, *, with_requests: bool) -> None:
        super().__init__()
        self._channel = channel
        self._with_requests = with_requests

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record. It is lost if that fails: the server is gone."""
        if self._channel.is_closed:  # in a child that a handler has forked
            last = logging.lastResort
            if last is not None and record.levelno >= last.level:
                last.handle(record)
            return
        try:
            info = current_request() if self._with_requests else None
            self._channel.say(Message.LOG, **as_facts(record, info))
        except Exception:  # noqa: BLE001  (as logging does with every error)
            self.handleError(record)


def as_facts(record: logging.LogRecord, info: RequestInfo | None = None) -> dict[str, Any]:
    """A record as values for the wire; what it does not have is ``""``, None or 0.

    Args:
      record: it.
      info: that of the request for which it was logged, if the server does not know.
    """
    text = record.getMessage()
    if record.exc_info:
        trace = logging.Formatter().formatException(record.exc_info)
    else:
        trace = record.exc_text or ""
    facts: dict[str, Any] = {"msg": shorten(text), "exc_text": shorten(trace) or None}
    facts["stack_info"] = shorten(record.stack_info or "") or None
    if info is not None:
        facts["request"] = [info.id, address_to_json(info.client_address)]
    for name in _TEXTS:
        facts[name] = str(getattr(record, name) or "")[:_LONGEST]
    for name in _NUMBERS:
        value = getattr(record, name)
        facts[name] = value if isinstance(value, (int, float)) else 0
    return facts


def log_here(facts: Mapping[str, Any], info: RequestInfo | None = None) -> None:
    """Log the record of a worker with the logger of this process that has its name.

    Args:
      facts: what `as_facts` has made.
      info: that of the worker's request, for `RequestLogFilter`: here runs no request.

    Raises:
      FrameError: it is no record.
    """
    request = _request_of(facts) if info is None else (info.id, info.client_address)
    texts, numbers = (*_TEXTS, "msg"), _NUMBERS
    right = all(isinstance(facts.get(name), str) for name in texts) and all(
        isinstance(facts.get(name), (int, float)) and abs(facts[name]) < _TOO_LARGE
        for name in numbers
    )
    right &= all(isinstance(facts.get(name, ""), (str, NoneType)) for name in _MORE)
    if not right:
        raise FrameError(f"not a log record: {facts!r}")
    logger = logging.getLogger(facts["name"])
    level = int(facts["levelno"])
    if logger.isEnabledFor(level):
        # A filter of the program's may raise, and the code at fault is not here.
        with suppress(Exception):
            record = _as_record(facts, level)
            if request is not None:
                record.request_id, record.client_address = request
            logger.handle(record)


def _request_of(facts: Mapping[str, Any]) -> tuple[int, Address] | None:
    match facts.get("request"):
        case None:
            return None
        case [int(number), address]:
            return number, address_from_json(address)
    raise FrameError(f"not a log record: {facts!r}")


def _as_record(facts: Mapping[str, Any], level: int) -> logging.LogRecord:
    """A record made as loggers make one: by the program's factory, which looks at the path."""
    place = facts["pathname"], int(facts["lineno"]), facts["msg"], (), None, facts["funcName"]
    record = logging.getLogRecordFactory()(facts["name"], level, *place)
    created = facts["created"]
    record.relativeCreated += (created - record.created) * 1000
    record.created, record.msecs = created, float(int(created % 1 * 1000))
    for name in ("thread", "threadName", "process", "processName", *_MORE):
        setattr(record, name, facts.get(name))
    return record
