"""Whole lives of servers, drawn by Hypothesis: whatever happens in whatever order, the books agree.

In a life a server in memory starts, clients do what clients do, it is stopped in one of its
ways, and starts again. The life keeps a model of its own, and after every step the server
must agree with it: slots, records, counts, snapshots, replies. What must hold at the end of
a run is checked at the end of every run.

`LIFE_EXAMPLES` in the environment asks for more lives than the suite tries::

    LIFE_EXAMPLES=5000 python -m pytest tests/whole/test_life.py
"""

import faulthandler
import math
import os
from collections import Counter
from contextlib import suppress
from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from support import Witness
from trio.testing import MockClock, wait_all_tasks_blocked

import trioserver
from trioserver import Limits, Outcome, Timeouts
from trioserver.testing import MemoryDatagramServer, MemoryServer, MemoryTransport

LIVES = settings(
    max_examples=int(os.environ.get("LIFE_EXAMPLES", "200")),
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Private; Trio's plugin for Hypothesis has it seeded with 0 before each life.
_scheduler = trio._core._run

ENOUGH = 1000.0  # virtual seconds, longer than everything here can take
TIMEOUTS = Timeouts(idle=30, line=10, write=5, linger=2)


class Life:
    """What the lives of all servers have in common."""

    SERVER: Any
    HANDLER: Any
    RULES = ("start", "shut_down", "cancel", "cancel_one", "let_time_pass")

    running = draining = cut = crowded = ends_at_once = False
    ends_by = math.inf
    runs = judged = 0

    def __init__(self, data):
        self.draw, self.witness = data.draw, Witness()
        full, per_client = self.one_of("wait", "refuse"), self.one_of(None, None, 1, 2)
        requests = self.one_of(1, 2, 3)
        self.limits = Limits(requests=requests, when_full=full, per_client=per_client)
        self.timeouts = attrs.evolve(TIMEOUTS, request=self.one_of(math.inf, 20))
        fields = {"limits": self.limits, "timeouts": self.timeouts, "observers": [self.witness]}
        self.server = self.SERVER(("memory", 1), self.HANDLER, **fields)
        self.server.working = self.server.most = 0
        self.clients, self.cancelled_ids = [], set()

    def one_of(self, *values):
        return self.draw(st.sampled_from(values))

    def some_of(self, values, least=0, most=4):
        return self.draw(st.lists(st.sampled_from(values), min_size=least, max_size=most))

    async def live(self):
        """Live, and end by itself."""
        _scheduler._r.seed(self.draw(st.integers(0, 9), "schedule"))
        never = self.draw(st.sets(st.sampled_from(self.RULES), max_size=3), "what never happens")
        async with trio.open_nursery() as self.nursery:
            self.tasks = trio.lowlevel.current_statistics().tasks_living
            for _ in range(self.draw(st.integers(1, 100), "steps")):
                can = [rule for rule in self.RULES if rule not in never and self.may(rule)]
                rule = self.draw(st.sampled_from(can or ["let_time_pass"]), "step")
                await self.do(getattr(self, rule))
            if self.running:
                await self.do(self.shut_down, [ENOUGH])
                await self.do(trio.sleep, self.ends_by - trio.current_time() + 0.001)
                assert not self.running
            self.nursery.cancel_scope.cancel()

    async def do(self, act, *arguments):
        """Take a step, and see that all agrees after whatever happens then."""
        await act(*arguments)
        await wait_all_tasks_blocked()
        self.look()

    # The rules for every server ----------------------------------------------

    def may(self, rule):
        """Whether that can happen now."""
        # Lives are short, and most runs should have something to end.
        special = {
            "start": not self.running,
            "shut_down": self.is_busy() or not self.runs,
            "cancel": self.running and self.is_busy(),
            "cancel_one": self.running and self.server.requests,
            "let_time_pass": True,
            "connect": self.running,
        }
        return special.get(rule, self.clients)

    async def start(self):
        """Serve, for the first time or again."""
        self.clients.clear()
        self.witness.events.clear()
        self.cancelled_ids.clear()
        self.runs += 1
        self.judged = 0
        self.running, self.ends_by = True, math.inf
        self.draining = self.cut = self.crowded = False
        self.nursery.start_soon(self.serve)
        await wait_all_tasks_blocked()
        assert not (self.running and self.ends_at_once)
        self.ends_at_once = False

    async def serve(self):
        with trio.CancelScope() as self.scope:
            await self.server.serve_forever()
        self.running = False

    async def shut_down(self, graces=None):
        """Drain; or change an earlier drain's mind; or have the first run end at once."""
        for grace in graces or self.some_of([0, 1, 5, ENOUGH, ENOUGH], 1, 2):
            if self.running:
                self.draining = True
                self.crowded = self.crowded or self.queued() > self.limits.requests
                self.ends_by = min(self.ends_by, trio.current_time() + grace)
            elif not self.runs:
                self.ends_at_once = True
            self.server.shutdown(grace)
            await wait_all_tasks_blocked()

    async def cancel(self):
        self.cut = True
        self.scope.cancel("the test")
        await wait_all_tasks_blocked()
        assert not self.running

    async def cancel_one(self):
        it = self.one_of(*(info.id for info in self.server.requests))
        self.cancelled_ids.add(it)
        assert self.server.cancel_request(it, "not this one")
        await wait_all_tasks_blocked()
        assert [r.outcome for r in self.witness.records if r.info.id == it] == [Outcome.CANCELLED]
        assert not self.server.cancel_request(it, "twice")

    async def let_time_pass(self):
        await trio.sleep(self.one_of(0.25, 0.5, 1, 4, 6, 12, 40))

    # What holds after every step -----------------------------------------------

    def queued(self):
        """How many clients nobody has accepted yet."""
        return len(self.server.listener._queue)

    def events(self, name):
        """The facts of the events of that name."""
        return [facts for it, *facts in self.witness.events if it == name]

    def started(self):
        """The ids of the requests that have started."""
        return {info.id for (info,) in self.events("request_started")}

    def active(self):
        """The addresses of the clients that hold a slot."""
        ended = {record.info.id for record in self.witness.records}
        infos = [info for (info,) in self.events("request_started")]
        return [info.client_address for info in infos if info.id not in ended]

    def turned_away(self, *, by_drain):
        """Clients that never became requests."""
        refused = self.events("request_refused")
        return [who for who, why in refused if (why == "the server drains") == by_drain]

    def will_be(self, host):
        """What becomes of somebody from ``host`` who comes now."""
        active = self.active()
        if len(active) >= self.limits.requests and self.limits.when_full == "wait":
            return "queued"
        ours = sum(address[0] == host for address in active)
        if self.limits.per_client is not None and ours >= self.limits.per_client:
            return "refused"
        return "started" if len(active) < self.limits.requests else "refused"

    def look(self):
        counts, records = self.server.statistics(), self.witness.records
        active, ids = self.active(), [record.info.id for record in records]
        # Never one request more, and nobody waits for a slot that is free.
        assert self.server.most <= self.limits.requests
        assert self.server.working <= len(active) == len(self.server.requests)
        if counts.waiting or (self.running and self.queued()):
            assert len(active) == self.limits.requests
        by_host = Counter(address[0] for address in active)
        assert max(by_host.values(), default=0) <= (self.limits.per_client or math.inf)
        # One start and one record for each request; the counts are those of the records.
        assert len(set(ids)) == len(ids)
        assert set(ids) <= self.started()
        assert self.witness.names.count("request_started") == len(self.started()) == counts.accepted
        assert counts.outcomes == dict.fromkeys(Outcome, 0) | Counter(r.outcome for r in records)
        assert counts.active == len(active) == counts.accepted - len(records)
        assert counts.refused == len(self.turned_away(by_drain=False))
        assert counts.unaccepted == len(self.turned_away(by_drain=True))
        assert counts.bytes_received == sum(record.bytes_received for record in records)
        assert counts.bytes_sent == sum(record.bytes_sent for record in records)
        # A snapshot shows what there is, and what it is doing.
        snapshot = self.server.snapshot()
        running = "draining" if self.draining else "serving"
        assert snapshot.state == (running if self.running else "unbound")
        assert snapshot.statistics == counts
        working = {r.info.id for r in snapshot.requests if r.state != "closing"}
        assert working == {info.id for info in self.server.requests}
        assert len(snapshot.requests) == len(working) + counts.lingering
        if self.draining:
            idle = [r for r in snapshot.requests if r.state == "idle"]
            assert all(r.bytes_received == 0 and r.age < 0.5 + 1e-3 for r in idle)
        # A drain ends with its last request, and with its grace at the latest.
        if self.running:
            assert trio.current_time() < self.ends_by
            assert not self.draining or counts.active + counts.waiting + counts.lingering
        # Nobody ends for a reason that was not there.
        for record in records[self.judged :]:
            self.judge(record)
        self.judged = len(records)
        if counts.unaccepted and self.limits.per_client is None and not self.crowded:
            assert not self.running  # it was cut before their turn came
        self.clients_agree()
        if self.runs and not self.running:
            self.nothing_is_left()

    def judge(self, record):
        match record.outcome:
            case Outcome.CANCELLED:
                over = trio.current_time() >= self.ends_by
                assert self.cut or over or record.info.id in self.cancelled_ids, record
            case Outcome.TIMED_OUT if "(request)" in record.reason:
                assert record.duration == pytest.approx(self.timeouts.request, abs=1e-3)
            case Outcome.REFUSED:
                raise AssertionError(record)

    def nothing_is_left(self):
        """When it has returned there is no task, no open request, and one report of it all."""
        names, records = self.witness.names, self.witness.records
        assert (names[0], names[-1]) == ("server_listening", "server_closed")
        assert (names.count("server_closed"), names.count("draining")) == (1, 1)
        assert {record.info.id for record in records} == self.started()
        report = self.witness.events[-1][1]
        assert report.statistics == self.server.statistics()
        before = sum(name == "request_finished" for name in names[: names.index("draining")])
        assert report.requests == tuple(records[before:])
        assert list(report.unaccepted) == self.turned_away(by_drain=True)
        assert not report.statistics.active + report.statistics.waiting
        assert not report.statistics.lingering
        assert trio.lowlevel.current_statistics().tasks_living == self.tasks
        self.clients_are_left()


# Streams -----------------------------------------------------------------------------


def reply_to(line):
    """What a line is answered with; some need many sends."""
    return line.upper() * (30 if line.startswith(b"b") else 1)


def replies_to(said, *, ended):
    """The replies to all of that."""
    replies = b""
    for line in said.splitlines(keepends=True):
        if line.startswith(b"x") or not (ended or line.endswith(b"\n")):
            break
        replies += reply_to(line)
        if line.startswith(b"q"):
            break
    return replies


class Working:
    """Counts the handlers at work."""

    async def setup(self):
        self.server.working += 1
        self.server.most = max(self.server.most, self.server.working)

    async def finish(self):
        self.server.working -= 1


class Lines(Working, trioserver.StreamRequestHandler):
    """Does with each line what its first letter says: echo, sleep, hold, big, quit, fail (x)."""

    async def handle(self):
        async for line in self.rfile:
            await trio.sleep({b"s": 1, b"h": 8}.get(line[:1], 0))
            if line.startswith(b"x"):
                raise ValueError(line)
            await self.wfile.write(reply_to(line))
            if line.startswith(b"q"):
                return


class Quiet:
    """Says nothing of errors, which are asked for."""

    async def handle_error(self, request, client_address): ...


class StreamServer(Quiet, MemoryServer):
    memory_capacity = 64  # bytes


@attrs.define(eq=False)
class Client:
    """One client, and what it knows."""

    address: tuple[str, int]
    transport: MemoryTransport
    keen: bool  # reads whatever comes as soon as it comes
    unsent: bytes = b""
    heard: bytes = b""  # what it has sent while the server had not ended its request
    got: bytes = b""
    ended: bool = False  # its output, in that time
    gone: bool = False  # has closed its connection, or reset it
    said: int = 0

    async def read_on(self):
        with suppress(OSError, trio.ClosedResourceError):
            while (data := self.transport.receive_now(1000)) != b"":
                if data is None:
                    await self.transport.wait_readable()
                else:
                    self.got += data


class StreamLife(Life):
    SERVER, HANDLER = StreamServer, Lines
    RULES = (*Life.RULES, "connect", "say", "end_output", "leave", "read")

    def is_busy(self):
        return len(self.clients) > 2

    def fate_of(self, client):
        """How the server has ended with a client: once, or not yet."""
        ended = [record.info.client_address for record in self.witness.records]
        ended += self.turned_away(by_drain=True) + self.turned_away(by_drain=False)
        return [address for address in ended if address == client.address]

    def client(self):
        """One of those who are there; mostly of those with whom the server is not done."""
        here = [client for client in self.clients if not client.gone]
        if self.draw(st.integers(0, 7)) < 6:
            here = [client for client in here if not self.fate_of(client)] or here
        return self.one_of(*here) if here else None

    async def connect(self):
        """Some connect, one after the other: served, refused or queued as the limits say."""
        hosts, keen = self.some_of("ab", 1), self.draw(st.booleans())
        kinds = self.some_of("eeshb", most=2)
        for host in hosts:
            address = (host, len(self.clients))
            if self.draining:
                with pytest.raises(ConnectionRefusedError):
                    self.server.listener.connect_now(address)
                continue
            expected = self.will_be(host)
            connection = self.server.listener.connect_now(address)
            await wait_all_tasks_blocked()
            client = Client(address, connection._transport, keen)
            self.clients.append(client)
            if keen:
                self.nursery.start_soon(client.read_on)
            assert (address in self.active()) == (expected == "started")
            assert len(self.fate_of(client)) == (expected == "refused")
            await self.say_lines(client, kinds)

    async def say(self):
        """Send some lines, or the rest of them, in one piece: the last one whole or in part."""
        if client := self.client():
            await self.say_lines(client, self.some_of("eeeshbqx"), self.one_of(0, 0, 1, 3))

    async def say_lines(self, client, kinds, kept=0):
        for kind in kinds:
            client.said += 1
            client.unsent += b"%s%d.%d\n" % (kind.encode(), client.address[1], client.said)
        listens = not self.fate_of(client)
        with suppress(OSError):
            said = client.unsent[: max(0, len(client.unsent) - kept)]
            sent = client.transport.send_now(said)
            client.heard += said[:sent] * listens
            client.unsent = client.unsent[sent:]
        await wait_all_tasks_blocked()

    async def end_output(self):
        if client := self.client():
            listens = not self.fate_of(client)
            with suppress(OSError):
                client.transport.send_eof()
                client.ended = client.ended or listens
            client.unsent = b""

    async def leave(self):
        """Be gone; with unread input, that is a reset, too."""
        if client := self.client():
            client.gone = True
            getattr(client.transport, self.one_of("reset", "close"))()

    async def read(self):
        if client := self.client():
            with suppress(OSError):
                client.got += client.transport.receive_now(self.one_of(1, 50, 1000)) or b""

    def clients_agree(self):
        """What a client has read is what it must read, as far as it goes."""
        assert self.server.working == len(self.active())
        for client in self.clients:
            assert replies_to(client.heard, ended=client.ended).startswith(client.got)
            assert len(self.fate_of(client)) <= 1

    def judge(self, record):
        super().judge(record)
        [client] = [c for c in self.clients if c.address == record.info.client_address]
        lines = client.heard.splitlines()
        match record.outcome:
            case Outcome.COMPLETED:
                assert client.gone or client.ended or any(line[:1] == b"q" for line in lines)
            case Outcome.FAILED:
                assert any(line[:1] == b"x" for line in lines)
            case Outcome.DISCONNECTED:
                assert client.gone
            case Outcome.DRAINED:
                assert self.draining
            case Outcome.TIMED_OUT if "(write)" in record.reason:
                assert not client.keen
            case Outcome.TIMED_OUT if "(line)" in record.reason:
                assert client.heard
                assert record.duration > self.timeouts.line - 1e-3
            case Outcome.TIMED_OUT if "(idle)" in record.reason:
                assert record.duration > self.timeouts.idle - 1e-3
        cut = record.outcome is Outcome.CANCELLED or "(request)" in record.reason
        if client.keen and not client.gone and not cut:
            # Every line that it had sent was answered, and it has read all of it.
            assert client.got == replies_to(client.heard, ended=client.ended)

    def clients_are_left(self):
        """Each has met one fate, unless it was queued in a cut; none is left connected."""
        for client in self.clients:
            assert len(self.fate_of(client)) == 1 or (self.cut and not self.fate_of(client))
            if not client.gone:
                with suppress(ConnectionResetError):
                    while data := client.transport.receive_now(1000):
                        client.got += data
                    assert data == b""


# Datagrams ---------------------------------------------------------------------------


class Packets(Working, trioserver.DatagramRequestHandler):
    """Does with each datagram what its first letter says: echo, sleep, hold, nothing, fail (x)."""

    async def handle(self):
        self.server.packets[self.request.info.id] = self.packet
        await trio.sleep({b"s": 1, b"h": 8}.get(self.packet[:1], 0))
        if not self.packet.startswith(b"n"):
            await self.wfile.write(self.packet[:1])
            await self.wfile.write(self.packet[1:].upper())
        if self.packet.startswith(b"x"):
            raise ValueError(self.packet)


class DatagramServer(Quiet, MemoryDatagramServer):
    memory_capacity = 4  # datagrams


class DatagramLife(Life):
    SERVER, HANDLER = DatagramServer, Packets
    RULES = (*Life.RULES, "send", "read", "leave")

    def is_busy(self):
        return self.runs > 0 and len(self.sent) > 4

    def clients_are_left(self):
        """They are there for the next run, too."""

    async def start(self):
        """Serve some clients who keep few replies until they read them."""
        await super().start()
        self.sent, self.server.packets = [], {}
        self.got = {("a", 1): [], ("a", 2): [], ("b", 1): []}
        if self.running:
            clients, capacity = self.server.listener.client, self.draw(st.integers(1, 3))
            self.clients += [clients(address, capacity=capacity) for address in self.got]

    async def send(self):
        """Send some datagrams: served, refused, queued or dropped as the limits say."""
        client = self.one_of(*self.clients)
        for kind in () if client._closed else self.some_of("eeshnx", 1):
            data = b"%s packet %d" % (kind.encode(), len(self.sent))
            if not self.running or self.draining:
                with pytest.raises(ConnectionRefusedError):
                    client.send_now(data)
                return
            expected, before = self.will_be(client.address[0]), self.server.statistics()
            queued = self.queued()
            self.sent.append(data)
            client.send_now(data)
            await wait_all_tasks_blocked()
            after = self.server.statistics()
            is_new = data in self.server.packets.values()
            assert is_new == (expected == "started")
            assert after.refused == before.refused + (expected == "refused")
            assert after.dropped == before.dropped + (expected == "queued" and queued == 4)

    async def read(self):
        client = self.one_of(*self.clients)
        self.got[client.address] += client.received()

    async def leave(self):
        """Be gone: from now on, replies are refused."""
        self.one_of(*self.clients).close()

    def clients_agree(self):
        """Each datagram has one fate, and one whole reply if it was answered."""
        if self.runs:
            self.every_datagram_has_one_fate()
        for client in self.clients:
            answered = (
                self.server.packets[record.info.id]
                for record in self.witness.records
                if record.info.client_address == client.address
                and record.outcome is Outcome.COMPLETED
            )
            replies = [data[:1] + data[1:].upper() for data in answered if data[:1] != b"n"]
            assert self.got[client.address] + list(client._inbox) == replies

    def every_datagram_has_one_fate(self):
        """It is a request, or was refused, dropped or lost in a cut; and is handled once."""
        counts = self.server.statistics()
        handled = list(self.server.packets.values())
        fates = counts.accepted + counts.refused + counts.unaccepted + counts.dropped
        waiting = counts.waiting + (self.queued() if self.running else 0)
        assert fates + waiting == len(self.sent) or (self.cut and fates < len(self.sent))
        assert len(set(handled)) == len(handled) <= counts.accepted
        assert set(handled) <= set(self.sent)
        if self.limits.requests == 1:
            assert handled == [data for data in self.sent if data in handled]

    def judge(self, record):
        super().judge(record)
        packet = self.server.packets.get(record.info.id, b"")
        (client,) = (c for c in self.clients if c.address == record.info.client_address)
        match record.outcome:
            case Outcome.FAILED:
                assert packet[:1] == b"x"
            case Outcome.DISCONNECTED:
                assert client._closed
            case Outcome.DRAINED:
                raise AssertionError(record)
            case Outcome.TIMED_OUT if "(request)" not in record.reason:
                assert "(write)" in record.reason
                assert record.duration > self.timeouts.write - 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("life", [StreamLife, DatagramLife])
@given(data=st.data())
@LIVES
def test_life_of_a_server(life, data):
    """In every life, slots are exact, requests have one record, and no owed reply is lost."""
    # To find the shortest life that fails can take minutes. To dump the stacks
    # of a program that is at work can crash it.
    faulthandler.cancel_dump_traceback_later()
    trio.run(life(data).live, clock=MockClock(autojump_threshold=0))
