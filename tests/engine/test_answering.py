"""Datagrams that a plain function answers, in the task that receives them."""

import contextvars
import functools
import itertools
import logging
from collections import Counter
from contextlib import suppress

import pytest
import trio
import trio.lowlevel
from support import Witness
from support.datagrams import exchange
from support.scenes import table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import Cancel, CtrlC, MemoryDatagramServer, ShutDown, sweep


async def it_waits():
    """Is not awaited."""


def upper(data, client_address, server):
    """Answers, but for silence."""
    return data.upper() or None


class Verifies(MemoryDatagramServer):
    """Has a hook, so that each datagram has a task all the same."""

    async def verify_request(self, request, client_address):
        await trio.lowlevel.checkpoint()
        return request.data != b"no"


both = pytest.mark.parametrize("kind", [MemoryDatagramServer, Verifies])


@both
async def test_answers(kind, autojump_clock):
    """Bytes are the reply, and None is none; each datagram has its record, and is counted."""
    async with exchange(upper, b"one", b"", b"two", kind=kind) as it:
        assert sorted(it.client.received()) == [b"ONE", b"TWO"]
        counts = it.server.statistics()
    assert it.witness.outcomes == ["completed"] * 3
    assert it.witness.names.count("request_started") == 3
    sizes = sorted((record.bytes_received, record.bytes_sent) for record in it.witness.records)
    assert sizes == [(0, 0), (3, 3), (3, 3)]
    assert (counts.accepted, counts.outcomes[trioserver.Outcome.COMPLETED]) == (3, 3)
    assert (counts.active, counts.bytes_received, counts.bytes_sent) == (0, 6, 6)


@both
async def test_what_it_is_called_with(kind, autojump_clock):
    """The data, the client's address and the server; the request is that of the datagram."""
    seen = []

    def look(data, client_address, server):
        info = trioserver.current_request()
        seen.append((data, client_address, server, info.client_address, info.id))

    async with exchange(look, b"a", b"b", kind=kind) as it:
        address = it.client.address
        assert sorted(seen) == [
            (b"a", address, it.server, address, 1),
            (b"b", address, it.server, address, 2),
        ]
    assert trioserver.current_request() is None


