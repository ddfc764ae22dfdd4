"""The options of commands that serve: the same words for the same things everywhere."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs

import trioserver
from trioserver import Limits, Timeouts

from . import values, watched
from .options import Option

_FILES = ("tls_cert", "tls_key", "tls_client_ca")

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
    if of is Timeouts:
        return f"{what} (default: {default:g}s)"
    return f"{what} (default: {values.shown_size(default) if _is_size(what) else default})"


def _is_size(what: str) -> bool:
    return what.startswith("bytes")


LISTENING = (
    Option(
        "--bind",
        "where to listen: host:port (a port alone is 127.0.0.1's), unix:PATH, fd://N, or"
        " inherited:NAME for sockets of a service manager; several times for several places"
        f" (default: {DEFAULT_BIND.text})",
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
            values.size if _is_size(what) else values.count,
            "SIZE" if _is_size(what) else "N",
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
        "--workers",
        "how many processes serve, each with a processor of its own; auto: as many as there are"
        " processors to use (default: this one alone)",
        values.workers,
        "N",
    ),
    Option(
        "--total-requests",
        "clients at once in all workers together; --limit-requests is for each of them",
        values.count,
        "N",
    ),
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
        "time that a successor, or a worker, has to get ready (default: 60s)",
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
    "to be watched": watched.OPTIONS,
}


def fields_of(typed: argparse.Namespace, of: Any) -> dict[str, Any]:
    """The fields of `Timeouts` or `Limits` that were given, by their names.

    Raises:
      ValueError: one makes no sense; the option is named.
    """
    prefix = {Timeouts: "timeout", Limits: "limit"}[of]
    given = {name: getattr(typed, f"{prefix}_{name}", None) for name in attrs.fields_dict(of)}
    found = {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        try:
            of(**{name: value})
        except ValueError as error:
            option = f"--{prefix}-{name.replace('_', '-')}"
            raise ValueError(str(error).replace(f"{of.__name__}.{name}", option)) from None
    return found


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
        _check_files(make, typed)
        found["ssl_context"] = make
    elif typed.tls_key or typed.tls_client_ca or typed.tls_alpn:
        raise ValueError("--tls-cert was expected, too: without it nothing is served by TLS")
    if typed.proxy_protocol is not None:
        found["proxy_protocol"] = trioserver.ProxyProtocol(trusted=typed.proxy_protocol)
    if typed.backlog is not None:
        found["request_queue_size"] = typed.backlog
    return found


def _check_files(make: Callable[[], object], typed: argparse.Namespace) -> None:
    """Say now what is wrong with them, by the options that name them."""
    try:
        make()
    except OSError as error:
        wrong = next(name for name in _FILES if getattr(typed, name) == error.filename)
        option = f"--{wrong.replace('_', '-')}"
        raise OSError(error.errno, f"{option} {error.filename}: {error.strerror}") from None
    except ValueError as error:
        hint = "" if typed.tls_key else " (without --tls-key, it is looked for there)"
        raise ValueError(f"{error}{hint if str(error).startswith('key: ') else ''}") from None


def places(typed: argparse.Namespace) -> Sequence[values.Bind]:
    """Where to listen."""
    return typed.bind or [DEFAULT_BIND]
