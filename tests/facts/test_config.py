"""Configuration: every field, its default, what it accepts, and how it says no."""

import copy
import math
import pickle
import socket
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import Upper, Witness, no_sockets

import trioserver
from trioserver import Limits, Timeouts
from trioserver.testing import MemoryServer

HUGE = 10**400  # more than a float holds

# Building blocks --------------------------------------------------------------


async def turn_away(connection):
    """A ``when_full`` function."""


async def turn_away_nobody():
    """One that cannot be called with a connection."""


async def turn_away_in_turns(connection):
    """One that is an async generator."""
    yield


def turn_away_at_once(connection):
    """One of the wrong colour."""


class TurnAway:
    """A ``when_full`` function that is an object."""

    async def __call__(self, connection): ...


def tcp(**fields):
    """A TCP server with these fields."""
    needed = {"server_address": ("localhost", 0), "RequestHandlerClass": Upper}
    return trioserver.TCPServer(**{**needed, **fields})


def unix(**fields):
    """A Unix server with these fields."""
    needed = {"server_address": "/run/x", "RequestHandlerClass": Upper}
    return trioserver.UnixStreamServer(**{**needed, **fields})


Make = Callable[..., Any]
POSITIVE = ["handshake", "idle", "line", "write", "request"]
SECONDS = [*POSITIVE, "linger", "shutdown", "cleanup"]
COUNTS = ["requests", "line", "read", "per_client"]
FLAGS = ["propagate_errors", "allow_reuse_address", "allow_reuse_port"]
SERVERS = (tcp, unix)
SOCKET = "server_address"


def row(makers, names, values, *more):
    """Values of fields, and what comes of them."""
    return makers, names, values, *more


def each(rows):
    """A set of parameters for each maker, field and value."""
    return [
        pytest.param(maker, name, value, *more, id=f"{sentence}-{maker.__name__}-{name}-{number}")
        for sentence, (makers, names, values, *more) in rows.items()
        for maker in (makers if isinstance(makers, tuple) else (makers,))
        for name in (names if isinstance(names, list) else [names])
        for number, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    each(
        {
            "TO-07: a number of seconds; `math.inf` is no limit": row(
                Timeouts, SECONDS, [1, 0.001, 86_400, 10**9, 1e300, math.inf]
            ),
            "TO-07: some may be zero": row(Timeouts, ["linger", "shutdown", "cleanup"], [0, 0.0]),
            "TO-07: or None": row(SERVERS, "timeout", [None, 0, 0.5, 10**9, math.inf]),
            "a whole number": row(Limits, [*COUNTS, "linger"], [1, 1024, 2**31, 10**30]),
            "no limit": row(Limits, "per_client", [None]),
            "none at all": row(Limits, "linger", [0]),
            "what listen(2) takes": row(
                SERVERS, "request_queue_size", [None, 0, 1, 5, 65_535, 2**31 - 1]
            ),
            "two words, or any async callable": row(
                Limits, "when_full", ["wait", "refuse", turn_away, TurnAway(), partial(turn_away)]
            ),
            "UX-06: time-outs": row(SERVERS, "timeouts", [Timeouts(), Timeouts(idle=1)]),
            "UX-06: limits": row(SERVERS, "limits", [Limits(), Limits(requests=1)]),
            "UX-06: a flag": row(SERVERS, FLAGS, [True, False]),
            "UX-06: a family": row(tcp, "address_family", [None, socket.AF_INET, socket.AF_INET6]),
            "UX-10: a mode": row(unix, "mode", [None, 0, 0o600, 0o777]),
            "UX-10: a host and a port": row(
                tcp, SOCKET, [("", 0), (None, 80), ("::1", 65_535), ("localhost", "http")]
            ),
            "UX-10: an IPv6 address": row(
                tcp, SOCKET, [("::1", 0, 0, 0), ["", 80, 2**20 - 1, 2**32 - 1]]
            ),
            "UX-10: a path": row(
                unix, SOCKET, ["x", b"x", Path("x"), b"\xff", "\udcff", "x" * 107]
            ),
            "UX-10: an abstract name": row(unix, SOCKET, [b"\0name", "\0", b"\0" + 107 * b"x"]),
        }
    ),
)
def test_field(make, name, value):
    """Every value that makes sense is kept as it was given."""
    assert getattr(make(**{name: value}), name) == value


