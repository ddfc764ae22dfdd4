"""Addresses as people write them, and as limits count them: also those that nobody expects."""

import itertools
import socket

import pytest
from support import Upper
from support.listening import Looks, asked, needs_ipv6, on_linux
from support.threads import hooked

import trioserver
from trioserver import Limits
from trioserver._facts.address import client_key, describe
from trioserver.testing import MemoryServer


class Broken:
    """One that cannot be shown, and does not hash."""

    def __repr__(self):
        raise ValueError("not today")

    def __hash__(self):
        raise ValueError("not today")


ODD = [(), (1, 2), (("127.0.0.1", 1), "more"), ("alone",), ("host", Broken()), [], None, 5, ...]
ODD += [("fe80::1", 1, [], []), ["127.0.0.1", 1], {"host": "127.0.0.1"}, "no path", Broken()]
ODD += ["\ud800", b"\xff"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80), "[::1]:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        pytest.param(("fe80::1", 80, 0, 1), "[fe80::1%lo]:80", marks=on_linux),
        (("fe80::1", 80, 0, 2**31 - 1), "[fe80::1%2147483647]:80"),
        (("fe80::1", 80, 0, 2**40), "[fe80::1%1099511627776]:80"),
        (("fe80::1%eth9", 80, 0, 1), "[fe80::1%eth9]:80"),
        ("/run/x", "unix:/run/x"),
        (b"\0name", "unix:@name"),
        ("", "unix:(unnamed)"),
        (("evil\nhost", 80), "evil\\nhost:80"),
        ((), "()"),
        (..., "Ellipsis"),
        (Broken(), "<Broken>"),
        ("\ud800", "<str>"),
    ],
)
def test_address_in_words(address, words):
    """Whatever it is, it is shown on one line; a link-local one with its zone."""
    assert describe(address) == words


def test_address_as_one_client():
    """BP-06: of a link each address counts, with its zone; what is made up counts as itself.

    Over a Unix socket the user counts, whatever the address, unless it has a host. Of what does
    not hash no count can be made.
    """
    for one, other, is_same in (
        (("fe80::1", 1, 0, 2), ("fe80::2", 1, 0, 2), False),
        (("fe80::1", 1, 0, 2), ("fe80::1", 9, 0, 2), True),
        (("fe80::1", 1, 0, 2), ("fe80::1", 1, 0, 3), False),
        (("fe80::1%a", 1), ("fe80::1%b", 1), False),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::2", 1, 0, 0), True),
        (["192.0.2.1", 1], ("192.0.2.1", 2), True),
        (("somewhere", 1), ("somewhere", 2), True),
        ((1, 2), (1, 2), True),
        ((1, 2), (1, 3), False),
        ("alice", "bob", False),
    ):
        assert (client_key(one, None) == client_key(other, None)) is is_same, (one, other)
    for address in ([], {"host": 1}, (1, []), ("fe80::1", 1, 0, []), Broken()):
        assert client_key(address, None) is None
    for address in ("", "/run/client", (), ..., Broken()):
        assert client_key(address, 1000) == 1000
    assert client_key(("192.0.2.1", 1), 1000) == client_key(("192.0.2.1", 2), None)


def made_up(kind, address):
    """A server class whose clients all have this address."""

    def get_request(self, *listener):
        got = kind.get_request(self, *listener)
        return got and (got[0], address)

    return hooked(kind, get_request=get_request)


async def test_made_up_address(autojump_clock):
    """Any address will do, with and without ``per_client``; nobody's request is harmed."""
    for address, limits in itertools.product(ODD, (Limits(), Limits(per_client=2))):
        server = made_up(MemoryServer, address)(("memory", 1), Upper, limits=limits)
        async with server.serving():
            for _ in range(3):
                async with await server.connect() as client:
                    await client.send_all(b"hello\n")
                    assert await client.receive_some() == b"HELLO\n"
        assert not server._report.unaccepted


@needs_ipv6
@on_linux
async def test_address_handed_out_can_be_handed_back(tmp_path):
    """LC-11: what a server was bound to, it can be bound to again, and a client can reach it."""
    paths = [f"{tmp_path}/str", bytes(tmp_path / "bytes"), tmp_path / "path", f"{tmp_path}/\udcff"]
    paths += [b"\0abstract" + bytes(tmp_path), f"\0text{tmp_path}"]
    hosts = [("127.0.0.1", 0), ["localhost", 0], ("", 0), ("::1", 0, 0, 0), ["::1", 0, 5, 0]]
    unix = (trioserver.UnixStreamServer, trioserver.UnixDatagramServer)
    ip = (trioserver.TCPServer, trioserver.UDPServer)
    for kind, address in [*itertools.product(unix, paths), *itertools.product(ip, hosts)]:
        async with kind(address, Looks(str)) as configured:
            bound = configured.server_address
            twins = [configured.evolve(server_address=bound), kind(bound, Looks(str))]
            twins[1].server_address = bound
        for twin in twins:
            async with twin.serving():
                assert twin.server_address == bound, (kind, address)
                if twin.socket_type == socket.SOCK_STREAM:
                    assert await asked(bound) == b"!"
