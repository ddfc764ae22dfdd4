"""Configuration values: `Timeouts` and `Limits`, and the validators of all fields.

A validator's message names the field, what was expected and what was given, so
that it can be acted on without opening the code. Wrong types are `TypeError`,
wrong values `ValueError`.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, NoReturn, TypeAlias

import attrs

Validator: TypeAlias = "Callable[[Any, attrs.Attribute[Any], Any], None]"
WhenFull: TypeAlias = "Literal['wait', 'refuse'] | Callable[[Any], Awaitable[object]]"

LARGEST_PORTION = 65_536
"""Bytes taken from the kernel at once. Larger reads make malloc map and unmap
memory every time, which halved throughput where it was measured."""


def reject(
    kind: type[Exception],
    instance: object,
    field: attrs.Attribute[Any],
    expected: str,
    value: object,
) -> NoReturn:
    """Raise ``kind`` with a message that names the field."""
    if instance is None:
        owner = ""
    else:
        cls = instance if inspect.isclass(instance) else type(instance)
        owner = f"{cls.__name__}."
    raise kind(f"{owner}{field.alias} must be {expected}, not {value!r}")


def seconds(*, zero: bool = False, optional: bool = False) -> Validator:
    """A validator for durations in seconds; ``math.inf`` means no limit."""
    expected = "a number of seconds " + ("of at least 0" if zero else "greater than 0")
    expected += " or None" if optional else " (math.inf for no limit)"

    def check(instance: object, field: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            reject(TypeError, instance, field, expected, value)
        try:
            right = float(value) > 0 or (zero and value == 0)
        except OverflowError:  # an int beyond what a clock can hold
            right = False
        if not right:
            reject(ValueError, instance, field, expected, value)

    return check


LARGEST_INT = 2**31 - 1
"""What the system's calls take for an int."""


def count(
    minimum: int, *, most: int | None = None, unit: str = "", optional: bool = False
) -> Validator:
    """A validator for whole numbers of at least ``minimum``, and at most ``most`` if given."""
    span = f"of at least {minimum}" if most is None else f"between {minimum} and {most}"
    expected = f"a whole number {unit}{span}" + (" or None" if optional else "")

    def check(instance: object, field: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            reject(TypeError, instance, field, expected, value)
        if value < minimum or (most is not None and value > most):
            reject(ValueError, instance, field, expected, value)

    return check


def a(kind: type, expected: str) -> Validator:
    """A validator for instances of ``kind``."""

    def check(instance: object, field: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            reject(TypeError, instance, field, expected, value)

    return check


def socket_options(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is not a sequence of ``(level, name, value)``."""
    expected = "a sequence of (level, name, value), two ints and an int or bytes"
    if not isinstance(value, tuple):
        reject(TypeError, instance, field, expected, value)
    for option in value:
        match option:
            case (int(), int(), int() | bytes()):
                ints = [part for part in option if isinstance(part, int)]
                if not all(-LARGEST_INT - 1 <= part <= LARGEST_INT for part in ints):
                    reject(ValueError, instance, field, f"{expected}, the ints of 32 bits", option)
            case _:
                reject(TypeError, instance, field, expected, option)


def as_tuple(value: Any) -> Any:
    """A tuple of what is iterable; validators refuse the rest by the field's name."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return tuple(value)
    return value


def grace_seconds(grace: object) -> None:
    """Refuse what is not a grace: seconds, or None."""
    if grace is None:
        return
    if isinstance(grace, bool) or not isinstance(grace, (int, float)):
        raise TypeError(f"grace must be a number of seconds or None, not {grace!r}")
    if not 0 <= grace <= sys.float_info.max and grace != math.inf:
        raise ValueError(f"grace must be at least 0 seconds, not {grace!r}")


def is_async_callable(value: object) -> bool:
    """Whether calling ``value`` gives a coroutine, as far as can be told without calling it.

    A decorator that hides an ``async def`` behind a plain wrapper is seen
    through where it used `functools.wraps`.
    """
    while isinstance(value, functools.partial):
        value = value.func
    if not callable(value):
        return False
    if not inspect.isroutine(value):
        value = type(value).__call__  # an object that is called like a function
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(inspect.unwrap(value))


def has_yield(value: object) -> bool:
    """Whether calling ``value`` runs nothing of it, because there is a ``yield`` in it."""
    return inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value)


def parameters_if_not_for(value: Any, *arguments: str) -> str | None:
    """The parameters of ``value``, if it cannot be called with that many arguments; else None.

    None, too, where that cannot be told. A decorator may take others than what it decorates.
    """
    try:
        signature = inspect.signature(value, follow_wrapped=False)
    except Exception:  # noqa: BLE001  (builtins; names in annotations that are nowhere)
        return None
    try:
        signature.bind(*arguments)
    except TypeError:
        names = signature.replace(
            parameters=[
                parameter.replace(annotation=inspect.Parameter.empty)
                for parameter in signature.parameters.values()
            ],
            return_annotation=inspect.Signature.empty,
        )
        return str(names)
    return None


def parameters_of_method_if_not_for(cls: type, name: str, *arguments: str) -> str | None:
    """The same for a method, if it is an ordinary one."""
    method = inspect.getattr_static(cls, name, None)
    if not inspect.isfunction(method):
        return None
    return parameters_if_not_for(method, "self", *arguments)


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
      handshake: for ``verify_request`` to decide. Longer than one 3 s TCP
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
      requests: requests at once, exactly: the slot is taken before the accept.
        ``Limits(requests=1)`` is the classic synchronous server.
      when_full: ``"wait"`` leaves further clients in the kernel's queue, where
        they notice nothing but the delay; ``"refuse"`` accepts and resets
        them, so that they can go elsewhere; an async function of one
        connection is given one such client at a time, to say why, for at most
        ``Timeouts.write`` seconds.
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