NO_NUMBERS = [True, False, "5", b"5", 1j, [1], Decimal(1)]
NO_COUNTS = [True, False, 1.0, math.inf, math.nan, "5", b"5", [1]]
COUNT = "a whole number"
DURATION = "a number of seconds"


def wrong_value(makers, names, values, says=""):
    """Values of the right type, and what their `ValueError` says."""
    return row(makers, names, values, ValueError, says)


def wrong_type(makers, names, values, says=""):
    """Values that make a `TypeError`, and what it says."""
    return row(makers, names, values, TypeError, says)


@pytest.mark.parametrize(
    ("make", "name", "value", "kind", "says"),
    each(
        {
            "TO-07: zero is no duration": wrong_value(Timeouts, POSITIVE, [0, 0.0, -0.0], DURATION),
            "TO-07: nor is what no clock shows": wrong_value(
                Timeouts, SECONDS, [-1, -0.001, math.nan, -math.inf, HUGE, -HUGE], DURATION
            ),
            "TO-07: anywhere": wrong_value(
                SERVERS, "timeout", [-1, math.nan, -math.inf, HUGE], DURATION
            ),
            "TO-07: what is no number": wrong_type(Timeouts, SECONDS, NO_NUMBERS, DURATION),
            "TO-07: is none anywhere": wrong_type(SERVERS, "timeout", NO_NUMBERS, DURATION),
            "TO-07: whoever writes None for no limit": wrong_type(
                Timeouts, SECONDS, [None], "math.inf for no limit"
            ),
            "too small a count": wrong_value(Limits, COUNTS, [0, -1, -HUGE], COUNT),
            "less than nothing": wrong_value(Limits, "linger", [-1], COUNT),
            "what listen(2) does not take": wrong_value(
                SERVERS, "request_queue_size", [-1, 2**31, HUGE], COUNT
            ),
            "no limit where there must be one": wrong_type(
                Limits, ["requests", "line", "read", "linger"], [None], COUNT
            ),
            "what is no whole number": wrong_type(Limits, [*COUNTS, "linger"], NO_COUNTS, COUNT),
            "for listen(2), too": wrong_type(
                SERVERS, "request_queue_size", [True, False, 5.0, math.inf, "5"], COUNT
            ),
            "BP-02: another word": wrong_value(
                Limits, "when_full", ["", "reject", "Wait"], "'wait', 'refuse' or an async function"
            ),
            "neither word nor async function": wrong_type(
                Limits,
                "when_full",
                [None, 503, turn_away_at_once, TurnAway, b"wait"],
                "async function",
            ),
            "a function that takes no connection": wrong_type(
                Limits, "when_full", [turn_away_nobody], "of one connection"
            ),
            "a function that yields": wrong_type(
                Limits, "when_full", [turn_away_in_turns], "without a `yield`"
            ),
            "no time-outs": wrong_type(SERVERS, "timeouts", [None, {}, 5, Limits(), Timeouts]),
            "no limits": wrong_type(SERVERS, "limits", [None, {}, 5, Timeouts(), Limits]),
            "no flag": wrong_type(SERVERS, FLAGS, [None, 0, 1, "yes"]),
            "no observers": wrong_type(
                SERVERS, "observers", [None, 5, Witness, "observer", [1j], [Witness], Witness()]
            ),
            "no options": wrong_type(
                SERVERS,
                "socket_options",
                [None, 5, "ab", b"ab", [(1, 2)], [(1, 2, "3")], [(1, 2, 3, 4)]],
            ),
            "UX-06: options beyond what a socket takes": wrong_value(
                tcp,
                "socket_options",
                [[(2**31, 1, 1)], [(1, -(2**31) - 1, 1)], [(1, 1, 2**31)]],
                "the ints of 32 bits, not (",
            ),
            "no mode": wrong_type(unix, "mode", ["600", 6.0, True, [6]]),
            "UX-06: more than a mode": wrong_value(unix, "mode", [-1, 0o1000, HUGE]),
            "UX-06: no family of IP": wrong_value(
                tcp, "address_family", [socket.AF_UNIX, 0, -1, "AF_INET", math.nan]
            ),
            "UX-06: the family of a Unix server is a constant": wrong_value(
                unix, "address_family", [None, socket.AF_INET]
            ),
            "no address": wrong_type(
                tcp, SOCKET, [None, 80, "localhost:80", b"x", 1j, {"host": "x"}]
            ),
            "no path": wrong_type(unix, SOCKET, [None, 80, ("localhost", 80), 1j, []]),
            "NW-07: not a host and a port": wrong_value(
                tcp,
                SOCKET,
                [(), [], ("localhost",), ("localhost", 80, 0), (b"localhost", 80), (1, 2)],
            ),
            "NW-07: no port": wrong_value(
                tcp,
                SOCKET,
                [("x", -1), ("x", 65_536), ("x", HUGE), ("x", None), ("x", True), ("x", 1.5)],
            ),
            "NW-07: no IPv6 address": wrong_value(
                tcp,
                SOCKET,
                [("::1", 1, -1, 0), ("::1", 1, 2**20, 0), ("::1", 1, 0, 2**32), ("::1", 1, "0", 0)],
            ),
            "UX-06: the host as a URL has it": wrong_value(
                tcp,
                SOCKET,
                [("[::1]", 80), ("[::1", 80), ("[::1]:80", 80)],
                "whose host is without the brackets of a URL, '::1', not",
            ),
            "UX-06: with a zone": wrong_value(
                tcp,
                SOCKET,
                [("[fe80::1%lo]", 80)],
                "whose host is without the brackets of a URL, 'fe80::1%lo', not",
            ),
            "UX-06: a path that no file system can hold": wrong_value(
                unix, SOCKET, ["", b"", "a\0b", "\ud800"]
            ),
            "UX-06: a path too long": wrong_value(
                unix, SOCKET, ["x" * 108, b"x" * 200, Path("x" * 108), b"\0" + 108 * b"x"]
            ),
        }
    ),
)
def test_field_that_is_refused(make, name, value, kind, says):
    """Every other one is an error that names the field, and says what it takes."""
    with pytest.raises(kind) as caught:
        make(**{name: value})
    message = str(caught.value)
    assert type(caught.value) is kind
    owner = make.__name__ if isinstance(make, type) else type(make()).__name__
    assert f"{owner}.{name} must be" in message
    assert says in message
    if says in {DURATION, COUNT}:
        assert repr(value) in message


