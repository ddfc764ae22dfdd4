"""Configuration: every field, its default, what it accepts, and how it says no."""

from __future__ import annotations

import copy
import math
import pickle
import re
import socket
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import Upper, Witness

import trioserver
from trioserver.testing import MemoryServer

HUGE = 10**400  # more than a float holds
SECONDS = "a number of seconds"
WHOLE = "a whole number"
BOOL = "True or False"

# Building blocks --------------------------------------------------------------


async def turn_away(connection: trioserver.Connection) -> None:
    """A ``when_full`` function."""


def turn_away_at_once(connection: trioserver.Connection) -> None:
    """One of the wrong colour."""


class TurnAway:
    """A ``when_full`` function that is an object."""

    async def __call__(self, connection: trioserver.Connection) -> None: ...


def tcp(**fields: Any) -> trioserver.TCPServer:
    """A TCP server with these fields."""
    return trioserver.TCPServer(**{"server_address": ("localhost", 0), **fields}, **needed(fields))


def unix(**fields: Any) -> trioserver.UnixStreamServer:
    """A Unix server with these fields."""
    return trioserver.UnixStreamServer(**{"server_address": "/run/x", **fields}, **needed(fields))


def needed(fields: dict[str, Any]) -> dict[str, Any]:
    """The handler class, unless it is given."""
    return {} if "RequestHandlerClass" in fields else {"RequestHandlerClass": Upper}


Make = Callable[..., Any]
Case = tuple[Make, str, Any]


def cases(*rows: tuple[Make | tuple[Make, ...], str | list[str], list[Any]]) -> list[Any]:
    """One parameter set for each maker, field and value."""
    return [
        pytest.param(maker, name, value, id=f"{maker.__name__}-{name}-{value!r:.30}-{number}")
        for number, (makers, names, values) in enumerate(rows)
        for maker in (makers if isinstance(makers, tuple) else (makers,))
        for name in (names if isinstance(names, list) else [names])
        for value in values
    ]


def refused(kind: type[Exception], make: Make, name: str, value: Any) -> str:
    """The message with which ``value`` is refused; it must name the field and the value."""
    with pytest.raises(kind) as caught:
        make(**{name: value})
    message = str(caught.value)
    assert type(caught.value) is kind
    owner = make.__name__ if isinstance(make, type) else type(make()).__name__
    assert f"{owner}.{name} must be" in message
    return message


Limits, Timeouts = trioserver.Limits, trioserver.Timeouts
POSITIVE = ["handshake", "idle", "line", "write", "request"]
ZERO_TOO = ["linger", "shutdown", "cleanup"]
FLAGS = ["allow_reuse_address", "allow_reuse_port"]
SERVERS = (tcp, unix)

