"""What workers are made of: their shares, what they tell, and what they are made from."""

import os
import socket
import ssl

import attrs
import pytest
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st
from support import Upper, hold
from support.scenes import table

import trioserver
from trioserver import Outcome, RequestInfo, RequestRecord, RequestSnapshot, Statistics
from trioserver._engine.peers import ABSENT, PAUSE, SLACK, Peers
from trioserver._facts.snapshots import ServerSnapshot
from trioserver._facts.sums import report_of, sum_of, without_end
from trioserver._modes.processes.protocol.frames import (
    FrameError,
    Frames,
    Message,
    decode_facts,
    encode_facts,
)
from trioserver._modes.processes.server.line import Line
from trioserver._program.workers import wire
from trioserver._program.workers.hiring import share_of
from trioserver._program.workers.scoreboard import Scoreboard, new_scoreboard
from trioserver._program.workers.setup import packed
from trioserver.testing import MemoryServer

# Shares -----------------------------------------------------------------------------


def peers(held, accepted=None, place=0):
    """One of several, and the numbers that all of them see."""
    rows = []
    for values in (held, accepted or [0] * len(held)):
        row = memoryview(bytearray(8 * len(values))).cast("q")
        for number, value in enumerate(values):
            row[number] = value
        rows.append(row)
    return Peers(*rows, place), *rows


@table(
    ("held", "waits"),
    {
        "as many as the others": ([5, 5, 5], False),
        "a few more": ([5 + SLACK, 5, 5], False),
        "well more than one of them": ([6 + SLACK, 9, 5], True),
        "an eighth more, of many": ([112, 100], False),
        "more than an eighth more": ([113, 100], True),
        "nobody else is there": ([50, ABSENT, ABSENT], False),
    },
)
async def test_who_gives_way(held, waits, autojump_clock):
    """Whoever holds well more than somebody else leaves the next client to that one."""
    one, *_ = peers(held)
    await one.give_way()
    assert trio.current_time() == (PAUSE if waits else 0)


async def test_peer_that_hangs(autojump_clock):
    """It costs a pause, as nobody accepts in that; while somebody does, there are more."""
    one, _, accepted = peers([9, 0, 0])
    await one.give_way()
    assert trio.current_time() == PAUSE
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accepts_now_and_then, accepted)
        await one.give_way()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == pytest.approx(6 * PAUSE)


async def accepts_now_and_then(accepted):
    """Somebody who accepts once in each pause."""
    while True:
        await trio.sleep(PAUSE / 2)
        accepted[1] += 1


async def test_peer_that_catches_up(autojump_clock):
    """There is nothing to wait for any more then."""
    one, held, accepted = peers([9, 0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.give_way)
        await trio.sleep(PAUSE / 2)
        held[1], accepted[1] = 9, 9
    assert trio.current_time() == PAUSE


class Shared(MemoryServer):
    """One of two who share their clients."""


async def test_what_the_others_see(autojump_clock):
    """How many clients a server holds, and has accepted; nothing while it is suspended."""
    one, held, accepted = peers([ABSENT, 7])
    server = Shared(("memory", 1), hold)
    server._peers = one
    one.come(0)
    async with server.serving(grace=0):
        server.listener.connect_now()
        server.listener.connect_now()
        await trio.sleep(1)
        assert (held[0], accepted[0]) == (2, 2)
        server.suspend()
        assert held[0] == ABSENT
        server.resume()
        assert held[0] == 2
    assert held[0] == 0


async def test_one_at_a_time(autojump_clock):
    """With peers each takes one client whenever some are there, so that a burst is shared."""
    one, held, _ = peers([0, 0])
    server = Shared(("memory", 1), hold)
    server._peers = one
    one.come(0)
    async with server.serving(grace=0):
        for _ in range(8):
            server.listener.connect_now()
        await trio.testing.wait_all_tasks_blocked()
        assert held[0] == SLACK + 1
        held[1] = 8
        await trio.sleep(10 * PAUSE)
        assert held[0] == 8


def test_scoreboard():
    """All who map it see the same; a place that is cleared is nobody's."""
    number = new_scoreboard(2, 3)
    one, other = Scoreboard(number, 2, 3), Scoreboard(number, 2, 3)
    os.close(number)
    for server in (0, 1):
        one.peers(server, 2).come(5 + server)
    seen = [list(other.peers(server, 0)._held) for server in (0, 1)]
    assert seen == [[ABSENT, ABSENT, 5], [ABSENT, ABSENT, 6]]
    other.clear(2)
    assert list(one.peers(1, 0)._held) == [ABSENT] * 3


# What they tell ---------------------------------------------------------------------

ADDRESSES = st.one_of(
    st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65_535)),
    st.tuples(st.ip_addresses(v=6).map(str), st.integers(0, 65_535), st.just(0), st.just(3)),
    st.text(max_size=20),
    st.binary(max_size=20),
)
COUNTS = st.integers(0, 1 << 40)
SECONDS = st.integers(0, 1000).map(float)
STATISTICS = st.builds(
    Statistics,
    **{one.name: COUNTS for one in attrs.fields(Statistics) if one.name != "outcomes"},
    outcomes=st.fixed_dictionaries(dict.fromkeys(Outcome, COUNTS)),
)
INFOS = st.builds(
    RequestInfo,
    id=st.integers(1, 1 << 40),
    client_address=ADDRESSES,
    peer_address=ADDRESSES,
    server_address=ADDRESSES,
    mode=st.sampled_from(["task", "thread", "process"]),
    started=SECONDS,
    started_at=SECONDS,
)
RECORDS = st.builds(
    RequestRecord,
    info=INFOS,
    outcome=st.sampled_from(Outcome),
    reason=st.text(),
    duration=SECONDS,
    bytes_received=COUNTS,
    bytes_sent=COUNTS,
)
SNAPSHOTS = st.builds(
    ServerSnapshot,
    name=st.just(""),
    state=st.text(),
    uptime=SECONDS,
    listeners=st.just(()),
    requests=st.lists(
        st.builds(
            RequestSnapshot,
            info=INFOS,
            state=st.text(),
            age=SECONDS,
            time_left=st.one_of(SECONDS, st.just(float("inf"))),
            bytes_received=COUNTS,
            bytes_sent=COUNTS,
            task=st.none(),  # that number means nothing elsewhere
        ),
        max_size=3,
    ).map(tuple),
    statistics=STATISTICS,
    workers=st.just(()),
)


