"""Configuration: every field, what it accepts, and how it says no.

That its default is the documented one is seen to in ``tests/docs``.
"""

import copy
import pickle
import socket
from decimal import Decimal
from functools import partial
from math import inf, nan
from pathlib import Path

import attrs
import pytest
from support import Upper, Witness, no_sockets

import trioserver
from trioserver import Limits, Timeouts
from trioserver.testing import MemoryServer

HUGE = 10**400  # more than a float holds


async def turn_away(connection):
    """A ``when_full`` function."""


async def turn_away_nobody():
    """One that cannot be called with a connection."""


async def turn_away_in_turns(connection):
    """One that is an async generator."""
    yield


class TurnAway:
    """One that is an object."""

    async def __call__(self, connection): ...


tcp = partial(trioserver.TCPServer, server_address=("localhost", 0), RequestHandlerClass=Upper)
unix = partial(trioserver.UnixStreamServer, server_address="/run/x", RequestHandlerClass=Upper)
POSITIVE = ["handshake", "idle", "line", "write", "request"]
SECONDS = [*POSITIVE, "linger", "shutdown", "cleanup"]
COUNTS = ["requests", "line", "read", "per_client"]
FLAGS = ["propagate_errors", "allow_reuse_address", "allow_reuse_port"]
ADDRESS, FAMILY, QUEUE = "server_address", "address_family", "request_queue_size"
SERVERS = (tcp, unix)


def owner(maker):
    """The name of the class whose objects that makes."""
    return getattr(maker, "func", maker).__name__


def each(rows, *kind):
    """Parameters for each sentence, maker and field: the values, and what comes of them."""
    return [
        pytest.param(maker, name, *more, *kind, id=f"{sentence}-{owner(maker)}-{name}")
        for sentence, (makers, names, *more) in rows.items()
        for maker in (makers if isinstance(makers, tuple) else (makers,))
        for name in (names if isinstance(names, list) else [names])
    ]


ACCEPTED = {
    "TO-07: a number of seconds; `math.inf` is no limit": (Timeouts, SECONDS, [1, 0.001, 1e9, inf]),
    "TO-07: some may be zero": (Timeouts, ["linger", "shutdown", "cleanup"], [0, 0.0]),
    "TO-07: or None": (SERVERS, "timeout", [None, 0, 0.5, inf]),
    "a whole number": (Limits, [*COUNTS, "linger"], [1, 10**30]),
    "no limit": (Limits, "per_client", [None]),
    "none at all": (Limits, "linger", [0]),
    "what listen(2) takes": (SERVERS, QUEUE, [None, 0, 1, 2**31 - 1]),
    "two words": (Limits, "when_full", ["wait", "refuse"]),
    "or any async callable": (Limits, "when_full", [turn_away, TurnAway(), partial(turn_away)]),
    "UX-06: time-outs": (SERVERS, "timeouts", [Timeouts(idle=1)]),
    "UX-06: limits": (SERVERS, "limits", [Limits(requests=1)]),
    "UX-06: a flag": (SERVERS, FLAGS, [True, False]),
    "UX-06: a family": (tcp, FAMILY, [None, socket.AF_INET, socket.AF_INET6]),
    "UX-10: a mode": (unix, "mode", [None, 0, 0o777]),
    "UX-10: a host and a port": (tcp, ADDRESS, [("", 0), (None, 80), ["::1", 65_535]]),
    "UX-10: a service's name": (tcp, ADDRESS, [("localhost", "http")]),
    "UX-10: an IPv6 address": (tcp, ADDRESS, [("::1", 0, 0, 0), ["", 80, 2**20 - 1, 2**32 - 1]]),
    "UX-10: a path": (unix, ADDRESS, ["x", b"x", Path("x"), b"\xff", "\udcff", "x" * 107]),
    "UX-10: an abstract name": (unix, ADDRESS, [b"\0name", "\0", b"\0" + 107 * b"x"]),
}