# Durations --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name", "value"),
    cases(
        (Timeouts, POSITIVE + ZERO_TOO, [1, 0.001, 86_400, 10**9, 1e300, math.inf]),
        (Timeouts, ZERO_TOO, [0, 0.0]),
        (SERVERS, "timeout", [None, 0, 0.5, 10**9, math.inf]),
    ),
)
def test_seconds(make: Make, name: str, value: Any) -> None:
    """TO-07: numbers of seconds are taken as they are; ``math.inf`` is no limit."""
    assert getattr(make(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("make", "name", "value"),
    cases(
        (Timeouts, POSITIVE, [0, 0.0, -0.0]),
        (Timeouts, POSITIVE + ZERO_TOO, [-1, -0.001, math.nan, -math.inf, HUGE, -HUGE]),
        (SERVERS, "timeout", [-1, math.nan, -math.inf, HUGE]),
    ),
)
def test_seconds_of_a_wrong_value(make: Make, name: str, value: Any) -> None:
    """TO-07: what is no duration is a `ValueError` that says what one is."""
    message = refused(ValueError, make, name, value)
    assert SECONDS in message
    assert repr(value) in message


@pytest.mark.parametrize(
    ("make", "name", "value"),
    cases(
        (Timeouts, POSITIVE + ZERO_TOO, [None, True, False, "5", b"5", 1j, [1], Decimal(1)]),
        (SERVERS, "timeout", [True, False, "5", b"5", 1j, [1], Decimal(1)]),
    ),
)
def test_seconds_of_a_wrong_type(make: Make, name: str, value: Any) -> None:
    """TO-07: what is no number is a `TypeError` that says what was expected."""
    message = refused(TypeError, make, name, value)
    assert SECONDS in message
    assert repr(value) in message


def test_seconds_say_how_to_have_no_limit() -> None:
    """Whoever writes None for "no limit" is told about ``math.inf``."""
    with pytest.raises(TypeError, match=r"math\.inf for no limit"):
        Timeouts(idle=None)


# Counts -----------------------------------------------------------------------

COUNTS = ["requests", "line", "read"]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    cases(
        (Limits, [*COUNTS, "per_client", "linger"], [1, 1024, 2**31, 10**30]),
        (Limits, "per_client", [None]),
        (Limits, "linger", [0]),
        (SERVERS, "request_queue_size", [None, 0, 1, 5, 65_535, 2**31 - 1]),
    ),
)
def test_count(make: Make, name: str, value: Any) -> None:
    """Whole numbers are taken as they are."""
    assert getattr(make(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("make", "name", "value"),
    cases(
        (Limits, [*COUNTS, "per_client"], [0, -1, -HUGE]),
        (Limits, "linger", [-1]),
        # What listen(2) takes is an int of C.
        (SERVERS, "request_queue_size", [-1, 2**31, HUGE]),
    ),
)
def test_count_of_a_wrong_value(make: Make, name: str, value: Any) -> None:
    """Too small a count, or one that the system cannot hold, is refused when it is configured."""
    assert WHOLE in refused(ValueError, make, name, value)


@pytest.mark.parametrize(
    ("make", "name", "value"),
    cases(
        (Limits, [*COUNTS, "linger"], [None]),
        (
            Limits,
            [*COUNTS, "per_client", "linger"],
            [True, False, 1.0, math.inf, math.nan, "5", b"5", [1]],
        ),
        (SERVERS, "request_queue_size", [True, False, 5.0, math.inf, "5"]),
    ),
)
def test_count_of_a_wrong_type(make: Make, name: str, value: Any) -> None:
    """What is no whole number is refused, ``inf`` and booleans included."""
    message = refused(TypeError, make, name, value)
    assert WHOLE in message
    assert repr(value) in message


@pytest.mark.parametrize("value", ["wait", "refuse", turn_away, TurnAway(), partial(turn_away)])
def test_when_full(value: Any) -> None:
    """Two words, or any async callable."""
    assert Limits(when_full=value).when_full is value


@pytest.mark.parametrize("value", ["", "reject", "Wait"])
def test_when_full_of_a_wrong_value(value: str) -> None:
    """BP-02: another word is refused, and the right ones are given."""
    message = refused(ValueError, Limits, "when_full", value)
    assert "'wait', 'refuse' or an async function" in message


@pytest.mark.parametrize("value", [None, 503, turn_away_at_once, TurnAway, b"wait"])
def test_when_full_of_a_wrong_type(value: Any) -> None:
    """A function of the wrong colour is refused, and so is everything else."""
    assert "async function" in refused(TypeError, Limits, "when_full", value)


def test_when_full_that_could_not_be_called() -> None:
    """It is called when the server is full: too late to find that out."""

    async def of_nothing() -> None: ...

    async def yields(connection: Any) -> Any:
        yield

    assert "of one connection" in refused(TypeError, Limits, "when_full", of_nothing)
    assert "without a `yield`" in refused(TypeError, Limits, "when_full", yields)


# The rest of a server's fields ------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name", "value"),
    cases(
        (SERVERS, "timeouts", [Timeouts(), Timeouts(idle=1)]),
        (SERVERS, "limits", [Limits(), Limits(requests=1)]),
        (SERVERS, ["propagate_errors", *FLAGS], [True, False]),
        (tcp, "address_family", [None, socket.AF_INET, socket.AF_INET6]),
        (unix, "mode", [None, 0, 0o600, 0o777]),
        (tcp, "server_address", [("", 0), (None, 80), ("::1", 65_535), ("localhost", "http")]),
        (tcp, "server_address", [("::1", 0, 0, 0), ["", 80, 2**20 - 1, 2**32 - 1]]),
        (
            unix,
            "server_address",
            [
                "x",
                b"x",
                Path("x"),
                b"\xff",
                "\udcff",
                b"\0name",
                "\0",
                "x" * 107,
                b"\0" + 107 * b"x",
            ],
        ),
    ),
)
def test_field(make: Make, name: str, value: Any) -> None:
    """UX-06, UX-10: every value that makes sense is kept as it was given."""
    assert getattr(make(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("make", "name", "value"),
    cases(
        (SERVERS, "timeouts", [None, {}, 5, Limits(), Timeouts]),
        (SERVERS, "limits", [None, {}, 5, Timeouts(), Limits]),
        (SERVERS, ["propagate_errors", *FLAGS], [None, 0, 1, "yes"]),
        (SERVERS, "observers", [None, 5, Witness, "observer", [1j], [Witness], Witness()]),
        (
            SERVERS,
            "socket_options",
            [None, 5, "ab", b"ab", [(1, 2)], [(1, 2, "3")], [(1, 2, 3, 4)]],
        ),
        (unix, "mode", ["600", 6.0, True, [6]]),
        (tcp, "server_address", [None, 80, "localhost:80", b"x", 1j, {"host": "x"}]),
        (unix, "server_address", [None, 80, ("localhost", 80), 1j, []]),
    ),
)
def test_field_of_a_wrong_type(make: Make, name: str, value: Any) -> None:
    """Every wrong type is a `TypeError` that names the field and what it takes."""
    refused(TypeError, make, name, value)


@pytest.mark.parametrize(
    ("make", "name", "value"),
    cases(
        (tcp, "address_family", [socket.AF_UNIX, 0, -1, "AF_INET", math.nan]),
        (unix, "mode", [-1, 0o1000, HUGE]),
        (
            tcp,
            "server_address",
            [(), [], ("localhost",), ("localhost", 80, 0), (b"localhost", 80), (1, 2)],
        ),
        (
            tcp,
            "server_address",
            [("x", -1), ("x", 65_536), ("x", HUGE), ("x", None), ("x", True), ("x", 1.5)],
        ),
        (
            tcp,
            "server_address",
            [("::1", 1, -1, 0), ("::1", 1, 2**20, 0), ("::1", 1, 0, 2**32), ("::1", 1, "0", 0)],
        ),
        (
            unix,
            "server_address",
            ["", b"", "a\0b", "x" * 108, b"x" * 200, Path("x" * 108), b"\0" + 108 * b"x"],
        ),
    ),
)
def test_field_of_a_wrong_value(make: Make, name: str, value: Any) -> None:
    """UX-06, NW-07: a wrong value is a `ValueError` that names the field and what it takes."""
    refused(ValueError, make, name, value)


@pytest.mark.parametrize(
    ("host", "bare"),
    [("[::1]", "::1"), ("[::1", "::1"), ("[fe80::1%lo]", "fe80::1%lo"), ("[::1]:80", "::1")],
)
def test_host_in_the_brackets_of_urls(host: str, bare: str) -> None:
    """UX-06: the host as a URL has it is refused when the server is built, and told what to do."""
    message = refused(ValueError, tcp, "server_address", (host, 80))
    assert f"whose host is without the brackets of a URL, {bare!r}, not" in message


def test_ipv6_address_and_another_family() -> None:
    """An address of four parts is IPv6's, so the family cannot be another one, at any time."""
    message = refused(
        ValueError,
        partial(tcp, address_family=socket.AF_INET),
        "server_address",
        ("::1", 0, 0, 0),
    )
    assert "a pair (host, port), as address_family is AF_INET" in message
    server = tcp(server_address=("::1", 0, 0, 0))
    with pytest.raises(ValueError, match="address_family must be None or socket"):
        server.address_family = socket.AF_INET
    with pytest.raises(ValueError, match="address_family is AF_INET"):
        server.evolve(address_family=socket.AF_INET)
    server.address_family = socket.AF_INET6


def test_path_that_cannot_be_encoded() -> None:
    """UX-06: a path that no file system can hold is refused by the field's name."""
    refused(ValueError, unix, "server_address", "\ud800")


def test_observers_are_kept_as_a_tuple() -> None:
    """Any iterable of observers will do, and a later change of it changes nothing."""
    witness = Witness()
    given = [witness]
    server = tcp(observers=given)
    given.clear()
    assert server.observers == (witness,)


@pytest.mark.parametrize("option", [(2**31, 1, 1), (1, -(2**31) - 1, 1), (1, 1, 2**31)])
def test_socket_option_beyond_what_a_socket_takes(option: Any) -> None:
    """UX-06: it is refused when the server is built, instead of by the socket."""
    message = refused(ValueError, tcp, "socket_options", [option])
    assert f"the ints of 32 bits, not {option!r}" in message


@pytest.mark.parametrize("value", [(), [], [(1, 2, 3)], [(1, 2, b"\1")], iter([(1, 2, 3)])])
def test_socket_options(value: Any) -> None:
    """Options are triples, in any iterable."""
    options = tcp(socket_options=value).socket_options
    assert isinstance(options, tuple)
    assert all(len(option) == 3 for option in options)


def test_sockets_as_an_address() -> None:
    """LC-11: a bound socket, or a sequence of them, is an address; building touches none."""
    with socket.socket() as one, socket.socket() as other:
        for address in (one, [one], (one, other)):
            assert tcp(server_address=address).server_address == address


def test_sockets_mixed_with_something_else() -> None:
    """LC-11: sockets and addresses do not mix."""
    with socket.socket() as one:
        refused(ValueError, tcp, "server_address", [one, ("localhost", 0)])


def test_unix_server_has_one_family() -> None:
    """The family of a Unix server is a constant."""
    assert unix().address_family == socket.AF_UNIX
    for family in (None, socket.AF_INET):
        refused(ValueError, unix, "address_family", family)
    with pytest.raises(ValueError, match="address_family"):
        unix().address_family = socket.AF_INET


def test_no_such_field() -> None:
    """A misspelt field is a `TypeError` that names it."""
    for make in (tcp, unix, Limits, Timeouts):
        with pytest.raises(TypeError, match="request_que_size"):
            make(request_que_size=5)


def test_mode_is_for_unix_servers() -> None:
    """A TCP server has no ``mode``."""
    with pytest.raises(TypeError, match="mode"):
        tcp(mode=0o600)


@pytest.mark.parametrize("arguments", [(), (("localhost", 0),)])
def test_missing_arguments(arguments: Any) -> None:
    """Both positional arguments are needed; the message names the one that lacks."""
    with pytest.raises(TypeError, match="RequestHandlerClass"):
        trioserver.TCPServer(*arguments)


# Defaults ---------------------------------------------------------------------


def test_timeouts_by_default() -> None:
    """The defaults are the documented ones."""
    assert attrs.asdict(Timeouts()) == {
        "handshake": 10,
        "idle": 300,
        "line": 60,
        "write": 30,
        "request": math.inf,
        "linger": 2,
        "shutdown": 15,
        "cleanup": 5,
    }


def test_limits_by_default() -> None:
    """The defaults are the documented ones."""
    assert attrs.asdict(Limits()) == {
        "requests": 1024,
        "when_full": "wait",
        "per_client": None,
        "line": 65_536,
        "read": 16 * 1024 * 1024,
        "linger": 1024 * 1024,
    }


COMMON = {
    "timeout": None,
    "timeouts": Timeouts(),
    "limits": Limits(),
    "propagate_errors": False,
    "observers": (),
    "socket_options": (),
    "allow_reuse_address": True,
    "allow_reuse_port": False,
    "request_queue_size": None,
    "socket_type": socket.SOCK_STREAM,
}


@pytest.mark.parametrize(
    ("make", "defaults"),
    [
        (tcp, {**COMMON, "address_family": None}),
        (unix, {**COMMON, "address_family": socket.AF_UNIX, "mode": None}),
    ],
)
def test_server_by_default(make: Make, defaults: dict[str, Any]) -> None:
    """The defaults are the documented ones, and these are all the fields there are."""
    server = make()
    assert {name: getattr(server, name) for name in defaults} == defaults
    fields = {field.alias for field in attrs.fields(type(server))}
    assert fields == {*defaults, "server_address", "RequestHandlerClass"} - {"socket_type"}


# Values -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [Timeouts(idle=1), Limits(requests=1)])
def test_configuration_is_a_value(value: Any) -> None:
    """Equal configurations are equal, hash alike, and survive copying and pickling."""
    for twin in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):  # noqa: S301
        assert twin == value
        assert hash(twin) == hash(value)
    assert value != type(value)()


