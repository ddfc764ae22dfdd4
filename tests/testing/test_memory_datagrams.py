"""The network in memory for datagrams: what a server can tell of it is what the kernel tells it."""

import errno

import pytest
import trio
from support.datagrams import echo
from support.pipes import play
from support.scenes import table
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryDatagramClient, MemoryDatagramListener, MemoryDatagramMixIn

ADDRESS = ("memory", 1)


class Post:
    """A listener and a client of it, and the last datagram that came, for steps."""

    def __init__(self, **fields):
        self.listener = MemoryDatagramListener(ADDRESS, **fields)
        self.sender = self.listener.client()

    async def play(self, steps):
        await play(steps, self, self.sender, self.listener)

    def gets(self):
        """The next datagram of the listener."""
        if accepted := self.listener.accept_now():
            self.datagram, self.address = accepted
            return self.datagram.data
        return None

    def replies(self, data):
        return self.datagram.send_now(data, self.address)

    def replies_to(self, address):
        return self.datagram.send_now(b"!", address)

    def has_large_items(self):
        """Items that are more than a datagram can have in bytes."""
        return self.replies(memoryview(bytes(8 * 8_192)).cast("Q"))

    def sends(self, size):
        self.sender.send_now(bytes(size))

    def breaks(self, *words):
        self.listener.fail(*map(OSError, words))

    def is_left(self):
        self.listener.close()


TOO_LONG = f"OSError '[Errno {errno.EMSGSIZE}]', 'too long'"
DROPPED = f"OSError '[Errno {errno.EMSGSIZE}]', 'more than 4 bytes'"
GONE = f"OSError '[Errno {errno.EBADF}]', 'closed'"


@table(
    "steps",
    {
        "what there is no room for is dropped and counted, without a sign to the sender": (
            "gets -> None; sends 1; sends 0; sends 2; sends 3; sends 4; gets -> b'\\0';"
            " gets -> b''; gets -> b'\\0\\0'; gets -> None; dropped -> 2"
        ),
        "too large to be sent is the sender's error; too large to be received drops that one": (
            f"sends 65508 -> {TOO_LONG}; sends 5; send_now b'1234'; gets -> {DROPPED};"
            f" gets -> b'1234'; has_large_items -> {TOO_LONG}"
        ),
        "each injected error is raised once, and takes no datagram along": (
            "send_now b'kept'; breaks 'one', 'two'; gets -> OSError 'one'; gets -> OSError 'two';"
            " gets -> b'kept'"
        ),
        "one that is closed has nothing, refuses who sends, and can still answer what it had": (
            "send_now b'?'; gets -> b'?'; send_now b'lost'; listen 5; is_left; is_left;"
            f" send_now b'late' -> ConnectionRefusedError; gets -> {GONE};"
            " replies b'!' -> True; received -> [b'!']"
        ),
        "a reply to nobody is refused": (
            "send_now b'?'; gets -> b'?'; client ''; replies_to '' -> ConnectionRefusedError;"
            " replies_to ('nobody', 1) -> ConnectionRefusedError"
        ),
    },
)
async def test_listener(steps):
    """What it receives, and what not."""
    await Post(capacity=3, largest=4).play(steps)


def test_datagrams_come_in_order_and_whole():
    """Those of all clients are one queue; each is whole, and has its sender.

    A buffer may be used again as soon as it was sent. A second client can take an address over;
    the end of the first changes nothing for it.
    """
    post, buffer = Post(), bytearray(b"sent")
    one, two = post.sender, post.listener.client(("two", 5))
    assert one.address != two.address == ("two", 5)
    sent = [(one, b"1"), (two, b""), (one, b"2" * 65_507), (two, b"sent")]
    for client, data in sent:
        client.send_now(buffer if data == b"sent" else data)
    buffer[:] = b"lost"
    for client, data in sent:
        assert (post.gets(), post.address) == (data, client.address)
        assert (post.datagram.local_address, post.datagram.fileno()) == (ADDRESS, -1)
    second = post.listener.client(("two", 5))
    two.close()
    assert post.replies(buffer)
    buffer[:] = b"sent"
    assert second.received() == [b"lost"]


async def takes(seconds, wait):
    """A wait ends by itself, after so long."""
    began = trio.current_time()
    with trio.fail_after(10), assert_checkpoints():
        await wait()
    assert trio.current_time() - began == seconds


async def test_wait_until_acceptable(autojump_clock):
    """A wait ends with a datagram, an injected error or the close, and is a checkpoint anyway."""
    for steps in ("send_now b'x'", "breaks 'broken'", "is_left"):
        post = Post()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes, 1, post.listener.wait_acceptable)
            await trio.sleep(1)
            await post.play(steps)
        if not post.listener.closed:
            await takes(0, post.listener.wait_acceptable)
    with pytest.raises(trio.ClosedResourceError):
        await post.listener.wait_acceptable()


async def test_full_client_makes_its_senders_wait(autojump_clock):
    """A client keeps as many datagrams as it has capacity; more wait until it receives."""
    post = Post()
    post.sender.capacity = 2
    await post.play("send_now b'?'; gets -> b'?'; replies b'1' -> True; replies b'2' -> True")
    for makes_room in ("receive -> b'1'", "received -> [b'2', b'3']", "close"):
        assert not post.replies(b"3")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes, 1, post.datagram.wait_writable)
            await trio.sleep(1)
            await post.play(makes_room)
        await takes(0, post.datagram.wait_writable)
        while makes_room != "close" and post.replies(b"3"):
            pass
    with pytest.raises(ConnectionRefusedError):
        post.replies(b"4")


async def test_receive_waits_its_turn(autojump_clock):
    """Each of several that receive gets a datagram of its own; cancelled, it has taken none.

    A closed client neither sends nor receives; who waits is told; the listener forgets it.
    """
    post, got = Post(), []
    await post.play("send_now b'?'; gets -> b'?'")

    async def receive():
        with trio.fail_after(10):
            got.append(await post.sender.receive())

    async def is_told():
        with pytest.raises(trio.ClosedResourceError):
            await receive()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(receive)
        await post.play("receive -> waits")
        for data in (b"1", b"2", b"3"):
            post.replies(data)
    assert sorted(got) == [b"1", b"2", b"3"]
    await post.play("replies b'4' -> True; receive -> cancelled; received -> [b'4']")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(is_told)
        await wait_all_tasks_blocked()
        await post.play("close; close")
    await post.play("receive -> ClosedResourceError; send b'late' -> ClosedResourceError")
    assert (post.gets(), post.listener.clients) == (None, {})


async def test_send_and_receive_are_checkpoints(autojump_clock):
    """Both are checkpoints, and a cancelled send has sent nothing."""
    post = Post()
    with assert_checkpoints():
        await post.sender.send(b"one")
    await post.play("gets -> b'one'; replies b'two' -> True")
    with assert_checkpoints():
        assert await post.sender.receive() == b"two"
    await post.play("send b'three' -> cancelled; gets -> None")


class InMemory(MemoryDatagramMixIn, trioserver.UnixDatagramServer):
    max_packet_size = 3
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
    assert listeners[0] is not listeners[1]