@pytest.mark.parametrize(("make", "name", "values"), each(ACCEPTED))
def test_field(make, name, values):
    """TO-07, UX-06, UX-10: every value that makes sense is kept as it was given."""
    for value in values:
        assert getattr(make(**{name: value}), name) == value


NO_NUMBERS = [True, False, "5", b"5", 1j, [1], Decimal(1)]
NO_COUNTS = [True, False, 1.0, inf, nan, "5", b"5", [1]]
COUNT, DURATION = "a whole number", "a number of seconds"
WORDS = "'wait', 'refuse' or an async function"
INTS = "the ints of 32 bits, not ("
NO_ADDRESS = [(), [], ("localhost",), ("x", 1, 0), ["x", 1, 1], (b"x", 80), (1, 2), [object()]]
NO_IPV6 = [("::1", 1, -1, 0), ("::1", 1, 2**20, 0), ("::1", 1, 0, 2**32), ("::1", 1, "0", 0)]
BRACKETS = "whose host is without the brackets of a URL, '{}', not"
TOO_LONG = ["x" * 108, b"x" * 108, Path("x" * 108), "/" + "ä" * 106]
TOO_LARGE = [[(2**31, 1, 1)], [(1, -(2**31) - 1, 1)], [(1, 1, 2**31)]]
OF_LISTEN = [True, False, 5.0, inf, "5"]

VALUES = {
    "TO-07: zero is no duration": (Timeouts, POSITIVE, [0, 0.0, -0.0], DURATION),
    "TO-07: nor is what no clock shows": (Timeouts, SECONDS, [-1, nan, -inf, HUGE], DURATION),
    "TO-07: anywhere": (SERVERS, "timeout", [-1, nan, -inf, HUGE], DURATION),
    "too small a count": (Limits, COUNTS, [0, -1, -HUGE], COUNT),
    "less than nothing": (Limits, "linger", [-1], COUNT),
    "what listen(2) does not take": (SERVERS, QUEUE, [-1, 2**31, HUGE], COUNT),
    "BP-02: another word": (Limits, "when_full", ["", "reject", "Wait"], WORDS),
    "UX-06: too large an option": (tcp, "socket_options", TOO_LARGE, INTS),
    "UX-06: more than a mode": (unix, "mode", [-1, 0o1000, HUGE], ""),
    "UX-06: no family of IP": (tcp, FAMILY, [socket.AF_UNIX, 0, -1, "AF_INET", nan], ""),
    "UX-06: the family of Unix is a constant": (unix, FAMILY, [None, socket.AF_INET], ""),
    "NW-07: not a host and a port": (tcp, ADDRESS, NO_ADDRESS, ""),
    "NW-07: no port": (tcp, ADDRESS, [("x", it) for it in [-1, 65_536, HUGE, None, True, 1.5]], ""),
    "NW-07: no IPv6 address": (tcp, ADDRESS, NO_IPV6, ""),
    "UX-06: as in a URL": (tcp, ADDRESS, [("[::1]", 80), ("[::1", 80)], BRACKETS.format("::1")),
    "UX-06: with a zone": (tcp, ADDRESS, [("[fe80::1%a]", 80)], BRACKETS.format("fe80::1%a")),
    "UX-06: a path that cannot be": (unix, ADDRESS, ["", b"", "\ud800"], "must be a path"),
    "UX-06: a NUL byte in it": (unix, ADDRESS, ["a\0b", b"a\0", Path("a\0b")], "must be a path"),
    "UX-06: too long": (unix, ADDRESS, TOO_LONG, "at most 107 bytes"),
    "UX-06: much too long": (unix, ADDRESS, [b"x" * 200], "200"),
    "UX-06: an abstract name too long": (unix, ADDRESS, [b"\0" + 108 * b"x"], "at most 108 bytes"),
}

