"""What can be seen of a server: observers, the current request, and the logs."""

import functools
import io
import logging
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from types import SimpleNamespace as Space
from typing import Any

import attrs
import pytest
import trio
from support import Upper, Witness, hold, read_to_end, running
from support.memory import MEMORY, ask, asked, come, ended, memory, noting, raises_bare, raising
from support.scenes import table
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import MemoryServer


def logged(caplog, name):
    """The records of one logger."""
    return [record for record in caplog.records if record.name == name]


# Every event --------------------------------------------------------------------------


async def test_events_of_a_whole_run(autojump_clock):
    """Every event is told once, in order, with its facts; also of the next run, counted anew."""
    server = memory(Upper)
    witness = server.witness
    for _ in range(2):
        witness.events.clear()
        async with server.serving(grace=4):
            assert await ask(server) == b"HELLO\n"
        report = await server.wait_closed()
        info, record = witness.events[1][1], witness.records[0]
        assert witness.events == [
            ("server_listening", (("memory", 1),)),
            ("request_started", info),
            ("request_finished", info, trioserver.Outcome.COMPLETED, record),
            ("draining", 4),
            ("server_closed", report),
        ]
        assert record.info == info
        assert (info.id, record.bytes_received, record.bytes_sent) == (1, 6, 6)


async def test_events_of_a_cut(autojump_clock):
    """A server that is cancelled tells of a drain without grace, and of each end, with a reason."""
    server = memory(hold)
    with trio.CancelScope() as scope:
        async with server.serving():
            [client] = await come(server)
            scope.cancel(reason="enough")
            await trio.sleep_forever()
    assert await read_to_end(client) == b""
    names = ["draining", "request_finished", "request_started", "server_closed", "server_listening"]
    assert sorted(server.witness.names) == names
    assert server.witness.names[-1] == "server_closed"
    assert [event[1] for event in server.witness.events if event[0] == "draining"] == [0]
    [record] = server.witness.records
    assert (record.outcome, record.reason) == ("cancelled", "enough")
    assert trio.current_time() == 0


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
    server = memory(hold, limits=trioserver.Limits(requests=1, when_full=when_full))
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


async def test_event_of_a_failed_accept(autojump_clock):
    """An error of an accept is told of with the listener's address."""
    error = ConnectionAbortedError(103, "Software caused connection abort")
    server = memory(Upper)
    async with server.serving():
        server.listener.fail(error)
        assert await ask(server) == b"HELLO\n"
    assert ("accept_failed", ("memory", 1), error) in server.witness.events


async def test_event_of_listening_on_sockets():
    """`server_listening` has the bound addresses, all of them."""
    server = trioserver.TCPServer(("127.0.0.1", 0), Upper, observers=[witness := Witness()])
    async with running(server) as address:
        assert await ask(server) == b"HELLO\n"
    assert witness.events[0] == ("server_listening", (address,))
    assert address[1] > 0
    assert witness.records[0].info.server_address == address


# One start and one finish -------------------------------------------------------------


async def swallow(request, client_address, server):
    """Swallows its cancellation."""
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        return


async def receive(request, client_address, server):
    """Receives until the peer ends its input."""
    await read_to_end(request)


async def flood(request, client_address, server):
    """Sends more than the pipe holds."""
    await request.sendall(bytes(100_000))


class Servers:
    """Hooks of servers."""

    async def refuses(self, request, client_address):
        return False

    async def never_decides(self, request, client_address):
        await trio.sleep_forever()
        raise AssertionError

    async def forgets(self, request, client_address):
        self.RequestHandlerClass(request, client_address, self)

    async def leaves(self, request):
        raise SystemExit(3)


class Clients:
    """What a client does, or is done to it."""

    async def nothing(self, server):
        pass

    async def says_hello(self, server):
        await self.send_all(b"hello\n")
        await self.send_eof()

    async def resets(self, server):
        self.reset()

    async def is_drained(self, server):
        server.shutdown(grace=5)

    async def is_cancelled(self, server):
        assert server.cancel_request(1, "not welcome")

    async def is_cancelled_twice(self, server):
        server.cancel_request(1, "not welcome")
        server.shutdown(grace=0)

    async def is_cut_at_once(self, server):
        server.shutdown(grace=0)


