r"""One scene, told by a table: clients that do this and that at their instants, and what they get.

::

    @table({
        "GS-03: a connection that is idle at the drain is closed at once": Scene(
            Upper, {0: b"one\n"}, drain_at=60
        ).gives(b"ONE\n", 60, "drained"),
    })
    async def test_between_requests(scene: Scene, autojump_clock: MockClock) -> None:
        await scene.play()

The sentence of a row is its promise, and the id under which it fails.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import attrs
import pytest
import trio

import trioserver
from trioserver import Limits, Timeouts
from trioserver.testing import MemoryServer

from . import Upper, Witness

A_LONG_TIME = 400 * 86_400.0
"""Virtual seconds after which a scene that does not end fails: more than a year."""


def table(names, rows=None):
    """Parameters of a test, a row for each promise; tuples for several names.

    Rows alone are of a "scene".
    """
    if rows is None:
        names, rows = "scene", names
    return pytest.mark.parametrize(names, list(rows.values()), ids=list(rows))


@attrs.frozen(eq=False)
class Visit:
    """One client of a scene: what it does, and what has to come of it.

    Attributes:
      does: at which instant: sends bytes, or what a function of the client
        does, or several of these.
      address: who the server sees.
      comes_at: the instant at which it connects.
      reads_from: the instant at which it begins to read, and then reads on.
      stays: whether it stays connected when it has the end.
      gets: all that it gets; None: whatever it is.
      breaks: whether it gets an error in the place of the end.
      ends_at: the instant at which it has the end; None: whenever it is.
    """

    does: Mapping[float, Any] = attrs.field(factory=dict)
    address: Any = attrs.field(default=None, kw_only=True)
    comes_at: float = attrs.field(default=0, kw_only=True)
    reads_from: float = attrs.field(default=0, kw_only=True)
    stays: bool = attrs.field(default=False, kw_only=True)
    gets: bytes | None = attrs.field(default=None, kw_only=True)
    breaks: bool = attrs.field(default=False, kw_only=True)
    ends_at: float | None = attrs.field(default=None, kw_only=True)

    def gives(self, gets=None, ends_at=None, **more):
        """The same, and what has to come of it."""
        return attrs.evolve(self, gets=gets, ends_at=ends_at, **more)

    def compare(self, heard):
        assert (heard.error is not None) == self.breaks, heard
        if self.gets is not None:
            assert heard.got == self.gets
        if self.ends_at is not None:
            assert heard.ended_at == self.ends_at


class Heard(NamedTuple):
    """What came of a client: what it got, and when it got the end, or an error in its place."""

    got: bytes
    ended_at: float
    error: trio.BrokenResourceError | None


@attrs.frozen(eq=False)
class Logged:
    """What was logged, with its traceback, and when."""

    at: float
    text: str


@attrs.frozen(eq=False)
class Played:
    """What came of a scene.

    Attributes:
      server: who served.
      heard: what each client got.
      witness: the server's events.
      report: of the run.
      log: all that was logged as more than news.
    """

    server: Any
    heard: Sequence[Heard]
    witness: Witness
    report: trioserver.ShutdownReport
    log: Sequence[Logged]

    @property
    def refusals(self):
        """Who was refused, and why, in order."""
        return [event[1:] for event in self.witness.events if event[0] == "request_refused"]


@attrs.frozen(eq=False)
class Scene(Visit):
    """Clients of a server in memory, on the virtual clock, and what has to come of it.

    It is the visit of the first client; there may be others.

    Attributes:
      handler: who serves them.
      drain_at: when the server is shut down, after what the clients do then; None: at the end.
      grace: of that shutdown, in seconds.
      fields: of the server.
      kind: what server.
      others: the other clients.
      meanwhile: what is done to the server at which instant, after all others.
      outcomes: of all requests, in order; None: whatever they are.
      reason: what is in a record's reason.
      duration: the last record's.
      closed_at: the instant at which nothing is left of the server.
      report: names of what is in the report, or in its statistics, and their values.
      refusals: who was refused, and why, in order; None: whoever was.
      logs: patterns of all that is logged as more than news; None: nothing is,
        unless a request failed.
    """

    handler: Any
    does: Mapping[float, Any] = attrs.field(factory=dict)
    drain_at: float | None = None
    grace: float = 5
    fields: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)
    timeouts: Timeouts = attrs.field(factory=Timeouts, kw_only=True)
    limits: Limits = attrs.field(factory=Limits, kw_only=True)
    kind: Any = attrs.field(default=MemoryServer, kw_only=True)
    others: Sequence[Visit] = attrs.field(default=(), kw_only=True)
    meanwhile: Mapping[float, Callable[[Any], object]] = attrs.field(factory=dict, kw_only=True)
    outcomes: Sequence[str] | None = attrs.field(default=None, kw_only=True)
    reason: str = attrs.field(default="", kw_only=True)
    duration: float | None = attrs.field(default=None, kw_only=True)
    closed_at: float | None = attrs.field(default=None, kw_only=True)
    report: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)
    refusals: Sequence[tuple[Any, str]] | None = attrs.field(default=None, kw_only=True)
    logs: Sequence[str] | None = attrs.field(default=None, kw_only=True)

    def gives(self, gets=None, ends_at=None, *outcomes, **more):
        """The same, and what has to come of it; names of none of these are of the report."""
        given = {"gets": gets, "ends_at": ends_at, "outcomes": outcomes or None, **more}
        given = {name: it for name, it in given.items() if it is not None}
        names = {field.name for field in attrs.fields(Scene)}
        reported = {name: given.pop(name) for name in set(given) - names}
        report = {**self.report, **given.pop("report", {}), **reported}
        return attrs.evolve(self, report=report, **given)

    def beside(self, *others):
        """The same, with more clients."""
        return attrs.evolve(self, others=[*self.others, *others])

    @property
    def visits(self):
        return [self, *self.others]

    async def play(self):
        """Play it, and compare; what came of it is for what a row cannot say."""
        witness = Witness()
        sizes = {"timeouts": self.timeouts, "limits": self.limits}
        server = self.kind(("memory", 1), self.handler, **sizes, **self.fields)
        server = attrs.evolve(server, observers=[*server.observers, witness])
        stage = _Stage(self, server)
        with trio.fail_after(A_LONG_TIME), logged() as log:
            async with server.serving():
                await stage.play()
                if server.draining:
                    await server.wait_closed()
        closed_at = trio.current_time()
        heard = [stage.heard[visit] for visit in range(len(self.visits))]
        played = Played(server, heard, witness, await server.wait_closed(), log)
        self._compare(played, closed_at)
        return played

    def _compare(self, played, closed_at):
        for visit, heard in zip(self.visits, played.heard, strict=True):
            visit.compare(heard)
        witness = played.witness
        if self.outcomes is not None:
            assert witness.outcomes == list(self.outcomes)
        if self.refusals is not None:
            assert played.refusals == list(self.refusals)
        if self.reason:
            reasons = [str(record.reason) for record in witness.records]
            assert any(self.reason in reason for reason in reasons), reasons
        if self.duration is not None:
            assert witness.records[-1].duration == self.duration
        if self.closed_at is not None:
            assert closed_at == self.closed_at
        for name, value in self.report.items():
            holder = played.report if hasattr(played.report, name) else played.report.statistics
            assert (name, getattr(holder, name)) == (name, value)
        if self.logs is not None or "failed" not in witness.outcomes:
            logs = self.logs or ()
            assert len(played.log) == len(logs), played.log
            for part, it in zip(logs, played.log, strict=True):
                assert re.search(part, it.text, re.DOTALL), it.text


@attrs.define(eq=False)
class _Stage:
    """Where a scene is played: who has come, and what each has got."""

    scene: Scene
    server: Any
    clients: dict[int, Any] = attrs.field(factory=dict)
    heard: dict[int, Heard] = attrs.field(factory=dict)

    async def play(self):
        """Play it until every client has the end."""
        visits = self.scene.visits
        instants = {*self.scene.meanwhile, self.scene.drain_at} - {None}
        instants.update(*(visit.does for visit in visits), (visit.comes_at for visit in visits))
        async with trio.open_nursery() as nursery:
            for instant in sorted(instants):
                await trio.sleep_until(instant)
                await self._act(instant, nursery)

    async def _act(self, instant, nursery):
        for number, visit in enumerate(self.scene.visits):
            if visit.comes_at == instant:
                client = self.server.listener.connect_now(visit.address)
                self.clients[number] = client
                nursery.start_soon(self._hear, number, visit, client)
            if instant in visit.does:
                # Suppressed: the server has ended it, which the row knows.
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await act(self.clients[number], visit.does[instant])
        if instant == self.scene.drain_at:
            self.server.shutdown(self.scene.grace)
        if instant in self.scene.meanwhile:
            self.scene.meanwhile[instant](self.server)

    async def _hear(self, number, visit, client):
        await trio.sleep_until(visit.reads_from)
        self.heard[number] = await hear(client)
        if not visit.stays:
            client.close()


async def act(connection, *steps):
    """Do what a row says: send bytes, call a function of the connection, or several of these."""
    for step in steps:
        if isinstance(step, list):
            await act(connection, *step)
        else:
            await (connection.send_all(step) if isinstance(step, bytes) else step(connection))


async def hear(client):
    """All that a client gets, when it has the end, and the error in the end's place."""
    got, error = b"", None
    try:
        while data := await client.receive_some():
            got += data
    except trio.BrokenResourceError as broken:
        error = broken
    except trio.ClosedResourceError:
        pass  # by itself
    return Heard(got, trio.current_time(), error)


