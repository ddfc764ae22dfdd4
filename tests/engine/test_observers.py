"""What can be seen of a server: observers, the current request, and the logs."""

import functools
import io
import logging
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace as Space

import attrs
import pytest
import trio
from support import Upper, Witness, hold, read_to_end
from support.memory import MEMORY, ask, asked, come, ended, memory, noting, raises_bare, raising
from support.scenes import Scene, does, end, in_memory, on_tcp, reset, sleep, table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver import Limits, Timeouts
from trioserver.testing import MemoryServer

EVENTS = [name for name in vars(trioserver.Observer) if not name.startswith("_")]
EXIT = SystemExit(3)
GROUP = ExceptionGroup("all", [ValueError("one"), KeyError("two")])


def logged(caplog, name):
    """The records of one logger."""
    return [record for record in caplog.records if record.name == name]


@pytest.mark.parametrize("make", [in_memory, on_tcp])
async def test_events_of_a_whole_run(make):
    """Every event is told once, in order, with its facts; also of the next run, counted anew."""
    server = make(Upper, observers=iter([witness := Witness()]))
    with trio.fail_after(10):
        for _ in range(2):
            witness.events.clear()
            async with server.serving(grace=4):
                address = server.server_address
                assert await ask(server) == b"HELLO\n"
            report = await server.wait_closed()
            info, record = witness.events[1][1], witness.records[0]
            assert witness.events == [
                ("server_listening", (address,)),
                ("request_started", info),
                ("request_finished", info, trioserver.Outcome.COMPLETED, record),
                ("draining", 4),
                ("server_closed", report),
            ]
            assert (record.info, info.server_address) == (info, address)
            assert (info.id, record.bytes_received, record.bytes_sent) == (1, 6, 6)


async def test_events_of_handle_request(autojump_clock):
    """A server that handles requests one by one listens once, and is closed once."""
    async with memory(Upper) as server:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.handle_request)
                assert await ask(server) == b"HELLO\n"
    requests = ["request_started", "request_finished"] * 3
    assert server.witness.names == ["server_listening", *requests, "server_closed"]
    assert [record.info.id for record in server.witness.records] == [1, 2, 3]


async def say_full(connection):
    """Says that the server is full."""
    await connection.send_all(b"full")


@pytest.mark.parametrize("when_full", ["refuse", say_full])
async def test_event_of_a_refused_client(when_full, autojump_clock, caplog):
    """EX-14: who is turned away is told of, by address and reason; or is a request, once told."""
    caplog.set_level(logging.INFO, logger="trioserver")
    server = memory(hold, limits=Limits(requests=1, when_full=when_full))
    async with server.serving(grace=0):
        await server.connect()
        got = await ended(await server.connect(("late", 2)))
        assert server.statistics().refused == (when_full == "refuse")
    names = server.witness.names
    refused = [event[1:] for event in server.witness.events if event[0] == "request_refused"]
    lines = [record.getMessage() for record in logged(caplog, "trioserver.access")]
    line = "client late:2 refused (the server is full (requests))"
    if when_full == "refuse":
        assert (got, names.count("request_started")) == (b"", 1)
        assert refused == [(("late", 2), "the server is full (requests)")]
        assert lines.count(line) == 1
    else:
        assert (got, names.count("request_started")) == (b"full", 2)
        assert refused == []
        assert sorted(server.witness.outcomes) == ["cancelled", "refused"]


# One start and one finish -------------------------------------------------------------


async def swallow(request, client_address, server):
    """Swallows its cancellation."""
    with suppress(trio.Cancelled):
        await trio.sleep_forever()


receive = does(read_to_end)
flood = does(bytes(100_000))


async def refuses(server, request, client_address):
    """Does not let it in."""
    return False


async def waits(server, request, client_address):
    """Never decides."""
    await trio.sleep_forever()


async def forgets(server, request, client_address):
    """Does not await its handler."""
    server.RequestHandlerClass(request, client_address, server)


def hooked(**hooks):
    """A server class with other hooks."""
    return {"kind": type("Hooked", (MemoryServer,), hooks)}


def cancel(server):
    """Cancel the first request."""
    server.cancel_request(1, "not welcome")