@attrs.frozen
class End:
    """One way for a request to end."""

    handler: Any
    outcome: str
    reason: str = ""
    client: Any = Clients.nothing
    hooks: dict[str, Any] = attrs.field(factory=dict)
    raises: type[BaseException] | None = None


EXIT = SystemExit(3)
ERROR = ValueError("oops")

ENDS = {
    "answered": End(Upper, "completed", client=Clients.says_hello),
    "cancellation swallowed": End(swallow, "completed", client=Clients.is_cut_at_once),
    "error": End(raising(ERROR), "failed", "ValueError: oops"),
    "group": End(raising(ExceptionGroup("all", [ValueError("one")])), "failed", "one"),
    "not awaited": End(Upper, "failed", "never", hooks={"finish_request": Servers.forgets}),
    "exit": End(raising(EXIT), "failed", "SystemExit", raises=SystemExit),
    "exit while parting": End(
        *(Upper, "completed", "", Clients.says_hello),
        *({"shutdown_request": Servers.leaves}, SystemExit),
    ),
    "idle": End(receive, "timed_out", "idle"),
    "write": End(flood, "timed_out", "write"),
    "request": End(hold, "timed_out", "request"),
    "handshake": End(
        Upper, "timed_out", "handshake", hooks={"verify_request": Servers.never_decides}
    ),
    "reset": End(receive, "disconnected", "reset", Clients.resets),
    "not verified": End(
        Upper, "refused", "verify_request", hooks={"verify_request": Servers.refuses}
    ),
    "drained": End(receive, "drained", "drains", Clients.is_drained),
    "grace over": End(hold, "cancelled", "grace", Clients.is_drained),
    "cancelled": End(hold, "cancelled", "not welcome", Clients.is_cancelled),
    "cancelled twice": End(hold, "cancelled", "not welcome", Clients.is_cancelled_twice),
    "cut at once": End(hold, "cancelled", "grace", Clients.is_cut_at_once),
}


@pytest.mark.parametrize("name", ENDS)
async def test_one_start_and_one_finish(name, autojump_clock, caplog):
    """EX-14, CX-13: every request has one start, one finish and one line, whatever happened."""
    caplog.set_level(logging.INFO, logger="trioserver.access")
    end = ENDS[name]
    timeouts = trioserver.Timeouts(idle=10, write=10, request=20, handshake=10)
    server = memory(end.handler, type("Server", (MemoryServer,), end.hooks), timeouts=timeouts)

    async def serve(task_status):
        with pytest.raises(end.raises) if end.raises else nullcontext():
            await server.serve_forever(task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        [client] = await come(server)
        await end.client(client, server)
        await trio.sleep(30)
        server.shutdown()
        await client.aclose()
    [record] = server.witness.records
    assert record.outcome == end.outcome
    assert end.reason in record.reason
    assert server.witness.names.count("request_started") == 1
    assert len([record for record in caplog.records if hasattr(record, "request_id")]) == 1
    statistics = (await server.wait_closed()).statistics
    assert statistics.accepted == sum(statistics.outcomes.values()) == 1
    assert statistics.outcomes[end.outcome] == 1
    assert statistics.active == statistics.lingering == 0


async def test_one_start_and_one_finish_when_cut_in_the_tick_of_the_accept(
    autojump_clock,
):
    """CX-13: a request whose task was started in the tick of the cut has both, too."""

    class EndsAtOnce(MemoryServer):
        def get_request(self, listener):
            accepted = super().get_request(listener)
            if accepted is not None:
                scope.cancel()
            return accepted

    server = memory(hold, EndsAtOnce)
    with trio.CancelScope() as scope:
        async with server.serving():
            await server.connect()
            await trio.sleep_forever()
    assert server.witness.names.count("request_started") == 1
    assert server.witness.outcomes == ["cancelled"]


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ("close", "cancel", "completed"),
        ("cancel", "close", "cancelled"),
        ("reset", "cancel", "disconnected"),
        ("cancel", "reset", "cancelled"),
    ],
)
async def test_one_finish_when_an_end_and_a_cancellation_meet(
    first, second, outcome, autojump_clock
):
    """CX-13: of two things in one tick the one that came first decides, and there is one record."""
    server = memory(Upper)
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        await wait_all_tasks_blocked()
        actions = {
            "close": client.close,
            "reset": client.reset,
            "cancel": functools.partial(server.cancel_request, 1, "not welcome"),
        }
        actions[first]()
        actions[second]()
        await wait_all_tasks_blocked()
        assert server.witness.outcomes == [outcome]