# What clients and handlers do ---------------------------------------------------------------


def does(*steps):
    """A handler that does this with each connection: see `act`."""

    async def handler(request, client_address, server):
        await act(request, *steps)

    return handler


def sleep(seconds):
    """Wait."""
    return lambda connection: trio.sleep(seconds)  # noqa: ASYNC105  (who calls it awaits it)


def idle(*steps):
    """Do this in an idle block."""

    async def block(connection):
        with connection.idle():
            await act(connection, *steps)

    return block


async def close(client):
    """Close the connection, without a checkpoint."""
    client.close()


async def reset(client):
    """Reset it, without a checkpoint."""
    client.reset()


async def end(client):
    """End the client's output."""
    await client.send_eof()


def drip(every, until, start=0, data=b"x"):
    """A byte now, and one every few seconds."""
    return {start + every * n: data for n in range(int((until - start) / every) + 1)}


class Narrow(MemoryServer):
    """Holds ten bytes on their way, so that a send soon has to wait for the reader."""

    memory_capacity = 10


# What is looked at meanwhile --------------------------------------------------------------


def states(*expected):
    """See what each of the connections that are open is doing."""

    def look(server):
        assert [request.state for request in server.snapshot().requests] == list(expected)

    return look


def counts(**expected):
    """See some of the server's statistics."""

    def look(server):
        found = server.statistics()
        assert {name: getattr(found, name) for name in expected} == expected

    return look


# Where a table does not fit ---------------------------------------------------------------


def in_memory(handler=Upper, kind=MemoryServer, **fields):
    """A server in memory."""
    return kind(("memory", 1), handler, **fields)


def on_tcp(handler=Upper, kind=trioserver.TCPServer, **fields):
    """A server on the loopback interface."""
    return kind(("127.0.0.1", 0), handler, **fields)


async def heard_by(client):
    """Everything up to the end that a blocking socket gets."""
    return await trio.to_thread.run_sync(lambda: b"".join(iter(lambda: client.recv(65_536), b"")))


@contextmanager
def logged():
    """All that is logged in the block as more than news."""
    texts = []

    class Keep(logging.Handler):
        def emit(self, record):
            texts.append(Logged(trio.current_time(), self.format(record)))

    keep = Keep(logging.WARNING)
    logging.getLogger("trioserver").addHandler(keep)
    try:
        yield texts
    finally:
        logging.getLogger("trioserver").removeHandler(keep)
