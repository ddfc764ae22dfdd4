"""Addresses as people write them, and as limits count them: also those that nobody expects."""

import logging
import socket
import socketserver
import sys
from pathlib import Path

import pytest
import trio
from support import Upper, Witness, connect, hold, running
from support.adopting import THERE, adopted, ask, in_thread
from support.adopting import Upper as TheirUpper

import trioserver
from trioserver import Limits
from trioserver._facts.address import client_key, describe
from trioserver.testing import MemoryServer

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="its name of the loopback interface")


class Odd:
    """An address that somebody has made up."""

    def __repr__(self):
        return "odd"


class Broken:
    """One that cannot be shown, and does not hash."""

    def __repr__(self):
        raise ValueError("not today")

    def __hash__(self):
        raise ValueError("not today")


ODD = [
    (),
    (1, 2),
    (("127.0.0.1", 1), "more"),
    ("alone",),
    ("host", Broken()),
    ("fe80::1", 1, [], []),
    [],
    ["127.0.0.1", 1],
    {"host": "127.0.0.1"},
    None,
    5,
    "no path",
    "\ud800",
    b"\xff",
    Odd(),
    Broken(),
]


def odd(function):
    """Try a test with each of them."""
    return pytest.mark.parametrize("address", ODD, ids=map(str, range(len(ODD))))(function)


# In words ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("localhost", "http"), "localhost:http"),
        (("::1", 80), "[::1]:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        pytest.param(("fe80::1", 80, 0, 1), "[fe80::1%lo]:80", marks=on_linux),
        (("fe80::1", 80, 0, 2**31 - 1), "[fe80::1%2147483647]:80"),
        (("fe80::1", 80, 0, 2**40), "[fe80::1%1099511627776]:80"),
        (("fe80::1%eth9", 80, 0, 1), "[fe80::1%eth9]:80"),
        ("/run/x", "unix:/run/x"),
        (Path("/run/x"), "unix:/run/x"),
        (b"\0name", "unix:@name"),
        ("", "unix:(unnamed)"),
        ("/run/\n", "unix:/run/\\n"),
        (("evil\nhost", 80), "evil\\nhost:80"),
        ((), "()"),
        ((1, 2), "(1, 2)"),
        (None, "None"),
        (Odd(), "odd"),
        (Broken(), "<Broken>"),
        (("host", Broken()), "<tuple>"),
        ("\ud800", "<str>"),
    ],
)
def test_address_in_words(address, words):
    """Whatever it is, it is shown on one line; a link-local one with its zone."""
    assert describe(address) == words


@on_linux
async def test_zone_is_in_logs_and_reprs(caplog):
    """The zone of a link-local client is in records, reports and the repr of its connection."""
    shown = []

    async def show(request, client_address, server):
        shown.append(repr(request))

    caplog.set_level(logging.INFO, "trioserver.access")
    witness = Witness()
    async with MemoryServer(("memory", 1), show, observers=[witness]).serving() as server:
        async with await server.connect(("fe80::1", 4000, 0, 1)) as client:
            assert await client.receive_some() == b""
    for text in (shown[0], str(witness.records[0]), caplog.text):
        assert "from [fe80::1%lo]:4000" in text


# As one client -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (("fe80::1", 1, 0, 2), ("fe80::2", 1, 0, 2), False),
        (("fe80::1", 1, 0, 2), ("fe80::1", 9, 0, 2), True),
        (("fe80::1", 1, 0, 2), ("fe80::1", 1, 0, 3), False),
        (("fe80::1%a", 1), ("fe80::1%b", 1), False),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::2", 1, 0, 0), True),
        (["192.0.2.1", 1], ("192.0.2.1", 2), True),
        (("somewhere", 1), ("somewhere", 2), True),
        ((1, 2), (1, 2), True),
        ((1, 2), (1, 3), False),
        ((), (), True),
        ("alice", "alice", True),
        ("alice", "bob", False),
    ],
)
def test_address_as_one_client(one, other, is_same):
    """BP-06: of a link each address counts, with its zone; what is made up counts as itself."""
    assert (client_key(one, None) == client_key(other, None)) is is_same