def cancel_and_cut(server):
    """Cancel it in two ways."""
    cancel(server)
    server.shutdown(0)


@table(
    ("scene", "outcome", "reason"),
    {
        "answered": (Scene(Upper, {0: [b"hello\n", end]}), "completed", ""),
        "cancellation swallowed": (Scene(swallow, {}, 1, 0), "completed", ""),
        "error": (Scene(raising(ValueError("oops"))), "failed", "ValueError: oops"),
        "EX-04: group": (Scene(raising(GROUP), logs=["one.*two"]), "failed", "one"),
        "not awaited": (Scene(Upper, **hooked(finish_request=forgets)), "failed", "never"),
        "idle": (Scene(receive), "timed_out", "idle"),
        "write": (Scene(flood, reads_from=50, breaks=True), "timed_out", "write"),
        "request": (Scene(hold), "timed_out", "request"),
        "handshake": (Scene(Upper, **hooked(verify_request=waits)), "timed_out", "handshake"),
        "reset": (Scene(receive, {1: reset}), "disconnected", "reset"),
        "not verified": (Scene(Upper, **hooked(verify_request=refuses)), "refused", "verify"),
        "drained": (Scene(receive, {}, 1), "drained", "drains"),
        "grace over": (Scene(hold, {}, 1), "cancelled", "grace"),
        "cut at once": (Scene(hold, {}, 1, 0), "cancelled", "grace"),
        "cancelled": (Scene(hold, meanwhile={1: cancel}), "cancelled", "not welcome"),
        "cancelled twice": (Scene(hold, meanwhile={1: cancel_and_cut}), "cancelled", "not welcome"),
    },
)
async def test_one_start_and_one_finish(scene, outcome, reason, autojump_clock, caplog):
    """EX-14, CX-13: every request has one start, one finish and one line, whatever happened.

    One that fails in its arrival has neither of the two, but an event of its own.
    """
    caplog.set_level(logging.INFO, logger="trioserver.access")
    timeouts = Timeouts(idle=10, write=10, request=20, handshake=10)
    scene = attrs.evolve(scene, timeouts=timeouts, outcomes=[outcome], reason=reason)
    played = await scene.play()
    fails = reason in {"handshake", "verify"}
    told = ["arrival_failed"] if fails else ["request_started", "request_finished"]
    assert [it for it in played.witness.names if it in {*told, "request_started"}] == told
    assert len([record for record in caplog.records if hasattr(record, "request_id")]) == 1
    statistics = played.report.statistics
    assert statistics.accepted == sum(statistics.outcomes.values()) == 1
    assert (statistics.outcomes[outcome], statistics.arrivals_failed) == (1, fails)
    assert statistics.active == statistics.lingering == 0


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        *[("close", "cancel", "completed"), ("cancel", "close", "cancelled")],
        *[("reset", "cancel", "disconnected"), ("cancel", "reset", "cancelled")],
    ],
)
async def test_one_finish_when_an_end_and_a_cancellation_meet(first, second, outcome):
    """CX-13: of two things in one tick the one that came first decides, and there is one record."""
    server = memory(Upper)
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        await wait_all_tasks_blocked()
        for action in (first, second):
            if action == "cancel":
                cancel(server)
            else:
                getattr(client, action)()
        await wait_all_tasks_blocked()
        assert server.witness.outcomes == [outcome]


async def test_record_measures_the_request(autojump_clock, caplog):
    """A record has the bytes both ways, and the time from accept to outcome, without the linger.

    In the access log it is one INFO line; listening, draining and the end have one each.
    """
    caplog.set_level(logging.INFO, logger="trioserver")
    server = memory(does(lambda request: request.recv(), sleep(1.5), b"because!"))
    async with server.serving(grace=4):
        await trio.sleep(5)
        client = await server.connect(("alice", 7))
        await client.send_all(b"why?")
        assert await read_to_end(client) == b"because!"
        await trio.sleep(1)
        await client.aclose()
    (record,) = server.witness.records
    assert (record.bytes_received, record.bytes_sent, record.duration) == (4, 8, 1.5)
    info = record.info
    assert (info.client_address, info.server_address) == (("alice", 7), ("memory", 1))
    assert (info.mode, info.started) == ("task", 5)
    names = {(record.name, record.levelname) for record in caplog.records}
    assert names == {("trioserver.access", "INFO")}
    assert [record.getMessage() for record in caplog.records] == [
        "listening on memory:1",
        "request 1 from alice:7 completed after 1.500 s, 4 bytes in, 8 bytes out",
        "draining, 4 s of grace",
        "closed: shutdown() was called: ended in 0.000 s of 4 s grace, 0 unaccepted",
    ]


