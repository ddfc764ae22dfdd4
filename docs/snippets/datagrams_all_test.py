import socket

import pytest
import trio
import trioserver
from support.pages import MEMORY, assert_shown
from trioserver.testing import MemoryDatagramServer

import datagrams


def in_memory(server):
    return MemoryDatagramServer(MEMORY, server.RequestHandlerClass, limits=server.limits)


@pytest.mark.parametrize(
    ("handler", "sent", "answer"),
    [
        (datagrams.Upper, b"hello", b"HELLO"),
        (datagrams.echo, b"hello", b"hello"),
        (datagrams.Add, b"1 2\n3\n4 5", b"3\n3\n9\n"),
    ],
)
async def test_answers(handler, sent, answer, autojump_clock):
    """Class, function and the class for both kinds answer a datagram with one."""
    async with MemoryDatagramServer(MEMORY, handler).serving() as server:
        client = server.client()
        await client.send(sent)
        with trio.fail_after(60):
            assert await client.receive() == answer
        await trio.testing.wait_all_tasks_blocked()
        assert client.received() == []


async def test_datagrams_and_streams_by_one_class():
    """The same class adds up over both; over TCP it answers each line as it comes."""
    by_stream, by_datagram = datagrams.on_both(("127.0.0.1", 0))
    with trio.fail_after(10):
        async with by_stream.serving(), by_datagram.serving():
            async with await trio.open_tcp_stream(*by_stream.server_address) as client:
                for line in (b"1 2\n", b"3\n"):
                    await client.send_all(line)
                    assert await client.receive_some() == b"3\n"
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sender:
                await sender.sendto(b"1 2\n3\n", by_datagram.server_address)
                assert await sender.recv(100) == b"3\n3\n"


async def test_in_parts(autojump_clock):
    """A report that is too large for one datagram comes in several, which are numbered."""
    server = MemoryDatagramServer(MEMORY, datagrams.in_parts)
    server.report = b"x" * 2500
    async with server.serving():
        client = server.client()
        await client.send(b"report, please")
        await trio.testing.wait_all_tasks_blocked()
        parts = client.received()
    sizes = [b"1 of 3\n" + b"x" * 1200, b"2 of 3\n" + b"x" * 1200, b"3 of 3\n" + b"x" * 100]
    assert parts == sizes


async def test_relay(autojump_clock):
    """What one guest says all others hear; one who is gone is forgotten, and harms nobody."""
    server = MemoryDatagramServer(MEMORY, datagrams.Relay)
    server.guests = set()
    async with server.serving():
        ann, bob, cid = (server.client() for _ in range(3))
        for guest in (ann, bob, cid):
            await guest.send(b"I am here")
            await trio.testing.wait_all_tasks_blocked()
        assert [len(guest.received()) for guest in (ann, bob, cid)] == [2, 1, 0]
        bob.close()
        await ann.send(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        assert (ann.received(), cid.received()) == ([], [b"hello"])
        assert server.guests == {ann.address, cid.address}
        assert server.statistics().outcomes["completed"] == 4


async def test_relay_for_a_hundred(autojump_clock):
    """Whoever claims many addresses cannot make the server remember more than a hundred."""
    server = MemoryDatagramServer(MEMORY, datagrams.Relay)
    server.guests = set()
    async with server.serving():
        for _ in range(150):
            await server.client().send(b"me, too")
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.guests) == 100


async def test_in_order(autojump_clock):
    """One at a time: the replies come in the order of the datagrams."""

    async def slower_at_first(request, address, server):
        await trio.sleep(10 / int(request.data))
        await request.reply(request.data)

    sent = [b"1", b"2", b"3", b"4", b"5"]
    server = in_memory(datagrams.in_order(("localhost", 0), slower_at_first))
    async with server.serving():
        client = server.client()
        for number in sent:
            await client.send(number)
        with trio.fail_after(60):
            assert [await client.receive() for _ in sent] == sent


@pytest.mark.parametrize(
    ("make", "option"),
    [(datagrams.for_many, socket.SO_RCVBUF), (datagrams.for_slow_readers, socket.SO_SNDBUF)],
)
async def test_buffers(make, option, tmp_path):
    """The buffers that were asked for are there, as far as the system goes."""
    by_udp = make is datagrams.for_many
    family, address = (
        (socket.AF_INET, ("127.0.0.1", 0)) if by_udp else (socket.AF_UNIX, str(tmp_path / "s"))
    )
    with socket.socket(family, socket.SOCK_DGRAM) as usual:
        usual.setsockopt(socket.SOL_SOCKET, option, 4 * 2**20)
        given = usual.getsockopt(socket.SOL_SOCKET, option)
    async with make(address, datagrams.Upper) as server:
        assert server.socket.getsockopt(socket.SOL_SOCKET, option) == given
        assert not by_udp or server.limits.requests == 200


async def test_refused_with_an_excuse(autojump_clock):
    """Those who find the server full are told so."""

    async def sleep(request, client_address, server):
        await trio.sleep(1)

    server = in_memory(datagrams.with_an_excuse(("localhost", 0), sleep))
    async with server.serving():
        first, unlucky = server.client(), server.client()
        for _ in range(200):
            await first.send(b"work")
        await unlucky.send(b"work")
        with trio.fail_after(60):
            assert await unlucky.receive() == b"busy, ask again later\n"
        assert first.received() == []


async def test_too_large(capsys):
    """What the observer prints of one is what the page shows."""
    server = trioserver.UDPServer(
        ("127.0.0.1", 0), datagrams.echo, max_packet_size=1000, observers=[datagrams.TooLarge()]
    )
    with trio.fail_after(10), trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
        async with server.serving():
            for size in (1001, 1000):
                await client.sendto(b"x" * size, server.server_address)
            assert await client.recv(2000) == b"x" * 1000
            assert server.statistics().accept_errors == 1
        port = client.getsockname()[1]
    assert_shown(capsys.readouterr().out.replace(f":{port} ", ":51022 "), "how-to/datagrams")
