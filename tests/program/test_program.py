"""`trioserver.run`: a whole program, which signals drain, cancel, and end."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from support import Witness, hold, plain_client

import trioserver
from trioserver.testing import MemoryServer

ADDRESS = ("memory", 1)
IMPATIENT = trioserver.Timeouts(linger=0)
SIGNALS = [signal.SIGINT, signal.SIGTERM]


class OopsError(Exception):
    """What these tests raise."""


class Visited(MemoryServer):
    """Has a client as soon as it listens."""

    async def server_activate(self) -> None:
        await super().server_activate()
        self.listener.connect_now()


async def until_draining(server: trioserver.BaseServer) -> None:
    """Return when the server drains."""
    while not server.draining:
        await trio.lowlevel.checkpoint()


@attrs.define
class Sends:
    """A handler that sends its own program signals: one, and the next when it drains; stays."""

    signals: Sequence[int]

    async def __call__(self, request: Any, client_address: Any, server: Any) -> None:
        for number in self.signals:
            signal.raise_signal(number)
            await until_draining(server)
        await trio.sleep_forever()


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, Any]]:
    """The signal handlers of the test's own: harmless, and as they were when it ends."""
    harmless = {number: (lambda number, frame: None) for number in SIGNALS}
    before = {number: signal.signal(number, harmless[number]) for number in SIGNALS}
    yield harmless
    for number in SIGNALS:
        signal.signal(number, before[number])


def current_handlers() -> dict[int, Any]:
    """The handlers that signals have now."""
    return {number: signal.getsignal(number) for number in SIGNALS}