async def test_record_is_told_when_the_slot_is_free(autojump_clock):
    """When an observer hears of the end, the server's own counts have it already."""
    seen = []

    def look(*facts):
        seen.append((len(server.requests), server.statistics().active))

    server = memory(Upper, observers=[Space(request_started=look, request_finished=look)])
    async with server.serving():
        await ask(server)
    assert seen == [(1, 1), (0, 0)]


# Observers that misbehave -------------------------------------------------------------


class Alike(Space):
    """Says that it is equal to its like."""

    def __eq__(self, other):
        return isinstance(other, Alike)

    __hash__ = None


def raises(event, error):
    """An observer that raises in that event, and writes down how it is called."""
    calls = []

    def told(name, *facts):
        calls.append(name)
        if name == event:
            raise error

    return Alike(calls=calls, **{name: functools.partial(told, name) for name in EVENTS})


@pytest.mark.parametrize(
    "event",
    ["server_listening", "request_started", "request_finished", "draining", "server_closed"],
)
async def test_raising_observer_is_dropped(event, autojump_clock, caplog):
    """EX-12: one log line, no further call; nobody else notices. The next run tells it again.

    Not even another one notices that says that it is equal to it.
    """
    error = ValueError("the observer's own")
    sound, broken = raises("", error), raises(event, error)
    server = memory(Upper, observers=[trioserver.Observer(), sound, broken])
    for run in (1, 2):
        async with server.serving():
            assert await ask(server) == b"HELLO\n"
            assert await ask(server) == b"HELLO\n"
        assert broken.calls[-1] == event
        assert broken.calls.count(event) == run
    assert sound.calls == server.witness.names
    assert server.witness.outcomes == ["completed"] * 4
    for record in (records := logged(caplog, "trioserver.error")):
        assert record.levelno == logging.ERROR
        assert f"an observer raised in {event}" in record.getMessage()
        assert "Alike" in record.getMessage()
        assert record.exc_info[1] is error
    assert len(records) == 2


@pytest.mark.parametrize("event", ["request_started", "request_finished", "arrival_failed"])
async def test_observer_of_one_event(event, autojump_clock, caplog):
    """It is told of that one, although nobody else hears of requests, and nothing is logged."""
    caplog.set_level(logging.WARNING, "trioserver.access")
    told = []
    body = {event: lambda self, info, *facts: told.append(info.id)}
    only = type("Only", (trioserver.Observer,), body)()
    kind = hooked(verify_request=refuses)["kind"] if event == "arrival_failed" else MemoryServer
    async with kind(("memory", 1), Upper, observers=[only]).serving() as server:
        for _ in range(2):
            await ask(server)
    assert told == [1, 2]


async def test_raising_observer_inside_another_event(autojump_clock, caplog):
    """One that was dropped while an event was being told is not told of that event either."""

    def shut_down(*facts):
        server.shutdown()  # tells of the drain before the others hear of this

    fragile = raises("draining", OSError())
    server = memory(Upper, observers=[Space(request_finished=shut_down), fragile])
    async with server.serving():
        assert await ask(server) == b"HELLO\n"
        await server.wait_closed()
    assert "request_finished" not in fragile.calls
    assert server.witness.outcomes == ["completed"]
    assert len(logged(caplog, "trioserver.error")) == 1


class Moody:
    """Raises when it is merely looked at."""

    sulks = False

    @property
    def request_finished(self):
        if self.sulks:
            raise ValueError("not today")
        return print


