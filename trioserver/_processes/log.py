"""Log records of a worker, for the loggers of its server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._events import RequestInfo
from .wire import Say, WireError, shorten

if TYPE_CHECKING:  # for workers, and so for POSIX
    from .channel import Channel

_ROOT = ""

# What is kept of a record: what formatters ask for, and nothing that does not travel.
_TEXTS = ("name", "pathname", "funcName", "threadName", "processName")
_TOO_LARGE = 1 << 63
_NUMBERS = ("levelno", "lineno", "created", "thread", "process")


def levels() -> dict[str, int]:
    """The levels that are set in this process, by the names of their loggers."""
    loggers = logging.root.manager.loggerDict.items()
    found = {
        name: logger.level
        for name, logger in loggers
        if isinstance(logger, logging.Logger) and logger.level
    }
    return {_ROOT: logging.root.level, **found}


def forward_records(channel: Channel, levels: Mapping[str, int]) -> None:
    """Have what is logged in this process, a worker, be logged by its server, and not here.

    Args:
      levels: the server's, so that what it would not log does not travel.
    """
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)
    # Not beside them: what a module does when it is imported it has done here, too.
    logging.root.handlers[:] = [_ToServer(channel)]


class _ToServer(logging.Handler):
    """Sends records."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send one; if that fails, the server is gone."""
        try:
            self._channel.say(Say.LOG, **as_facts(record))
        except Exception:  # noqa: BLE001  (as logging does with every error)
            self.handleError(record)


def as_facts(record: logging.LogRecord) -> dict[str, Any]:
    """A record for the wire."""
    text = record.getMessage()
    if record.exc_info:
        trace = logging.Formatter().formatException(record.exc_info)
    else:
        trace = record.exc_text or ""
    facts = {name: getattr(record, name) for name in (*_TEXTS, *_NUMBERS)}
    return {**facts, "msg": shorten(text), "exc_text": shorten(trace) or None}


def log_here(facts: Mapping[str, Any], info: RequestInfo | None = None) -> None:
    """Log the record of a worker with the logger of this process that has its name.

    Args:
      facts: what `as_facts` has made.
      info: of the worker's request, for `RequestLogFilter`: here is none.

    Raises:
      WireError: it is no record.
    """
    texts, numbers = (*_TEXTS, "msg"), _NUMBERS
    right = all(isinstance(facts.get(name), str) for name in texts) and all(
        isinstance(facts.get(name), (int, float)) and abs(facts[name]) < _TOO_LARGE
        for name in numbers
    )
    if not right:
        raise WireError(f"not a log record: {facts!r}")
    logger = logging.getLogger(facts["name"])
    level = int(facts["levelno"])
    if logger.isEnabledFor(level):
        record = logging.makeLogRecord({**facts, "levelname": logging.getLevelName(level)})
        if info is not None:
            record.request_id, record.client_address = info.id, info.client_address
        logger.handle(record)