@pytest.mark.parametrize("address", [[], {"host": 1}, (1, []), ("fe80::1", 1, 0, []), Broken()])
def test_address_that_does_not_hash_counts_as_nobody(address):
    """Of what does not hash no count can be made."""
    assert client_key(address, None) is None


@pytest.mark.parametrize("address", ["", "/run/client", (), Odd(), Broken()])
def test_address_of_a_user(address):
    """BP-06: over a Unix socket the user counts, whatever the address, unless it has a host."""
    assert client_key(address, 1000) == 1000
    assert client_key(("192.0.2.1", 1), 1000) == client_key(("192.0.2.1", 2), None)


# Made up by get_request ------------------------------------------------------------


def made_up(server_class, address):
    """A server class whose clients all have this address."""

    class MadeUp(server_class):
        def get_request(self, *listener):
            got = super().get_request(*listener)
            return got and (got[0], address)

    return MadeUp


@odd
async def test_made_up_address(address, autojump_clock):
    """Any address will do, with and without ``per_client``; nobody's request is harmed."""
    for limits in (Limits(), Limits(per_client=2)):
        server = made_up(MemoryServer, address)(("memory", 1), Upper, limits=limits)
        async with server.serving():
            for _ in range(3):
                async with await server.connect() as client:
                    await client.send_all(b"hello\n")
                    assert await client.receive_some() == b"HELLO\n"
        assert not server._report.unaccepted


@odd
async def test_made_up_address_of_an_adopted_server(address):
    """The same under `adopt`: records and limits go by the connection's own address."""
    their_class = made_up(socketserver.ThreadingTCPServer, address)
    theirs = their_class(THERE, TheirUpper)
    witness = Witness()
    async with adopted(theirs, limits=Limits(per_client=2), observers=[witness]):
        assert await in_thread(ask, theirs.server_address) == b"HELLO\n"
    assert witness.outcomes == ["completed"]
    assert witness.records[0].info.client_address[0] == "127.0.0.1"


async def test_made_up_address_is_counted(autojump_clock):
    """Who has an equal address is the same client, and what does not hash has no limit."""
    for address, most in ((("anybody", "here"), 2), ((), 2), ((1, 2), 2), ([], 5)):
        kind = made_up(MemoryServer, address)
        server = kind(("memory", 1), hold, limits=Limits(per_client=2))
        async with server.serving(grace=0):
            for _ in range(5):
                await server.connect()
            await trio.testing.wait_all_tasks_blocked()
            assert len(server.requests) == most, address


# Handed out, and handed back ----------------------------------------------------------


def kinds(folder):
    """Server classes, and the addresses in every form that one can be given."""
    paths = [str(folder / "str"), bytes(folder / "bytes"), folder / "path", f"{folder}/\udcff"]
    if sys.platform == "linux":
        paths += [b"\0abstract" + bytes(folder), f"\0text{folder}"]
    hosts = [("127.0.0.1", 0), ["localhost", 0], ("", 0)]
    if socket.has_ipv6:
        hosts += [("::1", 0), ("::1", 0, 0, 0), ["::1", 0, 5, 0]]
    unix = (trioserver.UnixStreamServer, trioserver.UnixDatagramServer)
    ip = (trioserver.TCPServer, trioserver.UDPServer)
    return [
        *((kind, address) for kind in unix for address in paths),
        *((kind, address) for kind in ip for address in hosts),
    ]


async def test_address_handed_out_can_be_handed_back(tmp_path):
    """LC-11: what a server was bound to, it can be bound to again, by all ways to say so."""
    for kind, address in kinds(tmp_path):
        configured = kind(address, hold)
        try:
            async with configured:
                bound = configured.server_address
                twins = [configured.evolve(server_address=bound), kind(bound, hold)]
                twins[1].server_address = bound
        except OSError:
            assert ":" in address[0]  # this machine has no IPv6
            continue
        for twin in twins:
            async with twin:
                assert twin.server_address == bound, (kind, address)


@on_linux
async def test_client_sees_the_address_that_was_handed_out(tmp_path):
    """An abstract name and a path are the same to a client as to the server."""
    for kind, address in kinds(tmp_path):
        if kind is trioserver.UnixStreamServer:
            async with running(server := kind(address, Upper)):
                stream = await connect(server)
                await stream.send_all(b"hello\n")
                assert await stream.receive_some() == b"HELLO\n"
                await stream.aclose()