@pytest.mark.parametrize("make", [Moody, lambda: Space(request_finished=lambda info: None)])
async def test_observer_that_cannot_be_called(make, autojump_clock, caplog):
    """EX-12: whose attributes raise, or whose method takes something else, is dropped as well."""
    observer = make()
    server = memory(Upper, observers=[observer])
    observer.sulks = True
    async with server.serving():
        assert await ask(server) == b"HELLO\n"
    [record] = logged(caplog, "trioserver.error")
    assert "an observer raised in request_finished" in record.getMessage()


class ExitsInTheSweep(MemoryServer):
    """Its get_request exits in a drain."""

    def get_request(self, listener):
        if self.draining:
            raise EXIT
        return super().get_request(listener)


@pytest.mark.parametrize(
    ("where", "by"),
    [
        *((event, "") for event in ["server_listening", "request_started", "request_finished"]),
        ("server_closed", "task"),
        *(("draining", by) for by in ["task", "thread", "cancellation"]),
        *(("get_request", by) for by in ["task", "thread"]),
    ],
)
async def test_exit_of_an_observer(where, by):
    """EX-02: SystemExit of an observer stops the server, which raises it, after all was closed.

    Also one in a drain: whoever calls ``shutdown`` is not to blame. Whom it cuts is told so.
    """
    kind = ExitsInTheSweep if where == "get_request" else MemoryServer
    timeouts = Timeouts(linger=0)
    server = memory(Upper, kind, observers=[raises(where, EXIT)], timeouts=timeouts)
    clients = []

    async def whole_run():
        with trio.CancelScope() as scope:
            async with server.serving():
                clients.append(await server.connect())
                if by:
                    await clients[0].send_all(b"hello\n")
                    assert await clients[0].receive_some() == b"HELLO\n"
                else:
                    await clients[0].send_eof()
                if by == "thread":
                    await trio.to_thread.run_sync(server.shutdown, 5)
                elif by == "task":
                    server.shutdown(5)
                elif by:
                    scope.cancel(reason="enough")
                await trio.sleep_forever()

    with trio.fail_after(10):
        await raises_bare(EXIT, whole_run)
        assert [await read_to_end(client) for client in clients] == [b""] * len(clients)
    assert server.snapshot().state == "unbound"
    statistics = server.statistics()
    assert (statistics.active, statistics.lingering) == (0, 0)
    assert statistics.accepted == len(clients)
    assert sum(statistics.outcomes.values()) == len(clients) == len(server.witness.records)
    if where.startswith("request"):
        report = await server.wait_closed()
        assert report.reason == "the server failed: SystemExit: 3"
        assert {record.reason for record in report.requests} <= {report.reason}


async def test_observer_cancels_a_request(autojump_clock):
    """An observer may cancel the very request whose start it is told of."""
    server = memory(hold, observers=[Space(request_started=lambda _: cancel(server))])
    async with server.serving():
        assert await read_to_end(await server.connect()) == b""
    [record] = server.witness.records
    assert (record.outcome, record.reason) == ("cancelled", "not welcome")


def yields(info):
    """Runs nothing when it is called."""
    yield


@pytest.mark.parametrize(
    "observers",
    [None, 5, "draining", Witness(), [object()], [None], ["draining"], [Witness]],
    ids=["None", "int", "str", "bare", "object", "[None]", "[str]", "class"],
)
def test_observers_are_validated(observers):
    """What is not a sequence of observers is a TypeError that names the field and the events."""
    message = "MemoryServer.observers must be .* request_started, request_finished"
    with pytest.raises(TypeError, match=message):
        MemoryServer(MEMORY, Upper, observers=observers)
    server = memory(Upper)
    with pytest.raises(TypeError, match=message):
        server.observers = observers


@pytest.mark.parametrize("event", [hold, True, yields], ids=["async", "not callable", "yields"])
def test_observers_must_be_callable_and_plain(event):
    """EX-10: a method that could never be called rightly is found when the server is built."""
    with pytest.raises(TypeError, match="observers"):
        memory(Upper, observers=[Space(request_started=event)])


# The current request ------------------------------------------------------------------


def current_id():
    """The id of the current request."""
    info = trioserver.current_request()
    return None if info is None else info.id


