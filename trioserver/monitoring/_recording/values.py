"""Requests and addresses as values of JSON, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import trioserver

from .._tree.scopes import describe


def request_as_json(info: trioserver.RequestInfo | None) -> dict[str, Any] | None:
    """A request, without the time of the system's clock, and without what a proxy has told of it.

    The first would make two recordings differ that are otherwise the same.
    """
    if info is None:
        return None
    return {
        "id": info.id,
        "client": describe(info.client_address),
        "mode": info.mode,
        "started": info.started,
        "addresses": [
            _address_as_json(address)
            for address in (info.client_address, info.server_address, info.peer_address)
        ],
    }


def request_from(value: Mapping[str, Any] | None) -> trioserver.RequestInfo | None:
    """The request that `request_as_json` has told; ``started_at`` is 0."""
    if value is None:
        return None
    client, server, peer = map(_address_from, value["addresses"])
    return trioserver.RequestInfo(
        id=value["id"],
        client_address=client,
        server_address=server,
        peer_address=peer,
        mode=value["mode"],
        started=value["started"],
        started_at=0.0,
    )


def _address_as_json(address: Any) -> Any:
    """Tuples as lists, bytes as their hex digits; what a program has made up as a text."""
    if isinstance(address, tuple) and all(isinstance(part, str | int) for part in address):
        return list(address)
    if isinstance(address, bytes):
        return {"hex": address.hex()}
    return address if isinstance(address, str | int | None) else describe(address)


def _address_from(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    return tuple(value) if isinstance(value, list) else value


def time_as_json(at: float) -> float | str | None:
    """A time; None for one that never comes. JSON has no number for one that always has been."""
    if at == math.inf:
        return None
    return "-inf" if at == -math.inf else at


def time_from(value: float | str | None) -> float:
    """The time that `time_as_json` has told."""
    return math.inf if value is None else float(value)


def request_key(value: Mapping[str, Any]) -> str:
    """What tells one request from all others of a program: ids count from 1 in each server."""
    return f"{value['id']} {value['started']} {value['addresses'][1]}"
