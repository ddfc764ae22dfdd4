"""Log records as JSON: one object a line, whatever was logged."""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
from typing import Any

from .._text.words import describe

_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
"""What every record has; what else it has was given as ``extra``."""

_OWN = ("request_id", "client_address", "outcome")

_DEEPEST = 6
"""Levels of lists and mappings that are written; what is deeper is written as text."""

_LONGEST = 20_000
"""Characters of one text that are written; the rest is counted."""


class JSONLogFormatter(logging.Formatter):
    """Formats each record as one line of JSON.

    ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message`` are always there; ``request_id``,
    ``client_address`` and ``outcome`` where the record has them, as those of ``trioserver.access``
    do, and with `trioserver.RequestLogFilter` all of them; ``error`` and ``stack`` are texts; what
    was given as ``extra`` has its own name. Line ends are escaped, so that nobody who is logged can
    add a line. It never raises: what JSON does not know is written as `repr` has it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line of JSON."""
        facts: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        if record.process is not None:
            facts["process"] = record.process
        facts.update(_facts_of_request(record))
        facts.update(
            {name: _safe(value) for name, value in vars(record).items() if _is_extra(name, facts)}
        )
        if record.exc_info and record.exc_info[1] is not None:
            facts["error"] = _text(self._formatted(record))
        elif record.exc_text:
            facts["error"] = _text(record.exc_text)
        if record.stack_info:
            facts["stack"] = _text(record.stack_info)
        return json.dumps(facts, allow_nan=False)

    def _formatted(self, record: logging.LogRecord) -> str:
        try:
            return self.formatException(record.exc_info)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001  (of the error that is shown, say of its __str__)
            return f"an error that cannot be shown: {type(error).__name__}"


def _time(seconds: float) -> str:
    try:
        moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return repr(seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    try:
        return _text(record.getMessage())
    except Exception:  # noqa: BLE001  (arguments that do not fit, or their own __str__)
        return _text(f"{_shown_as_code(record.msg)} with {_shown(record.args)}")


def _facts_of_request(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _OWN:
        value = getattr(record, name, None)
        if value is not None:
            found[name] = describe(value) if name == "client_address" else _safe(value)
    return found


def _is_extra(name: str, facts: dict[str, Any]) -> bool:
    return name not in _USUAL and name not in facts and name not in _OWN


def _safe(value: object, depth: int = 0) -> Any:
    """A value that JSON knows, and is like this one."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(value)
    if isinstance(value, str):
        return _text(str.__str__(value))
    if depth < _DEEPEST and isinstance(value, (list, tuple)):
        return [_safe(one, depth + 1) for one in value[:1000]]
    if depth < _DEEPEST and isinstance(value, dict):
        some = list(value.items())[:1000]
        return {_shown(name): _safe(one, depth + 1) for name, one in some}
    return _shown(value)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return _text(str.__str__(value))
    try:
        return _text(repr(value))
    except Exception:  # noqa: BLE001  (its own)
        return f"<{type(value).__name__}>"


def _shown_as_code(value: object) -> str:
    return repr(value) if isinstance(value, str) else _shown(value)


def _text(text: str) -> str:
    # A lone surrogate is what a name of bytes becomes that are no UTF-8: escaped, as all that is
    # not ASCII, by json.dumps.
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