def note(party, name, *arguments):
    """Write down the current request of a hook, an event, or a method of a handler."""
    getattr(party, "server", party).seen[name] = current_id()


async def fails(self):
    """See its own facts, and fail."""
    assert trioserver.current_request() is self.info
    raise ValueError("oops")


HOOKS = ["verify_request", "process_request", "handle_error", "shutdown_request", "close_request"]
INSIDE = [*HOOKS, "setup", "handle", "finish", "request_started", "request_finished"]
OUTSIDE = ["service_actions", "server_close", "server_listening", "draining", "server_closed"]


async def test_current_request_in_handlers_and_hooks(autojump_clock):
    """A request's hooks, its handler's methods and its observers see that request; others none."""

    def told(name, *facts):
        note(server, name)

    handler = type("Fails", (trioserver.BaseRequestHandler,), {"handle": fails})
    handler = noting(handler, ["setup", "handle", "finish"], note)
    kind = noting(MemoryServer, [*HOOKS, "service_actions", "server_close"], note)
    observer = Space(**{name: functools.partial(told, name) for name in EVENTS})
    server = memory(handler, kind, observers=[observer])
    server.seen = {}
    async with server.serving():
        await ask(server)
        assert current_id() is None
    assert server.seen == {**dict.fromkeys(INSIDE, 1), **dict.fromkeys(OUTSIDE)}


async def test_current_request_of_each(autojump_clock):
    """Requests side by side see themselves, after every wait, as do those of a server inside."""
    seen = []

    async def look(request, client_address, server):
        seen.append(trioserver.current_request() is request.info)

    async def outer(request, client_address, server):
        async with (backend := memory(look)).serving():
            for _ in range(3):
                await ask(backend)
                await trio.sleep(1)
                await look(request, client_address, server)

    server = memory(outer)
    async with server.serving():
        await come(server, 3)
    assert seen == [True] * 18