TYPES = {
    "TO-07: what is no number": (Timeouts, SECONDS, NO_NUMBERS, DURATION),
    "TO-07: is none anywhere": (SERVERS, "timeout", NO_NUMBERS, DURATION),
    "TO-07: None for no limit": (Timeouts, SECONDS, [None], "math.inf for no limit"),
    "no limit where one must be": (Limits, ["requests", "line", "read", "linger"], [None], COUNT),
    "what is no whole number": (Limits, [*COUNTS, "linger"], NO_COUNTS, COUNT),
    "for listen(2), too": (SERVERS, QUEUE, OF_LISTEN, COUNT),
    "neither word nor function": (Limits, "when_full", [None, 503, TurnAway, b"wait", id], WORDS),
    "a function of no connection": (Limits, "when_full", [turn_away_nobody], "of one connection"),
    "a function that yields": (Limits, "when_full", [turn_away_in_turns], "without a `yield`"),
    "no time-outs": (SERVERS, "timeouts", [None, {}, 5, Limits(), Timeouts], ""),
    "no limits": (SERVERS, "limits", [None, {}, 5, Timeouts(), Limits], ""),
    "no flag": (SERVERS, FLAGS, [None, 0, 1, "yes"], ""),
    "no observers": (SERVERS, "observers", [None, 5, Witness, "text", Witness()], ""),
    "no observers in it": (SERVERS, "observers", [[1j], [Witness]], ""),
    "no options": (SERVERS, "socket_options", [None, 5, "ab", b"ab", [(1, 2)]], ""),
    "no triple": (SERVERS, "socket_options", [[(1, 2, "3")], [(1, 2, 3, 4)]], ""),
    "no mode": (unix, "mode", ["600", 6.0, True, [6]], ""),
    "no address": (tcp, ADDRESS, [None, 80, "localhost:80", b"x", 1j, {"host": "x"}], ""),
    "no path": (unix, ADDRESS, [None, 80, ("localhost", 80), 1j, []], "must be a path"),
}

BOTH = each(VALUES, ValueError) + each(TYPES, TypeError)


@pytest.mark.parametrize(("make", "name", "values", "says", "kind"), BOTH)
def test_field_that_is_refused(make, name, values, says, kind):
    """BP-02, NW-07, TO-07, UX-06: every other one is an error that names the field."""
    for value in values:
        with pytest.raises(kind) as caught:
            make(**{name: value})
        message = str(caught.value)
        assert type(caught.value) is kind
        assert f"{owner(make)}.{name} must be" in message
        assert says in message
        assert says not in {DURATION, COUNT} or repr(value) in message


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
    with pytest.raises(ValueError, match="address_family"):
        unix().address_family = socket.AF_INET


def test_options_are_kept_as_a_tuple():
    """Any iterable of triples will do, and a later change of it is none here."""
    for options in ((), [(1, 2, 3)], [(1, 2, b"\1")]):
        assert tcp(socket_options=iter(options)).socket_options == tuple(options)


def test_sockets_as_an_address():
    """LC-11: a bound socket, or a sequence of them, is an address, but not beside another."""
    with socket.socket() as one, socket.socket() as other:
        for address in (one, [one], (one, other)):
            assert tcp(server_address=address).server_address == address
        for beside in (("localhost", 0), "localhost"):
            with pytest.raises(ValueError, match=r"TCPServer\.server_address must be"):
                tcp(server_address=[one, beside])


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


async def test_arguments_of_methods():
    """Seconds, none at all, or the server's own; what makes no sense is refused by its name."""
    for seconds in (None, 0, 0.5, inf):
        tcp().shutdown(seconds)
    for seconds in (-1, nan, -inf, True, "5"):
        with pytest.raises((ValueError, TypeError), match="grace must be"):
            tcp().shutdown(seconds)
    for seconds, kind in ((0, ValueError), (nan, ValueError), (None, TypeError), ("1", TypeError)):
        with pytest.raises(kind, match="poll_interval must be"):
            await tcp().serve_forever(seconds)