# In this process -------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_drains(number: int) -> None:
    """The first signal begins a drain: the request in flight finishes, and `run` returns."""

    async def finish(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        signal.raise_signal(number)
        await until_draining(server)
        await request.send_all(b"finished")

    server = Visited(ADDRESS, finish, timeouts=IMPATIENT)
    (report,) = trioserver.run(server)
    assert [(it.outcome, it.bytes_sent) for it in report.requests] == [("completed", 8)]
    assert report.grace == IMPATIENT.shutdown


def test_grace_of_all() -> None:
    """`grace` is that of all servers; without it each has its own."""
    servers = [
        Visited(ADDRESS, Sends([signal.SIGTERM])),
        MemoryServer(ADDRESS, hold, timeouts=trioserver.Timeouts(shutdown=3)),
    ]
    reports = trioserver.run(*servers, grace=0)
    assert [report.grace for report in reports] == [0, 0]
    assert len(reports[0].cancelled) == 1

    servers[0] = servers[0].evolve(timeouts=trioserver.Timeouts(shutdown=0))
    assert [report.grace for report in trioserver.run(*servers)] == [0, 3]


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_second_signal_cancels(first: int, second: int) -> None:
    """The second signal, of whatever kind, cancels what is left; its number is in the status."""
    server = Visited(ADDRESS, Sends([first, second]), observers=[witness := Witness()])
    with pytest.raises(SystemExit) as caught:
        trioserver.run(server)
    assert caught.value.code == 128 + second
    (record,) = witness.records
    assert record.outcome == "cancelled"
    assert record.reason == f"a second signal: {signal.Signals(second).name}"
    assert server.snapshot().state == "unbound"


def test_servers_drain_in_one_step() -> None:
    """GS-10: at a signal all servers stop accepting, before the requests of any are waited for."""
    together = []

    async def look(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        if server is servers[0]:
            signal.raise_signal(signal.SIGTERM)
        await until_draining(server)
        together.append([other.draining for other in servers])

    servers = [Visited(ADDRESS, look, timeouts=IMPATIENT) for _ in range(3)]
    trioserver.run(*servers)
    assert together[0] == [True, True, True]


def test_reports_are_in_order() -> None:
    """The reports come in the order of the servers, not in that in which they ended."""

    async def outlast(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        while servers[1].snapshot().state != "unbound":
            await trio.lowlevel.checkpoint()

    servers = [Visited(ADDRESS, outlast, timeouts=IMPATIENT), MemoryServer(ADDRESS, hold)]
    reports = trioserver.run(*servers)
    assert [report.statistics.accepted for report in reports] == [1, 0]


def test_server_that_ends_alone() -> None:
    """A server that is shut down by its own handler ends alone; the others go on."""

    async def leave(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        server.shutdown()

    class Outlives(MemoryServer):
        async def service_actions(self) -> None:
            await first.wait_closed()
            assert not self.draining
            signal.raise_signal(signal.SIGTERM)
            await until_draining(self)

    first = Visited(ADDRESS, leave, timeouts=IMPATIENT)
    reports = trioserver.run(first, Outlives(ADDRESS, hold))
    assert [report.statistics.accepted for report in reports] == [1, 0]


def test_server_that_fails() -> None:
    """A server that fails cancels the others, and its very error is raised, bare."""
    error = OSError(errno.EBADF, "broken")

    async def break_down(request: trioserver.Connection, client: Any, server: Any) -> None:
        server.listener.fail(error)
        await trio.sleep_forever()

    other = Visited(ADDRESS, hold, observers=[witness := Witness()])
    broken = Visited(ADDRESS, break_down)
    with pytest.raises(OSError, match="broken") as caught:
        trioserver.run(other, broken)
    assert caught.value is error
    assert witness.outcomes == ["cancelled"]
    assert [it.snapshot().state for it in (other, broken)] == ["unbound", "unbound"]


def test_server_that_cannot_bind() -> None:
    """A port that is taken is an OSError out of `run`, bare, and the others are not served."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        servers = [
            MemoryServer(ADDRESS, hold),
            trioserver.TCPServer(taken.getsockname(), hold),
        ]
        with pytest.raises(OSError, match="cannot listen on") as caught:
            trioserver.run(*servers)
    assert caught.value.errno == errno.EADDRINUSE
    assert servers[0].snapshot().state == "unbound"


def test_handler_that_exits() -> None:
    """A handler's SystemExit leaves `run` as that very object."""
    error = SystemExit(3)

    async def leave(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        trioserver.run(Visited(ADDRESS, leave), MemoryServer(ADDRESS, hold))
    assert caught.value is error


def test_signal_before_the_server_listens() -> None:
    """A signal while a server binds has it end as soon as it can, in order."""

    class SlowToBind(MemoryServer):
        async def server_bind(self) -> Sequence[trioserver.Listener]:
            signal.raise_signal(signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
            return await super().server_bind()

    server = SlowToBind(ADDRESS, hold, observers=[witness := Witness()])
    (report,) = trioserver.run(server)
    assert report.clean
    assert witness.names == ["server_listening", "draining", "server_closed"]


@pytest.mark.parametrize("hook", ["server_bind", "server_activate"])
def test_signal_while_a_server_never_listens(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One signal ends also a program that waits in vain to be bound, when the grace is over."""

    async def waits(self: MemoryServer) -> None:
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep_forever()

    server = type("Stuck", (MemoryServer,), {hook: waits})(ADDRESS, hold)
    clock = trio.testing.MockClock(autojump_threshold=0)
    monkeypatch.setattr(trio, "run", partial(trio.run, clock=clock))
    (report,) = trioserver.run(server)
    assert report.clean
    assert clock.current_time() == server.timeouts.shutdown


@attrs.define(eq=False)
class SignalsFirst(trio.abc.Instrument):
    """Sends a signal as soon as there is somebody to hear it, before any server has begun."""

    _deaf: Any = attrs.field(factory=current_handlers)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if current_handlers() != self._deaf:
            trio.lowlevel.remove_instrument(self)
            signal.raise_signal(signal.SIGTERM)


def test_signal_before_the_server_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that arrives before the server's task has begun counts, in every run of it."""
    unheard = 0

    class GivesUp(MemoryServer):
        async def service_actions(self) -> None:
            nonlocal unheard
            await trio.testing.wait_all_tasks_blocked()
            unheard += not self.draining
            self.shutdown()

    server = GivesUp(ADDRESS, hold)
    run = trio.run
    for _ in range(20):  # Trio shuffles the tasks
        monkeypatch.setattr(trio, "run", partial(run, instruments=[SignalsFirst()]))
        trioserver.run(server)
    assert unheard == 0


def shut_down_first(server: MemoryServer) -> None:
    """A run that ends at once."""
    server.shutdown(grace=0)
    trioserver.run(server)


def signal_twice(server: MemoryServer) -> None:
    """A run that a second signal ends."""
    server.RequestHandlerClass = Sends([signal.SIGTERM, signal.SIGINT])
    with pytest.raises(SystemExit):
        trioserver.run(server)


def fail_in_handler(server: MemoryServer) -> None:
    """A run that fails."""

    async def fail(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        raise OopsError

    server.RequestHandlerClass = fail
    server.propagate_errors = True
    with pytest.raises(OopsError):
        trioserver.run(server)


@pytest.mark.parametrize("end", [shut_down_first, signal_twice, fail_in_handler])
def test_handlers_are_as_before(end: Any, handlers: dict[int, Any]) -> None:
    """However it ends, the program has its signal handlers back."""
    during = []

    class Looks(trioserver.Observer):
        def server_listening(self, addresses: Any) -> None:
            during.append(current_handlers())

    end(Visited(ADDRESS, hold, observers=[Looks()]))
    assert current_handlers() == handlers
    assert during != [handlers]


def test_run_in_another_thread(handlers: dict[int, Any]) -> None:
    """In another thread than the main one, `run` serves, and leaves all signals alone."""
    during = []
    reports: list[trioserver.ShutdownReport] = []

    async def look(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        during.append(current_handlers())
        server.shutdown()

    server = Visited(ADDRESS, look, timeouts=IMPATIENT)
    thread = threading.Thread(target=lambda: reports.extend(trioserver.run(server)))
    thread.start()
    thread.join(10)
    assert [report.statistics.accepted for report in reports] == [1]
    assert during == [handlers]


def test_run_ended_from_another_thread() -> None:
    """A server that is shut down from a thread of the program's own ends `run`."""

    class Starts(trioserver.Observer):
        def server_listening(self, addresses: Any) -> None:
            threading.Thread(target=server.shutdown).start()

    server = MemoryServer(ADDRESS, hold, observers=[Starts()])
    (report,) = trioserver.run(server)
    assert report.clean


def test_run_again() -> None:
    """`run` can be called again, with the same server."""
    server = Visited(ADDRESS, Sends([signal.SIGTERM]))
    for _ in range(2):
        (report,) = trioserver.run(server, grace=0)
        assert len(report.cancelled) == 1


def test_run_without_servers() -> None:
    """`run` needs at least one server."""
    with pytest.raises(TypeError, match="at least one server"):
        trioserver.run()


def test_run_with_one_server_twice() -> None:
    """One server cannot serve twice at once, here neither."""
    server = MemoryServer(ADDRESS, hold)
    with pytest.raises(RuntimeError):
        trioserver.run(server, server)
    assert server.snapshot().state == "unbound"


@pytest.mark.parametrize(("grace", "kind"), [(-1, ValueError), ("soon", TypeError)])
def test_run_with_a_wrong_grace(grace: Any, kind: type[Exception]) -> None:
    """A wrong grace is refused before anything is served, not when the signal comes."""
    server = MemoryServer(ADDRESS, hold, observers=[witness := Witness()])
    with pytest.raises(kind, match="grace"):
        trioserver.run(server, grace=grace)
    assert witness.names == []


# As a program ----------------------------------------------------------------

PROGRAM = """
import os, signal, sys, time
import trio, trioserver

install = signal.signal

def install_telling(number, handler):
    def tell(number, frame):
        os.write(1, b"got it\\n")
        handler(number, frame)

    return install(number, tell if callable(handler) else handler)

signal.signal = install_telling

class Tells(trioserver.Observer):
    def server_listening(self, addresses):
        print(*addresses[0], flush=True)

    def draining(self, grace):
        print("draining", flush=True)

async def echo(request, client_address, server):
    await request.send_all(b"hello")
    await request.send_all(await request.receive_some())

async def hold(request, client_address, server):
    await request.send_all(b"hello")
    try:
        await trio.sleep_forever()
    finally:
        print("cleaned up", flush=True)

async def stubborn(request, client_address, server):
    await request.send_all(b"hello")
    with trio.CancelScope(shield=True):
        try:
            await trio.sleep_forever()
        finally:
            print("never", flush=True)

async def asleep(request, client_address, server):
    await request.send_all(b"hello")
    time.sleep(600)

async def in_circles(request, client_address, server):
    await request.send_all(b"hello")
    while True:
        pass

server = trioserver.TCPServer(("127.0.0.1", 0), globals()[sys.argv[1]], observers=[Tells()])
reports = trioserver.run(server)
print(reports[0].clean, flush=True)
"""


@attrs.define
class Program:
    """A server in a process of its own, with one client in the middle of its request."""

    process: subprocess.Popen[str]
    client: socket.socket
    address: Any

    def send(self, number: int) -> None:
        """Send it a signal, and wait until that has arrived, whatever it says before."""
        self.process.send_signal(number)
        assert "got it" in iter(self.says, "")

    def says(self) -> str:
        """The next line that it prints, the empty one at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def program(handler: str) -> Iterator[Program]:
    """Run `PROGRAM` with one of its handlers; killed if it does not end."""
    command = [sys.executable, "-c", PROGRAM, handler]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(20, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            host, port = process.stdout.readline().split()
            with plain_client((host, int(port))) as client:
                assert client.recv(5) == b"hello"
                yield Program(process, client, (host, int(port)))
        finally:
            process.kill()
            watchdog.cancel()


@pytest.mark.parametrize("number", SIGNALS)
def test_program_drains(number: int) -> None:
    """A signal refuses new clients, lets the request finish, and ends the program with 0."""
    with program("echo") as it:
        it.send(number)
        assert it.says() == "draining"
        with pytest.raises(ConnectionRefusedError):
            plain_client(it.address)
        it.client.sendall(b"late")
        it.client.shutdown(socket.SHUT_WR)
        assert it.client.recv(5) == b"late"
        assert it.client.recv(5) == b""
        assert it.says() == "True"
        assert it.process.wait(10) == 0


@pytest.mark.parametrize("second", SIGNALS)
def test_program_is_cancelled(second: int) -> None:
    """A second signal cancels the request, which cleans up, and the status tells which signal."""
    with program("hold") as it:
        it.send(signal.SIGTERM)
        assert it.says() == "draining"
        it.send(second)
        assert it.says() == "cleaned up"
        assert it.process.wait(10) == 128 + second


@pytest.mark.parametrize("handler", ["stubborn", "asleep", "in_circles"])
def test_program_ends_on_the_spot(handler: str) -> None:
    """A third signal ends the process, whatever a handler does: shield itself, or block it all."""
    with program(handler) as it:
        for _ in range(2):
            it.send(signal.SIGTERM)
        assert it.process.poll() is None
        it.send(signal.SIGTERM)
        assert it.process.wait(10) == -signal.SIGTERM


# A handler forks ---------------------------------------------------------------

FORKS = """
import multiprocessing, os, signal, socketserver, sys, time, trioserver

processes = multiprocessing.get_context("fork")

def double(number):
    return 2 * number

def ends_them_at_once():
    for _ in range(20):
        child = processes.Process(target=time.sleep, args=[60])
        child.start()
        child.terminate()
        child.join(5)
        assert child.exitcode == -signal.SIGTERM, child.exitcode

def has_a_pool():
    with processes.Pool(2) as pool:  # which it terminates
        assert pool.map(double, [1, 2]) == [2, 4]

def leaves_a_daemon():
    processes.Process(target=time.sleep, args=[60], daemon=True).start()

def interrupts_it():
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(writer, b"!")
            time.sleep(60)
        except KeyboardInterrupt:
            os._exit(7)
    os.read(reader, 1)
    # Again and again: in a child of a thread, Python 3.13 heeds one that comes before the sleep
    # only when the next one ends the sleep (87 of 100, without any server).
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        os.kill(child, signal.SIGINT)
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(ended[1]) == 7

def has_one_that_runs_trio():
    if (child := os.fork()) == 0:
        import trio, warnings
        warnings.simplefilter("error")
        trio.run(trio.lowlevel.checkpoint)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

class Forks(socketserver.StreamRequestHandler):
    def handle(self):
        globals()[sys.argv[1]]()
        self.wfile.write(b"done")

class Tells(trioserver.Observer):
    def server_listening(self, addresses):
        print(*addresses[0], flush=True)

trioserver.run(trioserver.ThreadingTCPServer(("127.0.0.1", 0), Forks, observers=[Tells()]))
print("ended", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks there")
@pytest.mark.parametrize(
    "deed",
    [
        *("ends_them_at_once", "has_a_pool", "leaves_a_daemon", "interrupts_it"),
        "has_one_that_runs_trio",
    ],
)
def test_signals_of_a_child_that_a_handler_forks(deed: str) -> None:
    """They do what they did before `run`: what waits for them is the parent, and it alone."""
    command = [sys.executable, "-W", "ignore", "-c", FORKS, deed]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(20, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            host, port = process.stdout.readline().split()
            with plain_client((host, int(port))) as client:
                assert client.recv(5) == b"done"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "ended\n"
            assert process.wait(10) == 0
        finally:
            process.kill()
            watchdog.cancel()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks there")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of the threads of other tests
def test_signal_handler_of_its_own_stays_in_a_child(handlers: dict[int, Any]) -> None:
    """What the program has put in the place of ours since, a child has, too; and the mask."""

    async def forks(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        if (child := os.fork()) == 0:
            is_right = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            is_right &= signal.getsignal(signal.SIGINT) is handlers[signal.SIGINT]
            is_right &= signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
            os._exit(0 if is_right else 1)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
        signal.signal(signal.SIGTERM, ours)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))  # noqa: ASYNC222
        server.shutdown()

    statuses: list[int] = []
    trioserver.run(Visited(ADDRESS, forks, timeouts=IMPATIENT))
    assert statuses == [0]