@table(
    ("function", "reason"),
    {
        "it raises": (lambda data, address, server: 1 // 0, "ZeroDivisionError"),
        "a text is no answer": (lambda data, address, server: "text", "with bytes, or None"),
        "nor is a coroutine": (
            lambda data, address, server: it_waits(),
            "is an `async def`",
        ),
        "too large for a datagram": (lambda data, address, server: bytes(70_000), "Message too l"),
    },
)
@both
async def test_errors(function, reason, kind, autojump_clock, caplog):
    """They go to `handle_error`, are that request's alone, and are in its record."""
    told = []

    class Tells(kind):
        async def handle_error(self, request, client_address):
            told.append((request.data, client_address))
            await super().handle_error(request, client_address)

    def fails(data, client_address, server):
        return data if data == b"good" else function(data, client_address, server)

    async with exchange(fails, b"bad", b"good", kind=Tells) as it:
        assert it.client.received() == [b"good"]
        assert told == [(b"bad", it.client.address)]
    assert sorted(it.witness.outcomes) == ["completed", "failed"]
    (record,) = [record for record in it.witness.records if record.outcome == "failed"]
    assert reason in record.reason
    (logged,) = [line for line in caplog.records if line.levelno == logging.ERROR]
    assert logged.exc_info is not None


@both
async def test_exit(kind, autojump_clock):
    """What is no error ends the server, in order."""

    def leaves(data, client_address, server):
        raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        async with exchange(leaves, kind=kind) as it:
            it.client.send_now(b"x")
            await trio.sleep_forever()
    assert caught.value.code == 3
    assert it.witness.outcomes == ["failed"]
    assert it.witness.names[-1] == "server_closed"


async def test_client_without_room(autojump_clock):
    """It is waited for, in a task of the datagram's own; the next one is answered meanwhile."""
    async with exchange(upper, capacity=1) as it:
        for word in (b"a", b"b", b"c"):
            it.client.send_now(word)
        it.server.client(("other", 1)).send_now(b"x")
        await wait_all_tasks_blocked()
        assert len(it.server.requests) == 2
        assert it.client.received() == [b"A"]
        await wait_all_tasks_blocked()
        await trio.sleep(31)  # of timeouts.write
        assert it.server.statistics().outcomes[trioserver.Outcome.TIMED_OUT] == 1


async def test_client_that_has_gone(autojump_clock):
    """That it cannot be reached is its own doing: no error."""
    async with exchange(upper) as it:
        it.client.send_now(b"x")
        it.client.close()
        await wait_all_tasks_blocked()
    assert it.witness.outcomes == ["disconnected"]


@both
async def test_shutdown(kind, autojump_clock):
    """Called in the function, it drains: the answer is sent, and so are those of who queued."""

    def stops(data, client_address, server):
        server.shutdown(5)
        return data

    async with exchange(stops, b"a", b"b", b"c", kind=kind) as it:
        report = await it.server.wait_closed()
        assert sorted(it.client.received()) == [b"a", b"b", b"c"]
    assert report.clean
    assert len(report.requests) == 3


@both
async def test_one_request(kind, autojump_clock):
    """`handle_request` answers one."""
    server = kind(("memory", 1), upper)
    async with server:
        client = server.client()
        client.send_now(b"a")
        client.send_now(b"b")
        await server.handle_request()
        assert client.received() == [b"A"]


async def test_no_request_sees_what_another_has_set(autojump_clock):
    """Context variables are the datagram's own."""
    variable, seen = contextvars.ContextVar("variable", default=None), []

    def sets(data, client_address, server):
        seen.append(variable.get())
        variable.set(data)

    async with exchange(sets, b"a", b"b"):
        pass
    assert seen == [None, None]


@pytest.mark.slow
async def test_flood_leaves_others_their_turn(autojump_clock):
    """However many datagrams wait, other tasks have their turn after 64 of them."""
    large = type("Large", (MemoryDatagramServer,), {"memory_capacity": 10_000})
    turns = [0]
    async with exchange(upper, kind=large, capacity=10_000) as it:
        for _ in range(5000):
            it.client.send_now(b"x")
        while turns[-1] < 5000:
            await trio.lowlevel.checkpoint()
            turns.append(it.server.statistics().accepted)
        assert max(after - before for before, after in itertools.pairwise(turns)) <= 128
        assert len(it.client.received()) == 5000


def test_what_is_a_plain_function():
    """Functions, methods and what wraps them are; what may return a coroutine unseen is not."""

    async def waits(data, client_address, server):
        await trio.lowlevel.checkpoint()

    @functools.wraps(waits)
    def hides(*arguments):
        return waits(*arguments)

    class Calls:
        def __call__(self, data, client_address, server):
            return waits(data, client_address, server)

    def taken(handler):
        return MemoryDatagramServer(("memory", 1), handler)._reply_function() is not None

    assert taken(upper)
    assert taken(functools.partial(upper))
    assert not any(map(taken, [waits, hides, Calls()]))
    threading = trioserver.ThreadingUDPServer(("127.0.0.1", 0), upper)
    assert threading._reply_function() is None


WORDS = [b"%d" % number for number in range(12)]


class Correspondence:
    """A client that sends words, has room for two answers, and reads now and then."""

    async def __call__(self, trial):
        self.calls, self.witness, self.got, due = Counter(), Witness(), [], []
        trial.afterwards(self.faults)

        def answer(data, client_address, server):
            self.calls[data] += 1
            if data == WORDS[4]:
                raise ValueError("asked for")
            return data

        server = Silent(("memory", 1), answer, observers=[self.witness])
        trial.arm(server=server)
        async with server.serving(grace=5):
            client = server.client(capacity=2)
            for word in WORDS:
                with suppress(ConnectionRefusedError):
                    client.send_now(word)
                    due += [word] * (not server.draining and not trial.is_harmed)
                if word in WORDS[2::3]:
                    await trio.lowlevel.checkpoint()
                    self.got += client.received()
            while not server.draining and len(self.witness.records) < len(WORDS):
                await trio.lowlevel.checkpoint()
                self.got += client.received()
            server.shutdown()
            while server.requests:
                self.got += client.received()
                await trio.lowlevel.checkpoint()
        self.got += client.received()
        lost = {*due} - {*self.got, WORDS[4]}
        if trial.faults == (ShutDown(5),) and lost:
            trial.complain(f"{lost} were sent in time, and not answered")

    def faults(self):
        """What does not balance."""
        for counts in (self.calls, Counter(self.got)):
            if counts and max(counts.values()) > 1:
                yield f"more than once: {counts}"
        if not set(self.got) <= set(self.calls):
            yield f"answered, and never asked: {self.got}"
        ended = sorted(record.info.id for record in self.witness.records)
        started = sorted(it[1].id for it in self.witness.events if it[0] == "request_started")
        if started != ended:
            yield f"started {started}, ended {ended}"


class Silent(MemoryDatagramServer):
    """Tells nobody of errors."""

    async def handle_error(self, request, client_address):
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("fault", [Cancel(), ShutDown(5), ShutDown(0), CtrlC()], ids=repr)
def test_after_every_step(fault):
    """Each datagram is answered once at most, has one record, and is answered if it was in time."""
    assert sweep(Correspondence(), faults=[fault]).runs > 60