@pytest.mark.parametrize("value", [Timeouts(), Limits()])
def test_configuration_is_frozen(value: Any) -> None:
    """Nothing changes behind a server's back."""
    for name in attrs.asdict(value):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, name, 1)


@pytest.mark.parametrize("kind", [Timeouts, Limits])
def test_configuration_takes_keywords_only(kind: Make) -> None:
    """Nobody has to remember an order."""
    with pytest.raises(TypeError):
        kind(1)


def test_configuration_is_shown() -> None:
    """The repr shows every field."""
    assert "idle=7" in repr(Timeouts(idle=7))
    assert "requests=7" in repr(Limits(requests=7))


def test_configuration_evolves_validated() -> None:
    """A changed copy is validated like a new one."""
    assert attrs.evolve(Timeouts(), idle=1) == Timeouts(idle=1)
    with pytest.raises(ValueError, match=re.escape("Timeouts.idle must be")):
        attrs.evolve(Timeouts(), idle=0)
    with pytest.raises(TypeError, match=re.escape("Limits.line must be")):
        attrs.evolve(Limits(), line=None)


def test_building_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """LC-01: building, showing and copying a server opens no socket."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", type("NoSocket", (), {"__init__": refuse}))
    for server in (tcp(), unix(), MemoryServer(("memory", 1), Upper)):
        repr(server)
        server.evolve(limits=Limits(requests=1))
        assert server.sockets == ()


# Arguments of methods ---------------------------------------------------------


@pytest.mark.parametrize(
    ("grace", "kind"),
    [
        (-1, ValueError),
        (math.nan, ValueError),
        (-math.inf, ValueError),
        (True, TypeError),
        ("5", TypeError),
        ([], TypeError),
    ],
)
def test_grace_of_a_wrong_kind(grace: Any, kind: type[Exception]) -> None:
    """A grace that makes no sense is refused by its name."""
    with pytest.raises(kind, match="grace must be"):
        tcp().shutdown(grace)


@pytest.mark.parametrize("grace", [None, 0, 0.5, 10**9, math.inf])
def test_grace(grace: Any) -> None:
    """Seconds, none at all, or the server's own."""
    tcp().shutdown(grace)


@pytest.mark.parametrize(
    ("interval", "kind"),
    [
        (0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (None, TypeError),
        ("1", TypeError),
    ],
)
async def test_poll_interval_of_a_wrong_kind(interval: Any, kind: type[Exception]) -> None:
    """An interval that makes no sense is refused by its name, before anything is bound."""
    with pytest.raises(kind, match="poll_interval must be"):
        await tcp().serve_forever(interval)
