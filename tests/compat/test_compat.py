"""Other people's servers and handlers, unmodified, under load and through a drain."""

import itertools
import socket
import socketserver
import threading
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Any

import attrs
import protocols
import pytest
import sites
import trio
import trio.testing
from case import App, Case, answer_to

import trioserver

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* is not called under adopt"),
    # python-lsp-server, on Python 3.13.
    pytest.mark.filterwarnings("ignore:functools.partial will be a method:FutureWarning"),
]

CLIENTS = 20
EXCHANGES = 10
"""Of each client, before the drain."""

CASES = [*sites.CASES, *protocols.CASES]


@attrs.define
class Traffic:
    """Clients, each in a thread, that ask until they are turned away."""

    case: Case
    app: App
    address: Any
    answered: list[int] = attrs.field(factory=list)
    _numbers: Any = attrs.field(factory=itertools.count)
    _warm: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(0))
    _draining: threading.Event = attrs.field(factory=threading.Event)

    def client(self):
        try:
            with self.case.client(self.address, self.app) as ask:
                for count in itertools.count(1):
                    number = next(self._numbers)
                    assert ask(number) == answer_to(number)
                    self.answered.append(number)
                    if count == EXCHANGES:
                        self._warm.release()
                    if self.case.clients_leave and self._draining.is_set():
                        break
        except self.case.turned_away:
            if not self._draining.is_set():
                raise

    async def through_a_drain(self, at_once, shutdown):
        """Have all of them ask, and drain when ``at_once`` wait for their answers.

        With zero they do not wait for each other, and the drain meets some on their way.
        """
        clients = trio.CapacityLimiter(CLIENTS)
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(lambda: trio.to_thread.run_sync(self.client, limiter=clients))
            for _ in range(CLIENTS):
                await trio.to_thread.run_sync(self._warm.acquire, abandon_on_cancel=True)
            if at_once:
                self.app.hold()
                await trio.to_thread.run_sync(self.app.wait_inside, at_once)
            self._draining.set()
            shutdown()
            if not at_once:
                return
            await trio.testing.wait_all_tasks_blocked(0.02)  # all that is left is to answer
            self.app.release()

    async def meets(self, serve, at_once, shutdown):
        """Nobody is cut off: whatever has reached the application is answered whole."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.through_a_drain, at_once, shutdown)
            report = await serve()
            self.app.server_is_over()
        assert sorted(self.app.asked()) == sorted(self.answered)
        assert len(self.answered) >= CLIENTS * EXCHANGES + at_once
        assert len(report.requests) >= at_once
        assert report.clean, report
        ended = report.statistics.outcomes
        assert ended[trioserver.Outcome.FAILED] == ended[trioserver.Outcome.TIMED_OUT] == 0
        return report


@asynccontextmanager
async def application(case, folder):
    """What stands behind a server, for a minute at most."""
    with closing(case.app(folder)) as app, trio.fail_after(60):
        yield app


@pytest.mark.parametrize("case", [case for case in CASES if case.ours], ids=str)
async def test_their_handler_on_our_server(case, tmp_path):
    """Their handler class runs on one of our servers, at least 200 exchanges and a drain."""
    async with application(case, tmp_path) as app, case.ours(app) as server:
        traffic = Traffic(case, app, server.server_address)
        await traffic.meets(server.serve_forever, CLIENTS, server.shutdown)


async def adopted(case, folder, at_once):
    """What comes of their server under `adopt`, which all clients, or one, drain with."""
    async with application(case, folder) as app:
        server = case.theirs(app)
        if server.socket_type == socket.SOCK_STREAM:
            # 20 clients at once are too many for the 5 that the queue of a classic server holds:
            # the kernel drops what does not fit, and they try again a second later.
            server.socket.listen(64)
        if not isinstance(server, socketserver.ThreadingMixIn):
            at_once = min(at_once, 1)
        traffic = Traffic(case, app, server.server_address)
        serve = partial(trioserver.adopt, server)
        return await traffic.meets(serve, at_once, lambda: case.drain(server))


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_their_server_adopted(case, tmp_path):
    """Their server object is adopted as it is, at least 200 exchanges and a drain."""
    await adopted(case, tmp_path, CLIENTS)


@pytest.mark.parametrize("case", [case for case in CASES if not case.clients_leave], ids=str)
async def test_drain_while_clients_come_and_go(case, tmp_path):
    """Their server, adopted, drains whenever it is told to, at once, and cuts nobody off."""
    report = await adopted(case, tmp_path, 0)
    assert report.duration < 5
