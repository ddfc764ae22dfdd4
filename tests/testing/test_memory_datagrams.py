"""The network in memory for datagrams: what a server can tell of it is what the kernel tells it."""

import copy
import errno
import pickle

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import (
    MemoryDatagramClient,
    MemoryDatagramListener,
    MemoryDatagramMixIn,
    MemoryDatagramServer,
)

ADDRESS = ("memory", 1)
Listener = MemoryDatagramListener


async def echo(request, client_address, server):
    """Sends back what came."""
    await request.reply(request.data)


@pytest.fixture
def listener():
    """One that is open."""
    return Listener(ADDRESS)


def asked(client, listener):
    """A datagram of a client, and its address."""
    client.send_now(b"?")
    return received(listener)


def received(listener):
    """The next datagram of a listener: what it is, and who sent it."""
    found = listener.accept_now()
    assert found is not None
    return found


# Receiving -------------------------------------------------------------------


def test_datagrams_come_in_order_and_whole(listener):
    """Datagrams of all clients are one queue; each is whole, and has its sender."""
    assert listener.accept_now() is None
    one, two = listener.client(), listener.client(("two", 5))
    assert one.address != two.address == ("two", 5)
    for client, data in [(one, b"1"), (two, b""), (one, b"2" * 65_507)]:
        client.send_now(data)
    for client, data in [(one, b"1"), (two, b""), (one, b"2" * 65_507)]:
        datagram, address = received(listener)
        assert (datagram.data, address) == (data, client.address)
        assert (datagram.local_address, datagram.fileno()) == (ADDRESS, -1)
    assert listener.accept_now() is None


def test_what_was_sent_does_not_change(listener):
    """A buffer may be used again as soon as it was sent."""
    client, data = listener.client(), bytearray(b"sent")
    client.send_now(data)
    data[:] = b"lost"
    datagram, address = received(listener)
    assert datagram.data == b"sent"
    assert datagram.send_now(data, address)
    data[:] = b"sent"
    assert client.received() == [b"lost"]


def test_full_queue_drops_and_counts():
    """What there is no room for is dropped and counted, without a sign to the sender."""
    listener = Listener(ADDRESS, capacity=3)
    client = listener.client()
    for number in range(5):
        client.send_now(b"%d" % number)
    assert [received(listener)[0].data for _ in range(3)] == [b"0", b"1", b"2"]
    assert (listener.accept_now(), listener.dropped) == (None, 2)


def test_sizes_are_limited():
    """Too large to be sent is the sender's error; too large to be received drops that one."""
    listener = Listener(ADDRESS, largest=4)
    client = listener.client()
    with pytest.raises(OSError, match="too long") as caught:
        client.send_now(bytes(65_508))
    assert caught.value.errno == errno.EMSGSIZE
    for data in [b"12345", b"1234"]:
        client.send_now(data)
    with pytest.raises(OSError, match="more than 4 bytes") as caught:
        listener.accept_now()
    assert caught.value.errno == errno.EMSGSIZE
    datagram, address = received(listener)
    assert datagram.data == b"1234"
    with pytest.raises(OSError, match="too long"):
        datagram.send_now(memoryview(bytes(8 * 8_192)).cast("Q"), address)


def test_injected_errors_come_first(listener):
    """Each injected error is raised once, and takes no datagram along."""
    listener.client().send_now(b"kept")
    listener.fail(OSError("one"), OSError("two"))
    for words in ("one", "two"):
        with pytest.raises(OSError, match=words):
            listener.accept_now()
    assert received(listener)[0].data == b"kept"


async def takes(seconds, wait):
    """A wait ends by itself, after so long."""
    began = trio.current_time()
    with trio.fail_after(10), trio.testing.assert_checkpoints():
        await wait()
    assert trio.current_time() - began == seconds


async def test_wait_until_acceptable(listener, autojump_clock):
    """A wait ends with a datagram, an injected error or the close, and is a checkpoint anyway."""
    client = listener.client()
    acts = lambda: client.send_now(b"x"), lambda: listener.fail(OSError()), listener.close
    for act in acts:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes, 1, listener.wait_acceptable)
            await trio.sleep(1)
            act()
        if not listener.closed:
            await takes(0, listener.wait_acceptable)
            listener.errors.clear()
            while listener.accept_now():
                pass
    with pytest.raises(trio.ClosedResourceError):
        await listener.wait_acceptable()


