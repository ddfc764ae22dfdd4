"""The options of commands that serve: the same words for the same things everywhere."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs

import trioserver
from trioserver import Limits, Timeouts

from . import values
from .options import Option

DEFAULT_BIND = values.Bind("127.0.0.1:8000", ("127.0.0.1", 8000))

_LEVELS = ("debug", "info", "warning", "error", "critical")
_WHAT = {
    "proxy": "for the PROXY header",
    "handshake": "for the TLS handshake",
    "idle": "without a byte of the client while it is waited for",
    "line": "from the first byte of a line to its end",
    "write": "without the client taking a byte",
    "request": "from the accept to the close, whatever happens",
    "linger": "for what the client still sends after the last reply",
    "cleanup": "for what still runs after it was cancelled",
}
_HOW_MANY = {
    "requests": "clients at once",
    "per_client": "connections of one client at once",
    "line": "bytes of one line",
    "read": "bytes of one read without a size",
    "linger": "bytes of unread input that are discarded after the last reply",
}


def _with_default(what: str, of: type, name: str) -> str:
    """What an option does, and what holds without it."""
    default = attrs.fields_dict(of)[name].default
    if default is None or default == math.inf:
        return f"{what} (default: no limit)"
    return f"{what} (default: {default:g}{'s' if of is Timeouts else ''})"


LISTENING = (
    Option(
        "--bind",
        "where to listen: host:port, unix:PATH, fd://N, or inherited:NAME for sockets of a service"
        f" manager; several times for several places (default: {DEFAULT_BIND.text})",
        values.bind,
        "ADDRESS",
        short="-b",
        repeats=True,
    ),
    Option("--backlog", "clients that the kernel keeps until they are accepted", values.count, "N"),
    Option(
        "--print-address", "print where it listens, a line each, when it is ready", is_switch=True
    ),
)
LIMITS = (
    *(
        Option(
            f"--limit-{name.replace('_', '-')}",
            _with_default(what, Limits, name),
            values.count,
            "N",
        )
        for name, what in _HOW_MANY.items()
    ),
    Option(
        "--limit-when-full",
        "what becomes of further clients: they wait, or are refused",
        choices=("wait", "refuse"),
    ),
)
TIMEOUTS = tuple(
    Option(
        f"--timeout-{name}", _with_default(f"time {what}", Timeouts, name), values.seconds, "TIME"
    )
    for name, what in _WHAT.items()
)
PROTECTION = (
    Option(
        "--tls-cert",
        "the server's certificate and its chain, a PEM file: serve by TLS",
        metavar="FILE",
    ),
    Option(
        "--tls-key",
        "its private key, a PEM file (default: in that of the certificate)",
        metavar="FILE",
    ),
    Option(
        "--tls-client-ca",
        "certificates of authorities, a PEM file: clients must have one of theirs",
        metavar="FILE",
    ),
    Option(
        "--tls-alpn",
        "protocols that can be agreed on, with commas in between",
        values.names,
        "NAMES",
    ),
    Option(
        "--proxy-protocol",
        "read a PROXY header of these peers: networks, or unix, with commas in between",
        values.names,
        "TRUSTED",
    ),
)
PROGRAM = (
    Option(
        "--grace",
        "time that requests have to end, at a signal (default: 15s)",
        values.seconds,
        "TIME",
    ),
    Option(
        "--ready-off",
        "time between the first signal and the drain, in which it says that it is not ready",
        values.seconds,
        "TIME",
    ),
    Option(
        "--start-timeout",
        "time that a successor has to get ready (default: 60s)",
        values.seconds,
        "TIME",
    ),
    Option(
        "--health",
        "answer health checks there, by HTTP: host:port, or unix:PATH",
        values.address,
        "ADDRESS",
    ),
    Option("--log-level", "what is logged, on stderr (default: info)", choices=_LEVELS),
    Option("--traceback", "show where an error comes from", is_switch=True),
)
GROUPS = {
    "where": LISTENING,
    "how much at once": LIMITS,
    "how long": TIMEOUTS,
    "protection": PROTECTION,
    "as a program": PROGRAM,
}


def fields_of(typed: argparse.Namespace, of: Any) -> dict[str, Any]:
    """The fields of `Timeouts` or `Limits` that were given, by their names."""
    prefix = {Timeouts: "timeout", Limits: "limit"}[of]
    given = {name: getattr(typed, f"{prefix}_{name}", None) for name in attrs.fields_dict(of)}
    return {name: value for name, value in given.items() if value is not None}


def timeouts(typed: argparse.Namespace) -> Timeouts:
    """Those that were given, and the library's own for the rest."""
    return Timeouts(**fields_of(typed, Timeouts))


def limits(typed: argparse.Namespace) -> Limits:
    """The same, of limits."""
    return Limits(**fields_of(typed, Limits))


def stream_fields(typed: argparse.Namespace) -> dict[str, Any]:
    """The fields of stream servers that were given: TLS, PROXY, backlog."""
    found: dict[str, Any] = {}
    if typed.tls_cert is not None:
        key = typed.tls_key or typed.tls_cert
        more = {"client_ca": typed.tls_client_ca, "alpn": typed.tls_alpn or ()}
        make = partial(trioserver.server_context, typed.tls_cert, key, **more)
        make()  # what is wrong with the files is said now
        found["ssl_context"] = make
    elif typed.tls_key or typed.tls_client_ca or typed.tls_alpn:
        raise ValueError("--tls-cert was expected, too: without it nothing is served by TLS")
    if typed.proxy_protocol is not None:
        found["proxy_protocol"] = trioserver.ProxyProtocol(trusted=typed.proxy_protocol)
    if typed.backlog is not None:
        found["request_queue_size"] = typed.backlog
    return found


def places(typed: argparse.Namespace) -> Sequence[values.Bind]:
    """Where to listen."""
    return typed.bind or [DEFAULT_BIND]