def told(facts):
    """What comes over the line."""
    return decode_facts(encode_facts(**facts))[0]


@given(RECORDS)
def test_records_travel(record):
    """A record arrives as it was."""
    assert wire.record_from(told(wire.record_facts(record, 2000.0)), 2000.0) == record


@given(SNAPSHOTS)
def test_snapshots_travel(snapshot):
    """So does a snapshot, with its state, its requests and its counts."""
    expected = (snapshot.state, snapshot.requests, snapshot.statistics)
    assert wire.snapshot_from(told(wire.snapshot_facts(snapshot, 2000.0)), 2000.0) == expected


NONSENSE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.text(), st.integers()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.sampled_from(["info", "outcome", "reason", "duration", "received"]), NONSENSE)
def test_records_that_make_no_sense(name, value):
    """They are refused as what they are, whatever a worker tells: it is not trusted."""
    info = RequestInfo(id=1, client_address="", server_address="", started=0, started_at=0)
    record = RequestRecord(
        info=info, outcome=Outcome.FAILED, reason="", duration=0, bytes_received=0, bytes_sent=0
    )
    facts = {**wire.record_facts(record, 0), name: value}
    try:
        made = wire.record_from(facts, 0)
    except FrameError:
        return
    assert wire.record_from(told(wire.record_facts(made, 0)), 0) == made


@table(
    "facts",
    {
        "nothing": {},
        "a list": {"requests": [], "statistics": [], "state": ""},
        "a count that is none": {"requests": [], "statistics": {"accepted": "x"}, "state": ""},
        "a request that is none": {"requests": [3], "statistics": {}, "state": ""},
    },
)
def test_snapshots_that_make_no_sense(facts):
    """They are refused, and the message has what was told."""
    with pytest.raises(FrameError, match="not what a worker tells"):
        wire.snapshot_from(facts, 0)


@given(st.lists(STATISTICS, max_size=3))
def test_sums(parts):
    """All counts of all of them; of none, none."""
    total = sum_of(parts)
    assert total.dropped == max((one.dropped for one in parts), default=0)  # of one socket
    for name in ("accepted", "refused", "bytes_sent"):
        assert getattr(total, name) == sum(getattr(one, name) for one in parts)
    assert total.outcomes == {it: sum(one.outcomes[it] for one in parts) for it in Outcome}


def test_end_without_words():
    """Of a worker that was killed, whoever it served was killed with it."""
    known = Statistics(accepted=5, active=3, waiting=1, outcomes={Outcome.COMPLETED: 2})
    ended = without_end(known)
    assert (ended.active, ended.waiting, ended.unaccepted) == (0, 0, 1)
    assert ended.outcomes[Outcome.KILLED] == 3
    report = report_of("SIGTERM", [], [ended])
    assert (report.statistics.accepted, report.clean) == (5, True)


# What they are made from ----------------------------------------------------------------


def make():
    """A server, as a function at the top of a module makes one."""
    return trioserver.TCPServer(("127.0.0.1", 0), Upper)