def test_family_of_an_address_at_any_time():
    """The family cannot be another one than its address's: four parts are IPv6's, a path Unix's."""
    with pytest.raises(ValueError, match=r"a pair .*, as address_family is AF_INET"):
        tcp(server_address=("::1", 0, 0, 0), address_family=socket.AF_INET)
    server = tcp(server_address=("::1", 0, 0, 0))
    with pytest.raises(ValueError, match="address_family must be None or socket"):
        server.address_family = socket.AF_INET
    with pytest.raises(ValueError, match="address_family is AF_INET"):
        server.evolve(address_family=socket.AF_INET)
    server.address_family = socket.AF_INET6
    assert unix().address_family == socket.AF_UNIX
    with pytest.raises(ValueError, match="address_family"):
        unix().address_family = socket.AF_INET


def test_observers_are_kept_as_a_tuple():
    """Any iterable of observers will do, and a later change of it changes nothing."""
    witness = Witness()
    given = [witness]
    server = tcp(observers=given)
    given.clear()
    assert server.observers == (witness,)


@pytest.mark.parametrize("value", [(), [], [(1, 2, 3)], [(1, 2, b"\1")], iter([(1, 2, 3)])])
def test_socket_options(value):
    """Options are triples, in any iterable."""
    options = tcp(socket_options=value).socket_options
    assert isinstance(options, tuple)
    assert all(len(option) == 3 for option in options)


