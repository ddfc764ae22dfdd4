"""What can be seen of a server: observers, the current request, and the logs."""

from __future__ import annotations

import functools
import io
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support import Upper, Witness, hold, read_to_end

import trioserver
from trioserver.testing import MemoryServer


def memory(handler: Any, kind: type[MemoryServer] = MemoryServer, **fields: Any) -> MemoryServer:
    """A server in memory."""
    return kind(("memory", 1), handler, **fields)


def raising(error: BaseException) -> Any:
    """A handler that raises ``error``."""

    async def fail(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        raise error

    return fail


async def ask(server: MemoryServer, question: bytes = b"hello\n") -> bytes:
    """What a client gets who asks one question."""
    client = await server.connect()
    await client.send_all(question)
    await client.send_eof()
    answer = await read_to_end(client)
    await client.aclose()
    return answer


def logged(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    """The records of one logger."""
    return [record for record in caplog.records if record.name == name]


# Every event --------------------------------------------------------------------------


async def test_events_of_a_whole_run(autojump_clock: Any) -> None:
    """Every event is told once, in order, with its facts."""
    witness = Witness()
    server = memory(Upper, observers=[witness])
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
    assert record.bytes_received == record.bytes_sent == 6


async def test_events_of_a_drain(autojump_clock: Any) -> None:
    """A request that is drained out ends between `draining` and `server_closed`."""
    witness = Witness()
    server = memory(Upper, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
    assert witness.names == [
        "server_listening",
        "request_started",
        "draining",
        "request_finished",
        "server_closed",
    ]
    assert witness.outcomes == ["drained"]


async def test_events_of_a_cut(autojump_clock: Any) -> None:
    """A server that is cancelled tells of a drain without grace, and of every end."""
    witness = Witness()
    server = memory(hold, observers=[witness])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sorted(witness.names) == [
        "draining",
        "request_finished",
        "request_started",
        "server_closed",
        "server_listening",
    ]
    assert witness.names[-1] == "server_closed"
    assert [event[1] for event in witness.events if event[0] == "draining"] == [0]
    assert witness.outcomes == ["cancelled"]


async def test_events_of_handle_request(autojump_clock: Any) -> None:
    """A server that handles requests one by one listens once, and is closed once."""
    witness = Witness()
    async with memory(Upper, observers=[witness]) as server:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.handle_request)
                assert await ask(server) == b"HELLO\n"
    assert witness.names == [
        "server_listening",
        *["request_started", "request_finished"] * 3,
        "server_closed",
    ]
    assert [record.info.id for record in witness.records] == [1, 2, 3]


async def test_events_of_two_runs(autojump_clock: Any) -> None:
    """The same observers are told of the next run, whose requests are counted anew."""
    witness = Witness()
    server = memory(Upper, observers=[witness])
    for _ in range(2):
        async with server.serving():
            await ask(server)
    assert witness.names.count("server_listening") == 2
    assert witness.names.count("server_closed") == 2
    assert [record.info.id for record in witness.records] == [1, 1]


async def test_event_of_a_refused_client(autojump_clock: Any) -> None:
    """A client that never became a request is told of by address and reason."""
    witness = Witness()
    limits = trioserver.Limits(requests=1, when_full="refuse")
    server = memory(hold, limits=limits, observers=[witness])
    async with server.serving(grace=0):
        await server.connect()
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(await server.connect(("late", 2)))
        assert server.statistics().refused == 1
    assert [event[1:] for event in witness.events if event[0] == "request_refused"] == [
        (("late", 2), "the server is full (requests)")
    ]
    assert witness.names.count("request_started") == 1


async def test_event_of_a_failed_accept(autojump_clock: Any) -> None:
    """An error of an accept is told of with the listener's address."""
    witness = Witness()
    error = ConnectionAbortedError(103, "Software caused connection abort")
    server = memory(Upper, observers=[witness])
    async with server.serving():
        server.listener.fail(error)
        assert await ask(server) == b"HELLO\n"
    assert ("accept_failed", ("memory", 1), error) in witness.events


async def test_event_of_listening_on_sockets() -> None:
    """`server_listening` has the bound addresses, all of them."""
    witness = Witness()
    server = trioserver.TCPServer(("127.0.0.1", 0), Upper, observers=[witness])
    with trio.fail_after(10):
        async with server.serving():
            address = server.server_address
            async with await trio.open_tcp_stream(*address) as client:
                await client.send_all(b"hello\n")
                assert await client.receive_some() == b"HELLO\n"
    assert witness.events[0] == ("server_listening", (address,))
    assert address[1] > 0
    assert witness.records[0].info.server_address == address


# One start and one finish -------------------------------------------------------------


async def swallow(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Swallows its cancellation."""
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        return


async def receive(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Receives until the peer ends its input."""
    await read_to_end(request)


async def flood(request: trioserver.Connection, client_address: Any, server: Any) -> None:
    """Sends more than the pipe holds."""
    await request.sendall(bytes(100_000))


async def say_full(connection: trioserver.Connection) -> None:
    """Says that the server is full."""
    await connection.send_all(b"full")


class Refusing(MemoryServer):
    """Verifies nobody."""

    async def verify_request(self, request: Any, client_address: Any) -> bool:
        return False


class Undecided(MemoryServer):
    """Never decides."""

    async def verify_request(self, request: Any, client_address: Any) -> bool:
        await trio.sleep_forever()
        raise AssertionError


class Forgetful(MemoryServer):
    """Forgets to await its handler."""

    async def finish_request(self, request: Any, client_address: Any) -> None:
        self.RequestHandlerClass(request, client_address, self)


class Leaving(MemoryServer):
    """Leaves in the middle of its parting."""

    async def shutdown_request(self, request: Any) -> None:
        raise SystemExit(3)


async def does_nothing(client: trioserver.Connection, server: MemoryServer) -> None:
    """Just is there."""


async def says_hello(client: trioserver.Connection, server: MemoryServer) -> None:
    """Asks a question, and is done."""
    await client.send_all(b"hello\n")
    await client.send_eof()


async def resets(client: trioserver.Connection, server: MemoryServer) -> None:
    """Goes away."""
    client.reset()


async def is_drained(client: trioserver.Connection, server: MemoryServer) -> None:
    """Sees the server drain."""
    server.shutdown(grace=5)


async def is_cancelled(client: trioserver.Connection, server: MemoryServer) -> None:
    """Is cancelled by the server's program."""
    assert server.cancel_request(server.requests[0].id, "not welcome")


async def is_cancelled_twice(client: trioserver.Connection, server: MemoryServer) -> None:
    """Is cancelled, and the server ends in the same tick."""
    server.cancel_request(server.requests[0].id, "not welcome")
    server.shutdown(grace=0)


async def is_cut_at_once(client: trioserver.Connection, server: MemoryServer) -> None:
    """Sees the server end without grace."""
    server.shutdown(grace=0)


@attrs.frozen
class End:
    """One way for a request to end."""

    handler: Any
    client: Callable[[trioserver.Connection, MemoryServer], Any]
    outcome: str
    reason: str = ""
    kind: type[MemoryServer] = MemoryServer
    raises: type[BaseException] | None = None


ENDS = {
    "answered": End(Upper, says_hello, "completed"),
    "cancellation swallowed": End(swallow, is_cut_at_once, "completed"),
    "error": End(raising(ValueError("oops")), does_nothing, "failed", "ValueError: oops"),
    "group": End(
        raising(ExceptionGroup("all", [ValueError("one")])), does_nothing, "failed", "one"
    ),
    "not awaited": End(Upper, does_nothing, "failed", "never awaited", Forgetful),
    "exit": End(raising(SystemExit(3)), does_nothing, "failed", "SystemExit", raises=SystemExit),
    "exit while parting": End(Upper, says_hello, "completed", "", Leaving, SystemExit),
    "idle": End(receive, does_nothing, "timed_out", "idle"),
    "write": End(flood, does_nothing, "timed_out", "write"),
    "request": End(hold, does_nothing, "timed_out", "request"),
    "handshake": End(Upper, does_nothing, "timed_out", "handshake", Undecided),
    "reset": End(receive, resets, "disconnected", "reset"),
    "not verified": End(Upper, does_nothing, "refused", "verify_request", Refusing),
    "drained": End(receive, is_drained, "drained", "drains"),
    "grace over": End(hold, is_drained, "cancelled", "grace"),
    "cancelled": End(hold, is_cancelled, "cancelled", "not welcome"),
    "cancelled twice": End(hold, is_cancelled_twice, "cancelled", "not welcome"),
    "cut at once": End(hold, is_cut_at_once, "cancelled", "grace"),
}


@pytest.mark.parametrize("name", ENDS)
async def test_one_start_and_one_finish(name: str, autojump_clock: Any, caplog: Any) -> None:
    """EX-14, CX-13: every request has one start, one finish and one line, whatever happened."""
    caplog.set_level(logging.INFO, logger="trioserver.access")
    end, witness = ENDS[name], Witness()
    timeouts = trioserver.Timeouts(idle=10, write=10, request=20, handshake=10)
    server = memory(end.handler, end.kind, timeouts=timeouts, observers=[witness])

    async def serve(task_status: Any) -> None:
        if end.raises is None:
            await server.serve_forever(task_status=task_status)
        else:
            with pytest.raises(end.raises):
                await server.serve_forever(task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        client = await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        await end.client(client, server)
        await trio.sleep(30)
        server.shutdown()
        await client.aclose()
    assert witness.names.count("request_started") == 1
    assert witness.outcomes == [end.outcome]
    assert end.reason in witness.records[0].reason
    assert len([record for record in caplog.records if hasattr(record, "request_id")]) == 1
    statistics = (await server.wait_closed()).statistics
    assert statistics.accepted == sum(statistics.outcomes.values()) == 1
    assert statistics.outcomes[end.outcome] == 1
    assert statistics.active == statistics.lingering == 0


async def test_one_start_and_one_finish_when_turned_away(autojump_clock: Any) -> None:
    """EX-14: a client that was told that the server is full is a request that was refused."""
    witness = Witness()
    limits = trioserver.Limits(requests=1, when_full=say_full)
    server = memory(hold, limits=limits, observers=[witness])
    async with server.serving(grace=0):
        await server.connect()
        assert await read_to_end(await server.connect()) == b"full"
    assert witness.names.count("request_started") == 2
    assert sorted(witness.outcomes) == ["cancelled", "refused"]


async def test_one_start_and_one_finish_when_cut_in_the_tick_of_the_accept(
    autojump_clock: Any,
) -> None:
    """CX-13: a request whose task was started in the tick of the cut has both, too."""
    witness = Witness()

    class EndsAtOnce(MemoryServer):
        def get_request(self, listener: trioserver.Listener) -> Any:
            accepted = super().get_request(listener)
            if accepted is not None:
                scope.cancel()
            return accepted

    server = memory(hold, EndsAtOnce, observers=[witness])
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            await server.connect()
    assert witness.names.count("request_started") == 1
    assert witness.outcomes == ["cancelled"]


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
    first: str, second: str, outcome: str, autojump_clock: Any
) -> None:
    """CX-13: of two things in one tick the one that came first decides, and there is one record."""
    witness = Witness()
    server = memory(Upper, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        await trio.testing.wait_all_tasks_blocked()
        actions = {
            "close": client.close,
            "reset": client.reset,
            "cancel": functools.partial(server.cancel_request, 1, "not welcome"),
        }
        actions[first]()
        actions[second]()
        await trio.testing.wait_all_tasks_blocked()
        assert witness.outcomes == [outcome]


async def test_one_finish_when_the_last_byte_and_a_cancellation_meet(autojump_clock: Any) -> None:
    """CX-13: a request whose last byte came in the tick of its cancellation is cancelled, once."""
    witness = Witness()
    server = memory(Upper, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await client.send_all(b"hel")
        await trio.testing.wait_all_tasks_blocked()
        await client.send_all(b"lo\n")
        server.cancel_request(1, "not welcome")
        assert await read_to_end(client) == b""
    assert witness.outcomes == ["cancelled"]
    assert witness.records[0].bytes_received == 6


async def test_record_measures_the_request(autojump_clock: Any) -> None:
    """A record has the bytes both ways, and the time from accept to outcome, without the linger."""

    async def think(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        question = await request.recv()
        await trio.sleep(7)
        await request.sendall(question * 3)

    witness = Witness()
    server = memory(think, observers=[witness])
    async with server.serving():
        await trio.sleep(5)
        client = await server.connect(("alice", 7))
        await client.send_all(b"why?")
        assert await read_to_end(client) == b"why?why?why?"
        await trio.sleep(1)
        await client.aclose()
    (record,) = witness.records
    assert (record.bytes_received, record.bytes_sent, record.duration) == (4, 12, 7)
    assert record.info.client_address == ("alice", 7)
    assert record.info.server_address == ("memory", 1)
    assert record.info.mode == "task"
    assert record.info.started == 5


async def test_record_is_told_when_the_slot_is_free(autojump_clock: Any) -> None:
    """When an observer hears of the end, the server's own counts have it already."""
    seen = []

    class Looks(trioserver.Observer):
        def request_started(self, info: trioserver.RequestInfo) -> None:
            seen.append((server.requests, server.statistics().active))

        def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
            seen.append((server.requests, server.statistics().active))

    server = memory(Upper, observers=[Looks()])
    async with server.serving():
        await ask(server)
    assert [len(requests) for requests, _ in seen] == [1, 0]
    assert [active for _, active in seen] == [1, 0]


# Observers that misbehave -------------------------------------------------------------


class Raises(trioserver.Observer):
    """Raises in one event, and counts how often it is called."""

    def __init__(self, event: str, error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self._event = event
        self._error = error or ValueError("the observer's own")

    def __getattribute__(self, name: str) -> Any:
        if name not in vars(trioserver.Observer) or name.startswith("_"):
            return super().__getattribute__(name)
        return functools.partial(self._told, name)

    def _told(self, name: str, *facts: Any) -> None:
        self.calls.append(name)
        if name == self._event:
            raise self._error


@pytest.mark.parametrize(
    "event",
    ["server_listening", "request_started", "request_finished", "draining", "server_closed"],
)
async def test_raising_observer_is_dropped(event: str, autojump_clock: Any, caplog: Any) -> None:
    """EX-12: one log line, no further call; the server and the other observers do not notice."""
    before, raises, after = Witness(), Raises(event), Witness()
    server = memory(Upper, observers=[before, raises, after])
    async with server.serving():
        assert await ask(server) == b"HELLO\n"
        assert await ask(server) == b"HELLO\n"
    assert raises.calls[-1] == event
    assert raises.calls.count(event) == 1
    assert before.events == after.events
    assert before.outcomes == ["completed", "completed"]
    (record,) = logged(caplog, "trioserver.error")
    assert record.levelno == logging.ERROR
    assert f"an observer raised in {event}" in record.getMessage()
    assert "Raises" in record.getMessage()
    assert record.exc_info[1] is raises._error


async def test_raising_observer_is_told_of_the_next_run(autojump_clock: Any, caplog: Any) -> None:
    """One that was dropped is given another chance when the server is run again."""
    raises = Raises("request_started")
    server = memory(Upper, observers=[raises])
    for _ in range(2):
        async with server.serving():
            assert await ask(server) == b"HELLO\n"
    assert raises.calls.count("request_started") == 2


async def test_raising_observer_among_equals(autojump_clock: Any, caplog: Any) -> None:
    """The one that raised is dropped, although another one says that it is equal to it."""

    @attrs.define(eq=False)
    class Equal(trioserver.Observer):
        raises: bool
        told: int = 0

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        __hash__ = None  # type: ignore[assignment]

        def request_started(self, info: trioserver.RequestInfo) -> None:
            self.told += 1
            if self.raises:
                raise ValueError("the observer's own")

    sound, broken = Equal(raises=False), Equal(raises=True)
    server = memory(Upper, observers=[sound, broken])
    async with server.serving():
        await ask(server)
        await ask(server)
    assert (sound.told, broken.told) == (2, 1)
    assert len(logged(caplog, "trioserver.error")) == 1


async def test_raising_observer_inside_another_event(autojump_clock: Any, caplog: Any) -> None:
    """One that was dropped while an event was being told is not told of that event either."""

    class ShutsDown(trioserver.Observer):
        def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
            server.shutdown()  # tells of the drain before the others hear of this

    class Fragile(trioserver.Observer):
        calls = 0

        def draining(self, grace: float) -> None:
            raise ValueError("in draining")

        def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
            self.calls += 1
            raise ValueError("in request_finished")

    fragile, witness = Fragile(), Witness()
    server = memory(Upper, observers=[ShutsDown(), fragile, witness])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        assert await ask(server) == b"HELLO\n"
    assert fragile.calls == 0
    assert witness.outcomes == ["completed"]
    assert len(logged(caplog, "trioserver.error")) == 1


async def test_observer_whose_attributes_raise(autojump_clock: Any, caplog: Any) -> None:
    """EX-12: one that raises when it is merely looked at is dropped as well."""

    class Moody:
        sulks = False

        @property
        def request_started(self) -> Any:
            if self.sulks:
                raise ValueError("not today")
            return print

    moody = Moody()
    server = memory(Upper, observers=[moody])
    moody.sulks = True
    async with server.serving():
        assert await ask(server) == b"HELLO\n"
    assert len(logged(caplog, "trioserver.error")) == 1


async def test_observer_of_another_signature(autojump_clock: Any, caplog: Any) -> None:
    """EX-12: a method that takes something else is dropped, and the line says which."""

    class Narrow:
        def request_finished(self, info: Any) -> None:
            """Wants less than it gets."""

    server = memory(Upper, observers=[Narrow()])
    async with server.serving():
        assert await ask(server) == b"HELLO\n"
    assert "an observer raised in request_finished" in caplog.text


@pytest.mark.parametrize(
    "event", ["server_listening", "request_started", "request_finished", "server_closed"]
)
async def test_observer_that_exits(event: str, autojump_clock: Any) -> None:
    """EX-02: SystemExit from an observer stops the server, after everything was closed."""
    error = SystemExit(3)
    witness = Witness()
    server = memory(Upper, observers=[Raises(event, error), witness])

    async def whole_run() -> None:
        async with server.serving():
            client = await server.connect()
            clients.append(client)
            await client.send_eof()
            await read_to_end(client)
            if event != "server_closed":
                await trio.sleep_forever()

    clients: list[trioserver.Connection] = []
    with trio.fail_after(60):
        with pytest.raises(SystemExit) as caught:
            await whole_run()
        for client in clients:
            assert await read_to_end(client) == b""
    assert caught.value is error
    assert server.snapshot().state == "unbound"


class ExitsInTheSweep(MemoryServer):
    """Its get_request exits in a drain."""

    error: Any = None

    def get_request(self, listener: Any) -> Any:
        if self.draining:
            raise self.error
        return super().get_request(listener)


def exits_in_its_drain(how: str, error: SystemExit) -> MemoryServer:
    """A server of whose drain somebody makes an exit."""
    if how == "observer":
        return memory(Upper, observers=[Raises("draining", error)])
    return memory(Upper, ExitsInTheSweep, error=error)


@pytest.mark.parametrize("by", ["task", "thread"])
@pytest.mark.parametrize("how", ["observer", "get_request"])
async def test_exit_in_a_drain(how: str, by: str) -> None:
    """EX-02: whoever calls ``shutdown`` is not to blame; the server raises it, at its end."""
    error = SystemExit(3)
    server = exits_in_its_drain(how, error)
    clients: list[trioserver.Connection] = []

    async def whole_run() -> None:
        async with server.serving():
            client = await server.connect()
            clients.append(client)
            await client.send_all(b"hello\n")
            assert await client.receive_some() == b"HELLO\n"
            if by == "task":
                server.shutdown(5)
            else:
                await trio.to_thread.run_sync(server.shutdown, 5)
            await trio.sleep_forever()

    with trio.fail_after(10):
        with pytest.raises(SystemExit) as caught:
            await whole_run()
        assert await read_to_end(clients[0]) == b""
    assert caught.value is error
    assert server.snapshot().state == "unbound"
    assert sum(server.statistics().outcomes.values()) == 1


async def test_exit_met_by_a_request(autojump_clock: Any) -> None:
    """An observer's exit in an event that a request causes leaves that request settled."""
    error = SystemExit(3)
    witness = Witness()
    server = memory(hold, observers=[Raises("draining", error), witness])

    async def whole_run() -> None:
        with trio.CancelScope() as scope:
            async with server.serving():
                await server.connect()
                await trio.sleep(1)
                scope.cancel(reason="enough")
                await trio.sleep_forever()

    with pytest.raises(SystemExit) as caught:
        await whole_run()
    assert caught.value is error
    statistics = server.statistics()
    assert (statistics.accepted, statistics.active, statistics.lingering) == (1, 0, 0)
    assert statistics.outcomes[trioserver.Outcome.CANCELLED] == 1
    assert witness.names.count("request_finished") == 1


@pytest.mark.parametrize("event", ["request_started", "request_finished"])
async def test_exit_is_the_reason_for_the_others(event: str, autojump_clock: Any) -> None:
    """Whom an observer's exit cuts is told so, in words of the server's."""
    server = memory(Upper, observers=[Raises(event, SystemExit(3))])

    async def whole_run() -> None:
        async with server.serving():
            client = await server.connect()
            await trio.sleep(1)
            await client.send_eof()
            await trio.sleep_forever()

    with pytest.raises(SystemExit):
        await whole_run()
    report = await server.wait_closed()
    assert report.reason == "the server failed: SystemExit: 3"
    assert {record.reason for record in report.requests} <= {report.reason}


async def test_observer_shuts_the_server_down(autojump_clock: Any) -> None:
    """An observer may call what is plain on the server: this one has seen enough after three."""

    class Counts(trioserver.Observer):
        left = 3

        def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
            self.left -= 1
            if not self.left:
                server.shutdown()

    server = memory(Upper, observers=[Counts()])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        for _ in range(3):
            assert await ask(server) == b"HELLO\n"
    report = await server.wait_closed()
    assert report.statistics.accepted == 3


async def test_observer_cancels_a_request(autojump_clock: Any) -> None:
    """An observer may cancel the very request whose start it is told of."""

    class Strict(trioserver.Observer):
        def request_started(self, info: trioserver.RequestInfo) -> None:
            server.cancel_request(info.id, "not today")

    witness = Witness()
    server = memory(hold, observers=[Strict(), witness])
    async with server.serving():
        assert await read_to_end(await server.connect()) == b""
    assert witness.outcomes == ["cancelled"]
    assert witness.records[0].reason == "not today"


# Observers of every shape -------------------------------------------------------------


async def test_observer_duck_typed(autojump_clock: Any) -> None:
    """Any object with one of the methods will do; it is told of that event and no other."""
    outcomes = []

    class Duck:
        def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
            outcomes.append(outcome)

    server = memory(Upper, observers=[Duck()])
    async with server.serving():
        await ask(server)
    assert outcomes == ["completed"]


async def test_observer_of_functions(autojump_clock: Any) -> None:
    """A namespace of functions is one, too."""
    started: list[trioserver.RequestInfo] = []
    observer = type("Namespace", (), {"request_started": staticmethod(started.append)})()
    server = memory(Upper, observers=(observer,))
    async with server.serving():
        await ask(server)
    assert [info.id for info in started] == [1]


def test_observer_base_class_does_nothing() -> None:
    """A class derived from `Observer` needs to define only what it cares about."""
    observer = trioserver.Observer()
    for name in Witness().__class__.__dict__:
        if name in vars(trioserver.Observer) and not name.startswith("_"):
            assert callable(getattr(observer, name))
    assert observer.draining(5) is None


@attrs.define
class OneEvent:
    """The least that an observer can be."""

    def server_closed(self, report: trioserver.ShutdownReport) -> None:
        """Does nothing."""


class AsyncEvent:
    """Of the wrong colour."""

    async def request_started(self, info: trioserver.RequestInfo) -> None:
        """Nobody would ever await it."""


class NoMethod:
    """Has the name of an event, but nothing that could be called."""

    draining = True


@pytest.mark.parametrize(
    "observers",
    [None, 5, "draining", OneEvent(), [object()], [None], ["draining"], [OneEvent]],
    ids=["None", "int", "str", "bare", "object", "[None]", "[str]", "class"],
)
def test_observers_are_validated(observers: Any) -> None:
    """What is not a sequence of observers is a TypeError that names the field and the events."""
    message = "MemoryServer.observers must be .* request_started, request_finished"
    with pytest.raises(TypeError, match=message):
        memory(Upper, observers=observers)
    server = memory(Upper)
    with pytest.raises(TypeError, match=message):
        server.observers = observers


class YieldingEvent:
    """Runs nothing when it is called."""

    def request_started(self, info: trioserver.RequestInfo) -> Any:
        yield


@pytest.mark.parametrize("observer", [AsyncEvent(), NoMethod(), YieldingEvent()])
def test_observers_must_be_callable_and_plain(observer: Any) -> None:
    """EX-10: a method that could never be called rightly is found when the server is built."""
    with pytest.raises(TypeError, match="observers"):
        memory(Upper, observers=[observer])


async def test_observers_of_any_iterable(autojump_clock: Any) -> None:
    """A list, a tuple, a set or a generator will do, and later changes of a list do nothing."""
    witness, late = Witness(), Witness()
    for observers in [[witness], (witness,), {witness}, (one for one in [witness])]:
        server = memory(Upper, observers=observers)
        assert server.observers == (witness,)
        if isinstance(observers, list):
            observers.append(late)
        async with server.serving():
            await ask(server)
    assert len(witness.outcomes) == 4
    assert late.events == []


async def test_observers_cannot_change_while_bound(autojump_clock: Any) -> None:
    """As every field, `observers` is fixed while the server is bound; evolve() gives a copy."""
    witness = Witness()
    async with memory(Upper) as server:
        with pytest.raises(RuntimeError, match="observers cannot be assigned"):
            server.observers = [witness]
        assert server.evolve(observers=[witness]).observers == (witness,)


# The current request ------------------------------------------------------------------


def current_id() -> int | None:
    """The id of the current request."""
    info = trioserver.current_request()
    return None if info is None else info.id


class Sees:
    """Writes down the current request, by where it was seen."""

    def __init__(self) -> None:
        self.seen: dict[str, int | None] = {}

    def note(self, where: str) -> None:
        self.seen[where] = current_id()

    def request_started(self, info: Any) -> None:
        self.note("request_started")

    def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
        self.note("request_finished")


class SeesInHooks(MemoryServer):
    """Has its first observer note every hook."""

    def note(self, where: str) -> None:
        sees = self.observers[0]
        assert isinstance(sees, Sees)
        sees.note(where)

    async def verify_request(self, request: Any, client_address: Any) -> bool:
        self.note("verify_request")
        return True

    async def process_request(self, request: Any, client_address: Any) -> None:
        self.note("process_request")
        await super().process_request(request, client_address)

    async def handle_error(self, request: Any, client_address: Any) -> None:
        self.note("handle_error")

    async def shutdown_request(self, request: Any) -> None:
        self.note("shutdown_request")
        await super().shutdown_request(request)

    async def close_request(self, request: Any) -> None:
        self.note("close_request")
        await super().close_request(request)


class SeesInMethods(trioserver.BaseRequestHandler):
    """Has its server note every method, and fails."""

    async def setup(self) -> None:
        self.server.note("setup")

    async def handle(self) -> None:
        self.server.note("handle")
        assert trioserver.current_request() is self.info
        raise ValueError("oops")

    async def finish(self) -> None:
        self.server.note("finish")


async def test_current_request_in_handlers_and_hooks(autojump_clock: Any) -> None:
    """A request's hooks, its handler's methods and its observers all see that request."""
    sees = Sees()
    server = memory(SeesInMethods, SeesInHooks, observers=[sees])
    async with server.serving():
        await ask(server)
    assert sees.seen == dict.fromkeys(
        [
            *["request_started", "verify_request", "process_request", "setup", "handle", "finish"],
            *["handle_error", "request_finished", "shutdown_request", "close_request"],
        ],
        1,
    )


async def test_current_request_of_each(autojump_clock: Any) -> None:
    """Requests side by side see themselves, after every wait."""
    seen = []

    async def look(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        for _ in range(3):
            seen.append(current_id() == request.info.id)
            await trio.sleep(1)

    server = memory(look)
    async with server.serving():
        for _ in range(3):
            await server.connect()
    assert seen == [True] * 9


async def test_current_request_in_child_tasks_and_threads() -> None:
    """Tasks and threads that a handler starts inherit it."""
    seen = []

    async def look() -> None:
        seen.append(current_id())

    async def start(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
        seen.append(await trio.to_thread.run_sync(current_id))
        seen.append(await trio.to_thread.run_sync(trio.from_thread.run_sync, current_id))

    server = memory(start)
    with trio.fail_after(10):
        async with server.serving():
            await ask(server)
    assert seen == [1, 1, 1]


async def test_current_request_outside_of_requests(autojump_clock: Any) -> None:
    """Outside there is none, also when a task of the outside serves or connects."""
    seen = []

    class Server(MemoryServer):
        async def service_actions(self) -> None:
            seen.append(current_id())

        async def server_close(self) -> None:
            await super().server_close()
            seen.append(current_id())

    server = memory(Upper, Server)
    async with server.serving():
        await ask(server)
        seen.append(current_id())
    assert seen == [None] * len(seen)
    assert len(seen) >= 3


async def test_current_request_of_a_server_inside_a_request(autojump_clock: Any) -> None:
    """A handler that serves a server of its own: each request sees itself, not the outer one."""
    seen = []

    async def inner(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        seen.append(trioserver.current_request() is request.info)

    async def outer(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        backend = memory(inner)
        async with backend.serving():
            await ask(backend)
        seen.append(trioserver.current_request() is request.info)

    server = memory(outer)
    async with server.serving():
        await ask(server)
    assert seen == [True, True]


async def test_filter_marks_every_record(autojump_clock: Any) -> None:
    """`RequestLogFilter` puts id and address on a record of anybody's, inside a request."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(trioserver.RequestLogFilter())
    handler.setFormatter(logging.Formatter("%(request_id)s %(client_address)s %(message)s"))
    logger = logging.getLogger("somebody's")
    logger.addHandler(handler)

    async def log(request: trioserver.Connection, client_address: Any, server: Any) -> None:
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


async def test_filter_leaves_what_is_there(autojump_clock: Any) -> None:
    """It passes every record, and leaves attributes alone that somebody has set before."""
    record = logging.makeLogRecord({"request_id": "mine"})
    assert trioserver.RequestLogFilter().filter(record)
    assert record.request_id == "mine"
    assert record.client_address is None


# The logs -----------------------------------------------------------------------------


async def test_access_log(autojump_clock: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Each request is one INFO line; listening, draining and the end of the run have one each."""
    caplog.set_level(logging.INFO, logger="trioserver")

    async def think(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        question = await request.recv()
        await trio.sleep(1.5)
        await request.sendall(question.upper())

    server = memory(think)
    async with server.serving(grace=4):
        client = await server.connect(("alice", 7))
        await client.send_all(b"why?")
        await read_to_end(client)
        await client.aclose()
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("trioserver.access", "INFO", "listening on memory:1"),
        (
            "trioserver.access",
            "INFO",
            "request 1 from alice:7 completed after 1.500 s, 4 bytes in, 4 bytes out",
        ),
        ("trioserver.access", "INFO", "draining, 4 s of grace"),
        (
            "trioserver.access",
            "INFO",
            "closed: shutdown() was called: ended in 0.000 s of 4 s grace, 0 unaccepted",
        ),
    ]


async def test_access_log_says_why(autojump_clock: Any, caplog: pytest.LogCaptureFixture) -> None:
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


async def test_access_log_of_a_refused_client(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that was turned away is one INFO line, too."""
    caplog.set_level(logging.INFO, logger="trioserver")
    limits = trioserver.Limits(requests=1, when_full="refuse")
    server = memory(hold, limits=limits)
    async with server.serving(grace=0):
        await server.connect()
        await server.connect(("late", 2))
        await trio.testing.wait_all_tasks_blocked()
    lines = [record.getMessage() for record in logged(caplog, "trioserver.access")]
    assert lines.count("client late:2 refused (the server is full (requests))") == 1


async def test_access_log_keeps_to_one_line(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A reason in many lines, which a client may have made up, cannot forge a line of the log."""
    caplog.set_level(logging.INFO, logger="trioserver")

    async def quote(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        raise ValueError((await request.recv()).decode())

    server = memory(quote)
    async with server.serving():
        await ask(server, b"x\nrequest 2 from bank completed\r\x1b[2J")
    (record,) = [record for record in caplog.records if hasattr(record, "request_id")]
    assert record.getMessage().isprintable()
    assert "ValueError" in record.getMessage()


async def test_access_log_keeps_addresses_to_one_line(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A client of a Unix socket chooses the name of its own, and forges nothing with it either."""
    caplog.set_level(logging.INFO, logger="trioserver")
    server = memory(raising(ValueError("oops")))
    async with server.serving():
        await read_to_end(await server.connect("/tmp/x\nrequest 2 from bank"))  # noqa: S108
    assert len(logged(caplog, "trioserver.error")) == 1
    assert all(record.getMessage().isprintable() for record in caplog.records)


async def test_access_log_can_be_switched_off(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """By default, at WARNING, the access log says nothing at all."""
    caplog.set_level(logging.WARNING, logger="trioserver")
    server = memory(Upper)
    async with server.serving():
        await ask(server)
    assert caplog.records == []


async def test_access_log_filter_that_raises(autojump_clock: Any) -> None:
    """EX-12: somebody's broken filter on our logger harms nobody."""

    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
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


async def test_error_log_has_the_traceback_of_the_error(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """EX-01: one ERROR record, with the client's address, and that very exception's traceback."""
    error = ValueError("oops")
    server = memory(raising(error))
    async with server.serving():
        client = await server.connect(("alice", 7))
        await client.send_eof()
        await read_to_end(client)
    (record,) = logged(caplog, "trioserver.error")
    assert record.levelno == logging.ERROR
    assert "alice:7" in record.getMessage()
    assert record.exc_info[1] is error
    assert "in fail" in caplog.text
    assert "ValueError: oops" in caplog.text


async def test_error_log_of_a_group_has_all_of_it(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """EX-04: a group of two different errors is logged with both tracebacks, each with its own."""

    async def first() -> None:
        raise ValueError("one")

    async def second() -> None:
        raise KeyError("two")

    async def both(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)

    server = memory(both)
    async with server.serving():
        await ask(server)
    assert len(logged(caplog, "trioserver.error")) == 1
    for shown in ["in first", "ValueError: one", "in second", "KeyError: 'two'"]:
        assert caplog.text.count(shown) == 1


async def test_error_log_while_another_exception_is_handled(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """EX-01: the record has the error that ended the request, not one that the handler got over."""
    error = KeyError("final")

    async def fail(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        try:
            raise ValueError("got over")
        except ValueError:
            await trio.lowlevel.checkpoint()
        raise error

    server = memory(fail)
    async with server.serving():
        await ask(server)
    (record,) = logged(caplog, "trioserver.error")
    assert record.exc_info[1] is error
    assert "got over" not in caplog.text


async def test_log_records_name_their_source(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A record says which function logged it, not which helper it went through."""
    caplog.set_level(logging.INFO, logger="trioserver")
    server = memory(raising(ValueError("oops")))
    async with server.serving():
        await ask(server)
    (record,) = logged(caplog, "trioserver.error")
    assert record.funcName == "handle_error"
    assert "log_safely" not in {record.funcName for record in caplog.records}


# In a program of its own --------------------------------------------------------------


def program(source: str) -> subprocess.CompletedProcess[str]:
    """A Python program that configures nothing, run to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_import_configures_nothing() -> None:
    """Importing prints nothing, adds no log handler, sets no level, starts nothing."""
    done = program("""
        import atexit, logging, signal, threading
        signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        exits = atexit._ncallbacks()
        import trio
        trio_exits = atexit._ncallbacks()
        import trioserver, trioserver.testing
        loggers = [logging.root, *map(logging.getLogger, ["trioserver", "trioserver.access",
                   "trioserver.error"])]
        assert [logger.handlers for logger in loggers] == [[], [], [], []]
        assert [logger.level for logger in loggers] == [logging.WARNING, 0, 0, 0]
        assert [logger.filters for logger in loggers] == [[], [], [], []]
        assert all(logger.propagate and not logger.disabled for logger in loggers)
        assert signals == {number: signal.getsignal(number) for number in signal.valid_signals()}
        assert atexit._ncallbacks() == trio_exits
        assert threading.active_count() == 1
        assert logging.lastResort.level == logging.WARNING
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SERVE_ONE = """
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


def test_unconfigured_program_shows_errors() -> None:
    """EX-01: without any configuration an error of a handler is on stderr, with its traceback."""
    done = program(SERVE_ONE.format(body="raise ValueError('oops')"))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("error while serving alice:7\nTraceback (most recent call last)")
    assert done.stderr.endswith("ValueError: oops\n")


def test_unconfigured_program_is_quiet() -> None:
    """Without any configuration, and without errors, nothing is printed."""
    done = program(SERVE_ONE.format(body="pass"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_configured_program_has_an_access_log() -> None:
    """One call of logging.basicConfig is enough to have the access log."""
    source = SERVE_ONE.format(body="pass").replace(
        "import trio,", "import logging; logging.basicConfig(level=logging.INFO); import trio,", 1
    )
    done = program(source)
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "INFO:trioserver.access:listening on memory:1"
    assert lines[1].startswith("INFO:trioserver.access:request 1 from alice:7 completed after ")
    assert len(lines) == 4