def test_closed_listener_refuses(listener):
    """It has no datagrams, and who sends is told; what was received can still be answered."""
    client = listener.client()
    datagram, address = asked(client, listener)
    client.send_now(b"lost")
    listener.listen(5)
    listener.close()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        client.send_now(b"late")
    with pytest.raises(OSError, match="closed") as caught:
        listener.accept_now()
    assert caught.value.errno == errno.EBADF
    assert datagram.send_now(b"!", address)
    assert client.received() == [b"!"]


# Replying ----------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", ("nobody", 1)])
def test_nobody_is_there(listener, address):
    """A reply to nobody is refused."""
    datagram, _ = asked(listener.client(""), listener)
    with pytest.raises(ConnectionRefusedError):
        datagram.send_now(b"!", address)


async def test_full_client_makes_its_senders_wait(listener, autojump_clock):
    """A client keeps as many datagrams as it has capacity; more wait until it receives."""
    client = listener.client(capacity=2)
    datagram, address = asked(client, listener)
    assert [datagram.send_now(data, address) for data in (b"1", b"2", b"3")] == [True, True, False]
    for makes_room in ("receive", "received", "close"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes, 1, datagram.wait_writable)
            await trio.sleep(1)
            if makes_room == "receive":
                assert await client.receive() == b"1"
            elif makes_room == "received":
                assert client.received() == [b"2", b"3"]
            else:
                client.close()
        await takes(0, datagram.wait_writable)
        while makes_room != "close" and datagram.send_now(b"3", address):
            pass
    with pytest.raises(ConnectionRefusedError):
        datagram.send_now(b"4", address)


async def test_receive_waits_its_turn(listener, autojump_clock):
    """Each of several that receive gets a datagram of its own; cancelled, it has taken none."""
    client = listener.client()
    datagram, address = asked(client, listener)
    got = []

    async def receive():
        got.append(await client.receive())

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(receive)
            with trio.move_on_after(1) as scope:
                await client.receive()
            assert scope.cancelled_caught
            for data in (b"1", b"2", b"3"):
                datagram.send_now(data, address)
        assert sorted(got) == [b"1", b"2", b"3"]
        datagram.send_now(b"4", address)
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.receive()
        assert client.received() == [b"4"]


async def test_closed_client(listener, autojump_clock):
    """A closed client neither sends nor receives; who waits is told; the listener forgets it."""
    client = listener.client()

    async def receive():
        with pytest.raises(trio.ClosedResourceError):
            await client.receive()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            client.close()
            client.close()
        await receive()
        with pytest.raises(trio.ClosedResourceError):
            await client.send(b"late")
    assert (listener.accept_now(), listener.clients) == (None, {})


def test_address_changes_hands(listener):
    """A second client can take an address over; the end of the first changes nothing for it."""
    first, second = listener.client("name"), listener.client("name")
    first.send_now(b"?")
    datagram, address = received(listener)
    first.close()
    assert datagram.send_now(b"!", address)
    assert second.received() == [b"!"]


# Servers ---------------------------------------------------------------------------


async def test_send_and_receive_are_checkpoints(autojump_clock):
    """Both are checkpoints, and a cancelled send has sent nothing."""
    server = MemoryDatagramServer(ADDRESS, echo)
    async with server.serving():
        client = server.client()
        with trio.testing.assert_checkpoints():
            await client.send(b"one")
        await wait_all_tasks_blocked()
        with trio.testing.assert_checkpoints():
            assert await client.receive() == b"one"
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.send(b"two")
        await wait_all_tasks_blocked()
        assert (client.received(), server.statistics().accepted) == ([], 1)


class Mine(trioserver.UnixDatagramServer):
    max_packet_size = 3


class InMemory(MemoryDatagramMixIn, Mine):
    memory_capacity = 2


async def test_any_datagram_server_in_memory(autojump_clock):
    """The mix-in takes a server off the network, with its limits; each run has a listener."""
    server = InMemory("/not/there", echo)
    listeners = []
    for _ in range(2):
        async with server.serving():
            assert (server.server_address, server.socket) == ("/not/there", None)
            listeners.append(server.listener)
            client = server.client()
            assert isinstance(client, MemoryDatagramClient)
            for data in [b"1234", b"123", b"lost"]:
                client.send_now(data)
            await wait_all_tasks_blocked()
            assert client.received() == [b"123"]
            counts = server.statistics()
            assert (counts.accept_errors, counts.dropped) == (1, 1)
            assert not hasattr(pickle.loads(pickle.dumps(server)), "listener")  # noqa: S301
            assert not hasattr(copy.copy(server), "listener")
    assert listeners[0] is not listeners[1]