def test_sockets_as_an_address():
    """LC-11: a bound socket, or a sequence of them, is an address, but not beside another."""
    with socket.socket() as one, socket.socket() as other:
        for address in (one, [one], (one, other)):
            assert tcp(server_address=address).server_address == address
        with pytest.raises(ValueError, match=r"TCPServer\.server_address must be"):
            tcp(server_address=[one, ("localhost", 0)])


def test_no_such_field():
    """A misspelt field, or one of another server, is a `TypeError` that names it."""
    for make in (tcp, unix, Limits, Timeouts):
        with pytest.raises(TypeError, match="request_que_size"):
            make(request_que_size=5)
    with pytest.raises(TypeError, match="mode"):
        tcp(mode=0o600)


# Defaults ---------------------------------------------------------------------

DEFAULTS = {
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


def test_defaults():
    """The defaults are the documented ones, and these are all the fields there are."""
    seconds = {"handshake": 10, "idle": 300, "line": 60, "write": 30, "request": math.inf}
    assert attrs.asdict(Timeouts()) == {**seconds, "linger": 2, "shutdown": 15, "cleanup": 5}
    numbers = {"requests": 1024, "line": 65_536, "read": 16 * 1024 * 1024, "linger": 1024 * 1024}
    assert attrs.asdict(Limits()) == {**numbers, "when_full": "wait", "per_client": None}
    for server, more in (
        (tcp(), {"address_family": None}),
        (unix(), {"address_family": socket.AF_UNIX, "mode": None}),
    ):
        defaults = DEFAULTS | more
        assert {name: getattr(server, name) for name in defaults} == defaults
        fields = {field.alias for field in attrs.fields(type(server))}
        assert fields == {*defaults, "server_address", "RequestHandlerClass"} - {"socket_type"}


# Values -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [Timeouts(line=7), Limits(line=7)])
def test_configuration_is_a_value(value):
    """It is equal to its copies, frozen, shown, made by keywords, and evolves validated."""
    for twin in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):  # noqa: S301
        assert twin == value
        assert hash(twin) == hash(value)
    kind = type(value)
    assert value != kind()
    assert "line=7" in repr(value)
    for name in attrs.asdict(value):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, name, 1)
    with pytest.raises(TypeError):
        kind(1)
    assert attrs.evolve(kind(), line=7) == value
    for wrong, error in ((0, ValueError), (None, TypeError)):
        with pytest.raises(error, match=rf"{kind.__name__}\.line must be"):
            attrs.evolve(kind(), line=wrong)


def test_building_opens_nothing():
    """LC-01: building, showing and copying a server opens no socket."""
    with no_sockets():
        for server in (tcp(), unix(), MemoryServer(("memory", 1), Upper)):
            repr(server)
            server.evolve(limits=Limits(requests=1))
            assert server.sockets == ()


# Arguments of methods ---------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (None, [None, 0, 0.5, 10**9, math.inf]),
        (ValueError, [-1, math.nan, -math.inf]),
        (TypeError, [True, "5", []]),
    ],
)
def test_grace(kind, values):
    """Seconds, none at all, or the server's own; what makes no sense is refused by its name."""
    for value in values:
        if kind is None:
            tcp().shutdown(value)
        else:
            with pytest.raises(kind, match="grace must be"):
                tcp().shutdown(value)


@pytest.mark.parametrize("interval", [0, -1, math.nan, None, "1"])
async def test_poll_interval_of_a_wrong_kind(interval):
    """An interval that makes no sense is refused by its name, before anything is bound."""
    kind = ValueError if isinstance(interval, int | float) else TypeError
    with pytest.raises(kind, match="poll_interval must be"):
        await tcp().serve_forever(interval)