async def think(request, client_address, server):
    """Takes a while to answer."""
    question = await request.recv()
    await trio.sleep(1.5)
    await request.sendall(question * 3)


async def test_record_measures_the_request(autojump_clock, caplog):
    """A record has the bytes both ways, and the time from accept to outcome, without the linger.

    In the access log it is one INFO line; listening, draining and the end have one each.
    """
    caplog.set_level(logging.INFO, logger="trioserver")
    server = memory(think)
    async with server.serving(grace=4):
        await trio.sleep(5)
        client = await server.connect(("alice", 7))
        await client.send_all(b"why?")
        assert await read_to_end(client) == b"why?why?why?"
        await trio.sleep(1)
        await client.aclose()
    (record,) = server.witness.records
    assert (record.bytes_received, record.bytes_sent, record.duration) == (4, 12, 1.5)
    assert record.info.client_address == ("alice", 7)
    assert record.info.server_address == ("memory", 1)
    assert record.info.mode == "task"
    assert record.info.started == 5
    assert {(record.name, record.levelname) for record in caplog.records} == {
        ("trioserver.access", "INFO")
    }
    assert [record.getMessage() for record in caplog.records] == [
        "listening on memory:1",
        "request 1 from alice:7 completed after 1.500 s, 4 bytes in, 12 bytes out",
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


class Raises(trioserver.Observer):
    """Raises in one event, and counts how often it is called."""

    def __init__(self, event, error=None):
        self.calls = []
        self._event = event
        self._error = error or ValueError("the observer's own")

    def __getattribute__(self, name):
        if name not in vars(trioserver.Observer) or name.startswith("_"):
            return super().__getattribute__(name)
        return functools.partial(self._told, name)

    def _told(self, name, *facts):
        self.calls.append(name)
        if name == self._event:
            raise self._error


@pytest.mark.parametrize(
    "event",
    ["server_listening", "request_started", "request_finished", "draining", "server_closed"],
)
async def test_raising_observer_is_dropped(event, autojump_clock, caplog):
    """EX-12: one log line, no further call; nobody else notices. The next run tells it again."""
    before, raises = Witness(), Raises(event)
    server = memory(Upper, observers=[before, raises])
    for run in (1, 2):
        async with server.serving():
            assert await ask(server) == b"HELLO\n"
            assert await ask(server) == b"HELLO\n"
        assert raises.calls[-1] == event
        assert raises.calls.count(event) == run
    assert before.events == server.witness.events
    assert before.outcomes == ["completed"] * 4
    for record in (records := logged(caplog, "trioserver.error")):
        assert record.levelno == logging.ERROR
        assert f"an observer raised in {event}" in record.getMessage()
        assert "Raises" in record.getMessage()
        assert record.exc_info[1] is raises._error
    assert len(records) == 2


async def test_raising_observer_among_equals(autojump_clock, caplog):
    """The one that raised is dropped, although another one says that it is equal to it."""

    class Equal(Raises):
        def __eq__(self, other):
            return isinstance(other, Equal)

        __hash__ = None

    sound, broken = Equal(""), Equal("request_started")
    await asked(Upper, observers=[sound, broken], times=2)
    assert [it.calls.count("request_started") for it in (sound, broken)] == [2, 1]
    assert len(logged(caplog, "trioserver.error")) == 1


async def test_raising_observer_inside_another_event(autojump_clock, caplog):
    """One that was dropped while an event was being told is not told of that event either."""

    def shut_down(*facts):
        server.shutdown()  # tells of the drain before the others hear of this

    fragile = Raises("draining")
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


class TakesLess:
    def request_finished(self, info):
        """Wants less than it gets."""


@pytest.mark.parametrize("kind", [Moody, TakesLess])
async def test_observer_that_cannot_be_called(kind, autojump_clock, caplog):
    """EX-12: whose attributes raise, or whose method takes something else, is dropped as well."""
    observer = kind()
    server = memory(Upper, observers=[observer])
    observer.sulks = True
    async with server.serving():
        assert await ask(server) == b"HELLO\n"
    [record] = logged(caplog, "trioserver.error")
    assert "an observer raised in request_finished" in record.getMessage()


@pytest.mark.parametrize(
    "event", ["server_listening", "request_started", "request_finished", "server_closed"]
)
async def test_observer_that_exits(event, autojump_clock):
    """EX-02: SystemExit from an observer stops the server, after everything was closed.

    Whom it cuts is told so, in words of the server's.
    """
    error = SystemExit(3)
    server = memory(Upper, observers=[Raises(event, error)])
    clients = []

    async def whole_run():
        async with server.serving():
            clients.append(await server.connect())
            await clients[0].send_eof()
            await read_to_end(clients[0])
            if event != "server_closed":
                await trio.sleep_forever()

    with trio.fail_after(60):
        await raises_bare(error, whole_run)
        assert [await read_to_end(client) for client in clients] == [b""] * len(clients)
    assert server.snapshot().state == "unbound"
    if event.startswith("request"):
        report = await server.wait_closed()
        assert report.reason == "the server failed: SystemExit: 3"
        assert {record.reason for record in report.requests} <= {report.reason}


class ExitsInTheSweep(MemoryServer):
    """Its get_request exits in a drain."""

    def get_request(self, listener):
        if self.draining:
            raise EXIT
        return super().get_request(listener)


@pytest.mark.parametrize(
    ("how", "by"),
    [
        *(("observer", by) for by in ["task", "thread", "cancellation"]),
        *(("get_request", by) for by in ["task", "thread"]),
    ],
)
async def test_exit_in_a_drain(how, by):
    """EX-02: whoever calls ``shutdown`` is not to blame; the server raises it, at its end."""
    if how == "observer":
        server = memory(Upper, observers=[Raises("draining", EXIT)])
    else:
        server = memory(Upper, ExitsInTheSweep)

    async def whole_run():
        with trio.CancelScope() as scope:
            async with server.serving():
                clients.append(await server.connect())
                await clients[0].send_all(b"hello\n")
                assert await clients[0].receive_some() == b"HELLO\n"
                if by == "thread":
                    await trio.to_thread.run_sync(server.shutdown, 5)
                elif by == "task":
                    server.shutdown(5)
                else:
                    scope.cancel(reason="enough")
                await trio.sleep_forever()

    clients = []
    with trio.fail_after(10):
        await raises_bare(EXIT, whole_run)
        assert await read_to_end(clients[0]) == b""
    assert server.snapshot().state == "unbound"
    statistics = server.statistics()
    assert (statistics.accepted, statistics.active, statistics.lingering) == (1, 0, 0)
    assert sum(statistics.outcomes.values()) == server.witness.names.count("request_finished") == 1


async def test_observer_cancels_a_request(autojump_clock):
    """An observer may cancel the very request whose start it is told of."""

    def refuse(info):
        server.cancel_request(info.id, "not today")

    server = memory(hold, observers=[Space(request_started=refuse)])
    async with server.serving():
        assert await read_to_end(await server.connect()) == b""
    [record] = server.witness.records
    assert (record.outcome, record.reason) == ("cancelled", "not today")


# Observers of every shape -------------------------------------------------------------


class Duck:
    """Of no class of ours, with one of the methods."""

    def __init__(self, told):
        self.told = told

    def request_started(self, info):
        self.told.append(info)


def of_functions(told):
    """A namespace of functions."""
    return Space(request_started=told.append)


@pytest.mark.parametrize("make", [Duck, of_functions])
async def test_observer_duck_typed(make, autojump_clock):
    """Any object with one of the methods will do; it is told of that event and no other."""
    started = []
    await asked(Upper, observers=[make(started)])
    assert [info.id for info in started] == [1]


def test_observer_base_class_does_nothing():
    """A class derived from `Observer` needs to define only what it cares about."""
    observer = trioserver.Observer()
    for name in Witness().__class__.__dict__:
        if name in vars(trioserver.Observer) and not name.startswith("_"):
            assert callable(getattr(observer, name))
    assert observer.draining(5) is None


class OneEvent:
    """The least that an observer can be."""

    def server_closed(self, report):
        pass


class AsyncEvent:
    async def request_started(self, info):
        """Nobody would ever await it."""


class YieldingEvent:
    def request_started(self, info):
        """Runs nothing when it is called."""
        yield


@pytest.mark.parametrize(
    "observers",
    [None, 5, "draining", OneEvent(), [object()], [None], ["draining"], [OneEvent]],
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


@pytest.mark.parametrize("observer", [AsyncEvent(), Space(draining=True), YieldingEvent()])
def test_observers_must_be_callable_and_plain(observer):
    """EX-10: a method that could never be called rightly is found when the server is built."""
    with pytest.raises(TypeError, match="observers"):
        memory(Upper, observers=[observer])


def test_observers_of_any_iterable():
    """A list, a tuple, a set or a generator will do."""
    witness = Witness()
    for observers in [[witness], (witness,), {witness}, (one for one in [witness])]:
        assert MemoryServer(MEMORY, Upper, observers=observers).observers == (witness,)


# The current request ------------------------------------------------------------------


def current_id():
    """The id of the current request."""
    info = trioserver.current_request()
    return None if info is None else info.id


class SeesInMethods(trioserver.BaseRequestHandler):
    """Notes every method, and fails."""

    async def setup(self):
        self.server.seen["setup"] = current_id()

    async def handle(self):
        self.server.seen["handle"] = current_id()
        assert trioserver.current_request() is self.info
        raise ValueError("oops")

    async def finish(self):
        self.server.seen["finish"] = current_id()


async def test_current_request_in_handlers_and_hooks(autojump_clock):
    """A request's hooks, its handler's methods and its observers all see that request."""

    def note(server, name, *arguments):
        server.seen[name] = current_id()

    events = ["request_started", "request_finished"]
    observer = Space(
        **{name: functools.partial(lambda *it: note(server, *it), name) for name in events}
    )
    hooks = ["verify_request", "process_request", "handle_error"]
    kind = noting(MemoryServer, [*hooks, "shutdown_request", "close_request"], note)
    server = memory(SeesInMethods, kind, observers=[observer])
    server.seen = {}
    async with server.serving():
        await ask(server)
    assert set(server.seen.values()) == {1}
    methods = ["setup", "handle", "finish", "shutdown_request", "close_request"]
    assert set(server.seen) == {*events, *hooks, *methods}


async def test_current_request_of_each(autojump_clock):
    """Requests side by side see themselves, after every wait."""
    seen = []

    async def look(request, client_address, server):
        for _ in range(3):
            seen.append(current_id() == request.info.id)
            await trio.sleep(1)

    server = memory(look)
    async with server.serving():
        for _ in range(3):
            await server.connect()
    assert seen == [True] * 9


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

    server = memory(start)
    with trio.fail_after(10):
        async with server.serving():
            await ask(server)
    assert seen == [1, 1, 1]


async def test_current_request_outside_of_requests(autojump_clock):
    """Outside there is none, also when a task of the outside serves or connects."""
    seen = []

    class Server(MemoryServer):
        async def service_actions(self):
            seen.append(current_id())

        async def server_close(self):
            await super().server_close()
            seen.append(current_id())

    server = memory(Upper, Server)
    async with server.serving():
        await ask(server)
        seen.append(current_id())
    assert seen == [None] * len(seen)
    assert len(seen) >= 3


async def test_current_request_of_a_server_inside_a_request(autojump_clock):
    """A handler that serves a server of its own: each request sees itself, not the outer one."""
    seen = []

    async def inner(request, client_address, server):
        seen.append(trioserver.current_request() is request.info)

    async def outer(request, client_address, server):
        backend = memory(inner)
        async with backend.serving():
            await ask(backend)
        seen.append(trioserver.current_request() is request.info)

    await asked(outer)
    assert seen == [True, True]


async def test_filter_marks_every_record(autojump_clock):
    """`RequestLogFilter` puts id and address on a record of anybody's, inside a request."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(trioserver.RequestLogFilter())
    handler.setFormatter(logging.Formatter("%(request_id)s %(client_address)s %(message)s"))
    logger = logging.getLogger("somebody's")
    logger.addHandler(handler)

    async def log(request, client_address, server):
        logger.error("inside")

    try:
        logger.error("outside")
        server = memory(log)
        async with server.serving():
            client = await server.connect(("alice", 7))
            await client.send_eof()
            await read_to_end(client)
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue() == "None None outside\n1 ('alice', 7) inside\n"


async def test_filter_leaves_what_is_there(autojump_clock):
    """It passes every record, and leaves attributes alone that somebody has set before."""
    record = logging.makeLogRecord({"request_id": "mine"})
    assert trioserver.RequestLogFilter().filter(record)
    assert record.request_id == "mine"
    assert record.client_address is None


# The logs -----------------------------------------------------------------------------


async def test_access_log_says_why(autojump_clock, caplog):
    """The line of a request that did not complete has the reason, and fields to filter by."""
    caplog.set_level(logging.INFO, logger="trioserver")
    server = memory(receive, timeouts=trioserver.Timeouts(idle=10))
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
    """A reason in many lines, or a long one, which a client may have made up, is one short line."""
    caplog.set_level(logging.INFO, logger="trioserver")

    async def quote(request, client_address, server):
        raise ValueError((await request.recv()).decode())

    server = memory(quote)
    async with server.serving():
        await ask(server, b"x\nrequest 2 from bank completed\r\x1b[2J" + b"x" * 1000)
    (record,) = [record for record in caplog.records if hasattr(record, "request_id")]
    assert record.getMessage().isprintable()
    assert "ValueError" in record.getMessage()
    assert "xxx..." in record.getMessage()
    assert len(record.getMessage()) < 700


async def test_access_log_keeps_addresses_to_one_line(autojump_clock, caplog):
    """A client of a Unix socket chooses the name of its own, and forges nothing with it either."""
    caplog.set_level(logging.INFO, logger="trioserver")
    server = memory(raising(ValueError("oops")))
    async with server.serving():
        await read_to_end(await server.connect("/tmp/x\nrequest 2 from bank"))  # noqa: S108
    assert len(logged(caplog, "trioserver.error")) == 1
    assert all(record.getMessage().isprintable() for record in caplog.records)


async def test_access_log_can_be_switched_off(autojump_clock, caplog):
    """By default, at WARNING, the access log says nothing at all."""
    caplog.set_level(logging.WARNING, logger="trioserver")
    await asked(Upper)
    assert caplog.records == []


async def test_access_log_filter_that_raises(autojump_clock):
    """EX-12: somebody's broken filter on our logger harms nobody."""

    class Broken(logging.Filter):
        def filter(self, record):
            raise ValueError("the filter's own")

    logger, broken = logging.getLogger("trioserver.access"), Broken()
    logger.addFilter(broken)
    logger.setLevel(logging.INFO)
    try:
        server = memory(Upper)
        async with server.serving():
            assert await ask(server) == b"HELLO\n"
    finally:
        logger.removeFilter(broken)
        logger.setLevel(logging.NOTSET)


async def test_error_log_has_the_traceback_of_the_error(autojump_clock, caplog):
    """EX-01: one ERROR record, with the client's address, and that very exception's traceback.

    It names the function that logged it, not a helper that it went through.
    """
    caplog.set_level(logging.INFO, logger="trioserver")
    error = ValueError("oops")
    server = memory(raising(error))
    async with server.serving():
        await ask(server, b"", ("alice", 7))
    (record,) = logged(caplog, "trioserver.error")
    assert (record.levelno, record.funcName) == (logging.ERROR, "handle_error")
    assert "alice:7" in record.getMessage()
    assert record.exc_info[1] is error
    assert "in fail" in caplog.text
    assert "ValueError: oops" in caplog.text
    assert "log_safely" not in {record.funcName for record in caplog.records}


async def test_error_log_of_a_group_has_all_of_it(autojump_clock, caplog):
    """EX-04: a group of two different errors is logged with both tracebacks, each with its own."""

    async def first():
        raise ValueError("one")

    async def second():
        raise KeyError("two")

    async def both(request, client_address, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)

    await asked(both)
    assert len(logged(caplog, "trioserver.error")) == 1
    for shown in ["in first", "ValueError: one", "in second", "KeyError: 'two'"]:
        assert caplog.text.count(shown) == 1


async def test_error_log_while_another_exception_is_handled(autojump_clock, caplog):
    """EX-01: the record has the error that ended the request, not one that the handler got over."""
    error = KeyError("final")

    async def fail(request, client_address, server):
        try:
            raise ValueError("got over")
        except ValueError:
            await trio.lowlevel.checkpoint()
        raise error

    await asked(fail)
    (record,) = logged(caplog, "trioserver.error")
    assert record.exc_info[1] is error
    assert "got over" not in caplog.text


# In a program of its own --------------------------------------------------------------


def program(source):
    """A Python program that configures nothing, run to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_import_configures_no_logging():
    """Importing adds no log handler and no filter, and sets no level."""
    done = program("""
        import logging, trioserver, trioserver.testing
        loggers = [logging.root, *map(logging.getLogger, ["trioserver", "trioserver.access",
                   "trioserver.error"])]
        assert [logger.handlers + logger.filters for logger in loggers] == [[], [], [], []]
        assert [logger.level for logger in loggers] == [logging.WARNING, 0, 0, 0]
        assert all(logger.propagate and not logger.disabled for logger in loggers)
        assert logging.lastResort.level == logging.WARNING
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SERVE_ONE = """
    {configure}
    import trio, trioserver
    from trioserver.testing import MemoryServer

    async def handler(request, client_address, server):
        {body}

    async def main():
        server = MemoryServer(("memory", 1), handler)
        async with server.serving():
            client = await server.connect(("alice", 7))
            await client.send_eof()
            assert await client.receive_some() == b""

    trio.run(main)
"""


@table(
    ("body", "configure", "lines"),
    {
        "EX-01: an error of a handler is on stderr, with its traceback": (
            "raise ValueError('oops')",
            "",
            [
                "error while serving alice:7",
                "Traceback (most recent call last)",
                "ValueError: oops",
            ],
        ),
        "without errors, nothing is printed": ("pass", "", []),
        "one call of logging.basicConfig is enough to have the access log": (
            "pass",
            "import logging; logging.basicConfig(level=logging.INFO)",
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
    """Errors are shown without any configuration."""
    done = program(SERVE_ONE.format(body=body, configure=configure))
    assert (done.returncode, done.stdout) == (0, "")
    shown = done.stderr.splitlines()
    if "raise" in body:
        shown = [*shown[:2], shown[-1]]
    for line, start in zip(shown, lines, strict=True):
        assert line.startswith(start)