async def test_current_request_in_child_tasks_and_threads():
    """Tasks and threads that a handler starts inherit it."""
    seen = []

    async def look():
        seen.append(current_id())

    async def start(request, client_address, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
        seen.append(await trio.to_thread.run_sync(current_id))
        seen.append(await trio.to_thread.run_sync(trio.from_thread.run_sync, current_id))

    with trio.fail_after(10):
        await asked(start)
    assert seen == [1, 1, 1]


async def test_filter_marks_every_record(autojump_clock):
    """`RequestLogFilter` puts id and address on a record of anybody's, inside a request.

    It leaves attributes alone that somebody has set before.
    """
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(trioserver.RequestLogFilter())
    handler.setFormatter(logging.Formatter("%(request_id)s %(client_address)s %(message)s"))
    logger = logging.getLogger("somebody's")
    logger.addHandler(handler)

    async def log(request, client_address, server):
        logger.error("inside")

    try:
        logger.error("outside", extra={"request_id": "mine"})
        async with (server := memory(log)).serving():
            await ask(server, b"", ("alice", 7))
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue() == "mine None outside\n1 ('alice', 7) inside\n"


# The logs -----------------------------------------------------------------------------


async def test_access_log_says_why(autojump_clock, caplog):
    """The line of a request that did not complete has the reason, and fields to filter by."""
    caplog.set_level(logging.INFO, logger="trioserver")
    server = memory(receive, timeouts=Timeouts(idle=10))
    async with server.serving():
        await read_to_end(await server.connect(("alice", 7)))
    (record,) = [record for record in caplog.records if hasattr(record, "request_id")]
    assert record.getMessage() == (
        "request 1 from alice:7 timed_out (no byte from the peer for 10 s (idle))"
        " after 10.000 s, 0 bytes in, 0 bytes out"
    )
    assert (record.request_id, record.client_address) == (1, ("alice", 7))
    assert record.outcome == "timed_out"
    assert record.exc_info is None


async def test_access_log_keeps_to_one_line(autojump_clock, caplog):
    """A reason in many lines, or a long one, which a client may have made up, is one short line.

    A client of a Unix socket chooses the name of its own, and forges nothing with it either.
    """
    caplog.set_level(logging.INFO, logger="trioserver")

    async def quote(request, client_address, server):
        raise ValueError((await request.recv()).decode())

    lie = "x\nrequest 2 from bank completed\r\x1b[2J"
    async with (server := memory(quote)).serving():
        await ask(server, lie.encode() + b"x" * 1000, "/tmp/" + lie)  # noqa: S108
    assert len(logged(caplog, "trioserver.error")) == 1
    assert all(record.getMessage().isprintable() for record in caplog.records)
    (record,) = [record for record in caplog.records if hasattr(record, "request_id")]
    assert "ValueError" in record.getMessage()
    assert "xxx..." in record.getMessage()
    assert len(record.getMessage()) < 800


async def test_access_log_filter_that_raises(autojump_clock, caplog, monkeypatch):
    """EX-12: somebody's broken filter on our logger harms nobody."""

    def broken(record):
        raise ValueError("the filter's own")

    caplog.set_level(logging.INFO, logger="trioserver.access")
    monkeypatch.setattr(logging.getLogger("trioserver.access"), "filters", [broken])
    assert (await asked(Upper)).answers == [b"HELLO\n"]


async def test_error_log_has_the_traceback_of_the_error(autojump_clock, caplog):
    """EX-01: one ERROR record, with the client's address, and that very exception's traceback.

    Not of one that the handler got over. It names the function that logged it, not a helper.
    """
    caplog.set_level(logging.INFO, logger="trioserver")
    error = KeyError("final")

    async def fail(request, client_address, server):
        try:
            raise ValueError("got over")
        except ValueError:
            await trio.lowlevel.checkpoint()
        raise error

    async with (server := memory(fail)).serving():
        await ask(server, b"", ("alice", 7))
    (record,) = logged(caplog, "trioserver.error")
    assert (record.levelno, record.funcName) == (logging.ERROR, "handle_error")
    assert "alice:7" in record.getMessage()
    assert record.exc_info[1] is error
    assert "in fail" in caplog.text
    assert "KeyError: 'final'" in caplog.text
    assert "got over" not in caplog.text
    assert "log_safely" not in {record.funcName for record in caplog.records}


SERVE_ONE = """
import logging, trio, trioserver, trioserver.testing

{configure}

async def handler(request, client_address, server):
    {body}

async def main():
    server = trioserver.testing.MemoryServer(("memory", 1), handler)
    async with server.serving():
        client = await server.connect(("alice", 7))
        await client.send_eof()
        assert await client.receive_some() == b""

trio.run(main)
"""
IS_NOT_CONFIGURED = """
names = ["trioserver", "trioserver.access", "trioserver.error"]
loggers = [logging.root, *map(logging.getLogger, names)]
assert [logger.handlers + logger.filters for logger in loggers] == [[], [], [], []]
assert [logger.level for logger in loggers] == [logging.WARNING, 0, 0, 0]
assert all(logger.propagate and not logger.disabled for logger in loggers)
assert logging.lastResort.level == logging.WARNING
"""


@table(
    ("body", "configure", "lines"),
    {
        "EX-01: an error of a handler is on stderr, with its traceback": (
            "raise ValueError('oops')",
            "",
            ["error while serving alice:7", "Traceback (most recent call last)"],
        ),
        "importing configures nothing; without errors, nothing is printed": (
            *("pass", IS_NOT_CONFIGURED, []),
        ),
        "one call of logging.basicConfig is enough to have the access log": (
            "pass",
            "logging.basicConfig(level=logging.INFO)",
            [
                "INFO:trioserver.access:listening on memory:1",
                "INFO:trioserver.access:request 1 from alice:7 completed after ",
                "INFO:trioserver.access:draining, ",
                "INFO:trioserver.access:closed: ",
            ],
        ),
    },
)
def test_program_that_configures_little(body, configure, lines):
    """Errors are shown without any configuration, and nothing else is."""
    source = SERVE_ONE.format(body=body, configure=configure)
    command = [sys.executable, "-W", "error", "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    shown = done.stderr.splitlines()
    if "raise" in body:
        assert shown[-1] == "ValueError: oops"
        shown = shown[:2]
    for line, start in zip(shown, lines, strict=True):
        assert line.startswith(start)