class Odd(trioserver.TCPServer):
    """A server with an attribute of its own."""

    tool: object = None


def with_a_tool():
    """A server with an attribute that does not pickle."""
    server = make()
    server.tool = lambda: None
    return server


@table(
    ("server", "message"),
    {
        "a handler in a function": (
            lambda: trioserver.TCPServer(("127.0.0.1", 0), lambda *_: None),
            r"TCPServer\.RequestHandlerClass does not pickle, so no worker can have it",
        ),
        "an attribute of its own": (with_a_tool, r"TCPServer\.tool does not pickle"),
        "a TLS context": (
            lambda: trioserver.TCPServer(("127.0.0.1", 0), Upper, ssl_context=a_context()),
            r"TCPServer\.ssl_context does not pickle",
        ),
    },
)
def test_servers_that_do_not_pickle(server, message):
    """It is said which part does not, and what to do."""
    made = server()
    with pytest.raises(TypeError, match=message) as caught:
        packed([made], [[made]])
    assert '"module:attribute"' in str(caught.value)


def a_context():
    """One that proves nothing."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def test_server_on_sockets_that_were_given():
    """The sockets come beside it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = trioserver.TCPServer(sock, Upper)
        assert b"Upper" in packed([server], [[server]])


def test_function_that_makes_them():
    """It is called in each worker, if it can be found there; else what it has made travels."""
    server = make()
    assert b"make" in packed([make], [[server]])
    assert b"Upper" in packed([lambda: server], [[server]])


# Arguments -----------------------------------------------------------------------------


@table(
    ("arguments", "kind", "message"),
    {
        "none": ({"workers": 0}, ValueError, "workers must be a number between 1 and 1024, or"),
        "too many": ({"workers": 1025}, ValueError, "'auto', not 1025"),
        "a text": ({"workers": "many"}, TypeError, "or 'auto', not 'many'"),
        "a truth value": ({"workers": True}, TypeError, "not True"),
        "fewer requests than workers": (
            {"workers": 4, "total_requests": 3},
            ValueError,
            "total_requests must be a number of at least 4, one for each worker, or None, not 3",
        ),
        "requests that are no number": ({"total_requests": "3"}, TypeError, "not '3'"),
    },
)
def test_wrong_arguments(arguments, kind, message):
    """Each is named, with what was expected, before anything is bound."""
    with pytest.raises(kind, match=message):
        trioserver.run(make, **arguments)


def test_total_requests_without_workers(virtual_clock, handlers):
    """They are those of the one process there is."""
    server = MemoryServer(("memory", 1), hold)

    async def look(server):
        assert server.limits.requests == 3
        server.shutdown()

    def start(_):
        trio.lowlevel.spawn_system_task(look, server)

    trioserver.run(server, total_requests=3, on_ready=start)


@given(st.integers(1, 64), st.integers(0, 10_000))
def test_shares_of_a_total(seats, more):
    """All together have all of it, and nobody has more than one more than another one."""
    shares = [share_of(seats + more, seat, seats) for seat in range(seats)]
    assert sum(shares) == seats + more
    assert max(shares) - min(shares) <= 1


def test_listeners_that_are_no_sockets(virtual_clock, handlers):
    """Only sockets can be passed to a worker."""
    server = MemoryServer(("memory", 1), Upper)
    with pytest.raises(RuntimeError, match=r"the listener of MemoryServer at .* is no socket"):
        trioserver.run(lambda: server, workers=2)


@given(NONSENSE, NONSENSE)
def test_rests_that_make_no_sense(records, unaccepted):
    """Records, and clients that were not served, are no reason to trust a worker either."""
    try:
        made = wire.rest_from({"records": records, "unaccepted": unaccepted}, 0)
    except FrameError:
        return
    assert len(made) == 2


async def test_orders_that_do_not_fit():
    """They are sent as soon as there is room, whole and in order: none is lost."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        line, frames, heard = Line(ours), Frames(), []
        bodies = [b"%d" % number * 1000 for number in range(2000)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.send_posted)
            for body in bodies:
                line.post(Message.ORDER, body)
            while len(heard) < len(bodies):
                await trio.lowlevel.wait_readable(theirs)
                heard += [body for _, body in frames.feed(theirs.recv(65_536))]
            nursery.cancel_scope.cancel()
    assert heard == bodies


async def test_orders_to_a_worker_that_has_ended():
    """Nobody minds: whoever listens to it finds out."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        theirs.close()
        line = Line(ours)
        line.post(Message.ORDER, b"")
        line.post(Message.ORDER, b"")
        with trio.move_on_after(0.01) as scope:
            await line.send_posted()
        assert scope.cancelled_caught
