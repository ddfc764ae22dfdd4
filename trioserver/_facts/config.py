"""Configuration values: `Timeouts` and `Limits`."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias

import attrs

from .callables import has_yield, is_async_callable, parameters_if_not_for
from .validators import count, reject, seconds

WhenFull: TypeAlias = "Literal['wait', 'refuse'] | Callable[[Any], Awaitable[object]]"

LARGEST_PORTION = 65_536
"""Bytes taken from the kernel at once. Larger reads make malloc map and unmap
memory every time, which halved throughput where it was measured."""


def _valid_when_full(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    expected = "'wait', 'refuse' or an async function of one connection"
    if isinstance(value, str):
        if value not in {"wait", "refuse"}:
            reject(ValueError, instance, field, expected, value)
    elif has_yield(value):
        reject(TypeError, instance, field, f"{expected}, without a `yield`", value)
    elif not is_async_callable(value) or parameters_if_not_for(value, "connection"):
        reject(TypeError, instance, field, expected, value)


@attrs.frozen(kw_only=True)
class Timeouts:
    """How long a server waits for its clients and for itself, in seconds.

    Every wait on a client has a bound by default; ``math.inf`` takes one away.
    All of them run on the Trio clock, so a step of the system's clock changes
    nothing.

    Args:
      proxy: from the accept to the end of a PROXY header. The specification asks for 3 s
        at least, one retransmission of TCP.
      handshake: for ``verify_request`` to decide and TLS to be agreed on. Longer than one 3 s TCP
        retransmission.
      idle: without a byte from the peer while a read waits, the first byte
        included. Nothing else counts: neither what we send nor what the
        handler does between two reads.
      line: from the first byte of a line or delimited read to its end, so that
        a byte now and then does not keep a slot for ever.
      write: without the peer taking a byte while a send waits. A slow reader
        that makes progress is not ended by it. It also bounds the time that a
        ``when_full`` function has for one client.
      request: from accept to close, whatever happens. Nobody is bounded by
        default: long-lived quiet protocols are legitimate.
      linger: after the last reply, for input that the handler left unread, so
        that the reply is not lost to a reset. 0 closes at once.
      shutdown: the grace of a drain. Below the 30 s that service managers
        commonly allow between their two signals.
      cleanup: for what still runs after it was cancelled; also bounds
        ``handle_error``, ``server_close``, and ``finish`` after a cancellation.
    """

    proxy: float = attrs.field(default=3, validator=seconds())
    handshake: float = attrs.field(default=10, validator=seconds())
    idle: float = attrs.field(default=300, validator=seconds())
    line: float = attrs.field(default=60, validator=seconds())
    write: float = attrs.field(default=30, validator=seconds())
    request: float = attrs.field(default=math.inf, validator=seconds())
    linger: float = attrs.field(default=2, validator=seconds(zero=True))
    shutdown: float = attrs.field(default=15, validator=seconds(zero=True))
    cleanup: float = attrs.field(default=5, validator=seconds(zero=True))


@attrs.frozen(kw_only=True)
class Limits:
    """How much a server takes on at once.

    Args:
      requests: requests at once, exactly: a slot is free before the accept.
        ``Limits(requests=1)`` is the classic synchronous server.
      when_full: ``"wait"`` leaves further clients in the kernel's queue, where
        they notice nothing but the delay; ``"refuse"`` accepts and resets
        them, so that they can go elsewhere; an async function of one
        connection is given such clients, each by itself, to say why, for at most
        ``Timeouts.write`` seconds; beyond 256 at once they are reset.
      per_client: connections of one client at once; more are always refused.
        One client is an IPv4 address, an IPv6 /64 network (on a link, one
        address and its zone), or a user id of a Unix socket. Any other address
        that ``get_request`` returns counts as itself, or, if it does not hash,
        has no such limit. None: nobody has.
      line: bytes of one line or delimited read, its end included.
      read: bytes of one read without a size.
      linger: bytes of unread input that are discarded after the last reply.
    """

    requests: int = attrs.field(default=1024, validator=count(1))
    when_full: WhenFull = attrs.field(default="wait", validator=_valid_when_full)
    per_client: int | None = attrs.field(default=None, validator=count(1, optional=True))
    line: int = attrs.field(default=65_536, validator=count(1, unit="of bytes "))
    read: int = attrs.field(default=16 * 1024 * 1024, validator=count(1, unit="of bytes "))
    linger: int = attrs.field(default=1024 * 1024, validator=count(0, unit="of bytes "))
