"""What a worker tells of its servers, in what JSON has: it is not trusted with more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from ..._facts.address import Address
from ..._facts.events import Mode, Outcome, RequestInfo, RequestRecord, ShutdownReport, Statistics
from ..._facts.snapshots import RequestSnapshot, ServerSnapshot
from ..._modes.processes.protocol.frames import FrameError, address_from_json, address_to_json

MOST_REQUESTS = 256
"""Requests that a worker tells of each second, of each server; all would cost it too much."""

_COUNTS = tuple(one.name for one in attrs.fields(Statistics) if one.name != "outcomes")
_MODES: Mapping[str, Mode] = {"task": "task", "thread": "thread", "process": "process"}

T = TypeVar("T")


def snapshot_facts(snapshot: ServerSnapshot, now: float) -> dict[str, Any]:
    """A snapshot of a server.

    Args:
      now: the time by the Trio clock of this process, whose times mean nothing elsewhere.
    """
    requests = [
        {
            "info": _info_facts(one.info, now),
            "state": one.state,
            "age": one.age,
            "time_left": one.time_left,
            "received": one.bytes_received,
            "sent": one.bytes_sent,
        }
        for one in snapshot.requests[:MOST_REQUESTS]
    ]
    counts = statistics_facts(snapshot.statistics)
    return {"state": snapshot.state, "requests": requests, "statistics": counts}


def snapshot_from(
    facts: Mapping[str, Any], now: float
) -> tuple[str, Sequence[RequestSnapshot], Statistics]:
    """The state, the requests and the counts of such facts; `FrameError` if they are none."""

    def read() -> tuple[str, Sequence[RequestSnapshot], Statistics]:
        requests = tuple(
            RequestSnapshot(
                info=_info_from(one["info"], now),
                state=str(one["state"]),
                age=float(one["age"]),
                time_left=float(one["time_left"]),
                bytes_received=int(one["received"]),
                bytes_sent=int(one["sent"]),
            )
            for one in facts["requests"]
        )
        return str(facts["state"]), requests, _statistics_from(facts["statistics"])

    return _sense_of(read, facts)


def record_facts(record: RequestRecord, now: float) -> dict[str, Any]:
    """A record of a request."""
    return {
        "info": _info_facts(record.info, now),
        "outcome": record.outcome.value,
        "reason": record.reason,
        "duration": record.duration,
        "received": record.bytes_received,
        "sent": record.bytes_sent,
    }


def record_from(facts: Mapping[str, Any], now: float) -> RequestRecord:
    """The record of such facts; `FrameError` if they are none."""
    return _sense_of(
        lambda: RequestRecord(
            info=_info_from(facts["info"], now),
            outcome=Outcome(facts["outcome"]),
            reason=str(facts["reason"]),
            duration=float(facts["duration"]),
            bytes_received=int(facts["received"]),
            bytes_sent=int(facts["sent"]),
        ),
        facts,
    )


def rest_from(
    facts: Mapping[str, Any], now: float
) -> tuple[Sequence[RequestRecord], Sequence[Address]]:
    """Records, and clients that were not served, of such facts; `FrameError` if they are none."""
    return _sense_of(
        lambda: (
            [record_from(one, now) for one in facts.get("records", ())],
            [address_from_json(one) for one in facts.get("unaccepted", ())],
        ),
        facts,
    )


def report_facts(report: ShutdownReport) -> dict[str, Any]:
    """A report, without its records and the clients that were not served."""
    return {
        "reason": report.reason,
        "grace": report.grace,
        "duration": report.duration,
        "statistics": statistics_facts(report.statistics),
    }


def report_from(
    facts: Mapping[str, Any], records: Sequence[RequestRecord], unaccepted: Sequence[Address]
) -> ShutdownReport:
    """The report of such facts, and what was told before; `FrameError` if they are none."""
    return _sense_of(
        lambda: ShutdownReport(
            reason=str(facts["reason"]),
            grace=float(facts["grace"]),
            duration=float(facts["duration"]),
            requests=tuple(records),
            unaccepted=tuple(unaccepted),
            statistics=_statistics_from(facts["statistics"]),
        ),
        facts,
    )


def statistics_facts(statistics: Statistics) -> dict[str, Any]:
    """The counts of a server."""
    outcomes = {outcome.value: count for outcome, count in statistics.outcomes.items() if count}
    return {name: getattr(statistics, name) for name in _COUNTS} | {"outcomes": outcomes}


def _statistics_from(facts: Mapping[str, Any]) -> Statistics:
    counts = {name: int(facts[name]) for name in _COUNTS}
    outcomes = {it: int(facts["outcomes"].get(it.value, 0)) for it in Outcome}
    return Statistics(**counts, outcomes=outcomes)


def _info_facts(info: RequestInfo, now: float) -> dict[str, Any]:
    addresses = (info.client_address, info.peer_address, info.server_address)
    client, peer, server = map(address_to_json, addresses)
    at = {"ago": now - info.started, "started_at": info.started_at}
    where = {"client": client, "peer": peer, "server": server}
    return {"id": info.id, "mode": info.mode, **where, **at}


def _info_from(facts: Mapping[str, Any], now: float) -> RequestInfo:
    return RequestInfo(
        id=int(facts["id"]),
        client_address=address_from_json(facts["client"]),
        peer_address=address_from_json(facts["peer"]),
        server_address=address_from_json(facts["server"]),
        mode=_MODES[facts["mode"]],
        started=now - float(facts["ago"]),
        started_at=float(facts["started_at"]),
    )


def _sense_of(read: Callable[[], T], facts: object) -> T:
    try:
        return read()
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise FrameError(f"not what a worker tells: {error!r} in {facts!r}") from None
