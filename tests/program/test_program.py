"""`trioserver.run`: a whole program, which signals drain, cancel, and end."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import trio
from support import Witness, hold, plain_client
from support.in_memory_programs import ADDRESS, Deeds, until_draining, visited
from support.memory import noting, raising
from support.scenes import table

import trioserver
from trioserver.testing import MemoryServer

SIGNALS = [signal.SIGINT, signal.SIGTERM]
HEEDED = [*SIGNALS, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
BROKEN, GONE = OSError(errno.EBADF, "broken"), SystemExit(3)


pytestmark = pytest.mark.usefixtures("handlers")


class Breaks(Deeds):
    """And this one."""

    async def breaks(self):
        self.server.listener.fail(BROKEN)
        await trio.sleep_forever()


visited = partial(visited, deeds=Breaks)


def current_handlers():
    """The handlers that signals have now."""
    return {number: signal.getsignal(number) for number in HEEDED}


def test_grace_of_all():
    """`grace` is that of all servers; without it each has its own; `run` can be called again."""
    timeouts = [trioserver.Timeouts(shutdown=seconds) for seconds in (0, 3)]
    first = visited("signals 15; sleep_forever")
    second = MemoryServer(ADDRESS, hold, timeouts=timeouts[1])
    for _ in range(2):
        reports = trioserver.run(first, second, grace=0)
        assert [report.grace for report in reports] == [0, 0]
        assert len(reports[0].cancelled) == 1
    first.timeouts = timeouts[0]
    assert [report.grace for report in trioserver.run(first, second)] == [0, 3]


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_second_signal_cancels(first, second):
    """The second signal, of whatever kind, cancels what is left; its number is in the status."""
    steps = f"signals {first:d}; signals {second:d}; sleep_forever"
    server = visited(steps, observers=[witness := Witness()])
    with pytest.raises(SystemExit) as caught:
        trioserver.run(server)
    assert caught.value.code == 128 + second
    (record,) = witness.records
    assert record.outcome == "cancelled"
    assert record.reason == f"a second signal: {signal.Signals(second).name}"
    assert server.snapshot().state == "unbound"


def test_servers_drain_in_one_step():
    """GS-10: at a signal all servers stop accepting, before the requests of any are waited for."""
    together = []

    async def look(request, client_address, server):
        if server is servers[0]:
            signal.raise_signal(signal.SIGTERM)
        await until_draining(server)
        together.append([other.draining for other in servers])

    servers = [visited(look) for _ in range(3)]
    trioserver.run(*servers)
    assert together[0] == [True, True, True]


def test_server_that_ends_alone():
    """One that its own handler shuts down ends alone; the reports are in the servers' order."""
    draining = []

    async def outlast(request, client_address, server):
        await servers[1].wait_closed()
        draining.append(server.draining)
        await request.send_all(b"x")
        signal.raise_signal(signal.SIGTERM)
        await until_draining(server)

    servers = [visited(outlast), visited("shutdown")]
    reports = trioserver.run(*servers)
    assert [report.statistics.bytes_sent for report in reports] == [1, 0]
    assert draining == [False]


@pytest.mark.parametrize(("handler", "error"), [("breaks", BROKEN), (raising(GONE), GONE)])
def test_server_that_fails(handler, error):
    """It cancels the others, and its very error, or its handler's exit, is raised, bare."""
    other, broken = visited("sleep_forever", observers=[witness := Witness()]), visited(handler)
    with pytest.raises(type(error)) as caught:
        trioserver.run(other, broken)
    assert caught.value is error
    assert witness.outcomes == ["cancelled"]
    assert [it.snapshot().state for it in (other, broken)] == ["unbound", "unbound"]


def test_run_that_is_refused():
    """No servers, one twice, a port that is taken, or a wrong grace: nobody is served."""
    server = MemoryServer(ADDRESS, hold, observers=[witness := Witness()])
    with pytest.raises(TypeError, match="at least one server"):
        trioserver.run()
    for grace, kind in ((-1, ValueError), ("soon", TypeError)):
        with pytest.raises(kind, match="grace"):
            trioserver.run(server, grace=grace)  # and not when the signal comes
    assert witness.names == []
    with pytest.raises(RuntimeError):
        trioserver.run(server, server)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="cannot listen on") as caught:
            trioserver.run(server, trioserver.TCPServer(taken.getsockname(), hold))
    assert caught.value.errno == errno.EADDRINUSE
    assert server.snapshot().state == "unbound"


IN_ORDER = ["server_listening", "draining", "server_closed"]


@pytest.mark.parametrize(
    ("hook", "names"), [("server_bind", IN_ORDER), ("server_bind", []), ("server_activate", [])]
)
def test_signal_before_a_server_listens(hook, names, virtual_clock):
    """It ends as soon as it can, in order; one that would wait in vain, when the grace is over."""
    wait = trio.testing.wait_all_tasks_blocked if names else trio.sleep_forever

    async def interrupted(server, hook):
        signal.raise_signal(signal.SIGTERM)
        await wait()

    server = noting(MemoryServer, [hook], interrupted)(ADDRESS, hold)
    server.observers = [witness := Witness()]
    (report,) = trioserver.run(server)
    assert report.clean
    assert witness.names == names
    assert virtual_clock.current_time() == (0 if names else server.timeouts.shutdown)


class SignalsAt(trio.abc.Instrument):
    """Sends a signal after so many steps of tasks; 0: before all of them."""

    def __init__(self, step):
        self._left = step

    @property
    def has_sent(self):
        """Whether there were so many."""
        return self._left <= 0

    def before_run(self):
        self._signal_if_due()

    def after_task_step(self, task):
        self._left -= 1
        self._signal_if_due()

    def _signal_if_due(self):
        if not self._left:
            signal.raise_signal(signal.SIGTERM)


def test_signal_before_the_server_has_begun(monkeypatch):
    """A signal that arrives before the server's task has begun counts, in every run of it."""
    heard = []

    async def give_up(server, hook):
        await trio.testing.wait_all_tasks_blocked()
        heard.append(server.draining)
        server.shutdown()

    run, kind = trio.run, noting(MemoryServer, ["service_actions"], give_up)
    for attempt in range(40):  # Trio shuffles the tasks
        monkeypatch.setattr(trio, "run", partial(run, instruments=[SignalsAt(attempt % 4)]))
        trioserver.run(kind(ADDRESS, hold))
    assert all(heard)


@table(
    "options",
    {
        "nothing else": {},
        "unready first": {"ready_off": 5},
        "health checks": {"health": ("127.0.0.1", 0)},
    },
)
def test_signal_after_every_step(options, monkeypatch):
    """Whenever it comes, the program ends in order: also when it was about to end by itself."""
    run, sent, step = trio.run, True, 0
    while sent:
        # Health checks come by the kernel, which takes a moment.
        clock = trio.testing.MockClock(autojump_threshold=0.02 if "health" in options else 0)
        signals = SignalsAt(step)
        monkeypatch.setattr(trio, "run", partial(run, instruments=[signals], clock=clock))
        (report,) = trioserver.run(visited("shutdown"), **options)
        assert report.clean
        sent, step = signals.has_sent, step + 1
    assert step > 20


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        ("shutdown 0", None),
        ("signals 15; signals 2; sleep_forever", SystemExit),
        (raising(BROKEN), OSError),
    ],
)
def test_handlers_are_as_before(handler, error, handlers):
    """SG-07: however it ends, the program has its signal handlers back."""
    during = []
    looks = SimpleNamespace(server_listening=lambda _: during.append(current_handlers()))
    server = visited(handler, observers=[looks], propagate_errors=True)
    with pytest.raises(error) if error else nullcontext():
        trioserver.run(server)
    assert current_handlers() == handlers
    assert during != [handlers]


def test_run_and_other_threads(handlers):
    """SG-06: in one, `run` serves, and leaves signals alone; in one, `shutdown` can be called."""
    during, reports = [], []

    async def look(request, client_address, server):
        during.append(current_handlers())
        threading.Thread(target=server.shutdown).start()

    server = visited(look)
    thread = threading.Thread(target=lambda: reports.extend(trioserver.run(server)))
    thread.start()
    thread.join(10)
    reports += trioserver.run(server)
    assert [report.statistics.accepted for report in reports] == [1, 1]
    assert during[0] == handlers != during[1]


PROGRAM = """
import os, signal, sys, time, types
import trio, trioserver

install = signal.signal

def install_telling(number, handler):
    def tell(number, frame):
        os.write(1, b"got it\\n")
        handler(number, frame)

    tell.is_telling = True  # Trio installs SIGINT's anew, as it is, to see whether it may
    telling = callable(handler) and not hasattr(handler, "is_telling")
    return install(number, tell if telling else handler)

signal.signal = install_telling

async def handle(request, client_address, server):
    await request.send_all(b"hello")
    try:
        with trio.CancelScope(shield=sys.argv[1] == "shields itself"):
            if sys.argv[1] == "blocks it all":
                time.sleep(600)
            await request.send_all(await request.receive_some())
    finally:
        print("cleaned up", flush=True)

tells = types.SimpleNamespace(
    server_listening=lambda addresses: print(*addresses[0], flush=True),
    draining=lambda grace: print("draining", flush=True),
)
server = trioserver.TCPServer(("127.0.0.1", 0), handle, observers=[tells])
print(trioserver.run(server)[0].clean, flush=True)
"""


class Program(subprocess.Popen):
    """A server in a process of its own, with one client in the middle of its request."""

    def send(self, number):
        """Send it a signal, and wait until that has arrived, whatever it says before."""
        self.send_signal(number)
        assert "got it" in iter(self.says, "")

    def says(self):
        """The next line that it prints, the empty one at its end."""
        return self.stdout.readline().strip()


@contextmanager
def program(source, argument, greeting):
    """Run it, and connect once it tells where; killed if it does not end."""
    command = [sys.executable, "-W", "ignore", "-c", source, argument]
    with Program(command, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(20, process.kill)
        watchdog.start()
        try:
            host, port = process.says().split()
            with plain_client((host, int(port))) as process.client:
                assert process.client.recv(5) == greeting
                yield process
        finally:
            process.kill()
            watchdog.cancel()


@pytest.mark.parametrize("number", SIGNALS)
def test_program_drains(number):
    """SG-01: a signal refuses new clients, lets the request finish, and the program ends with 0."""
    with program(PROGRAM, "echoes", b"hello") as it:
        it.send(number)
        assert it.says() == "draining"
        with pytest.raises(ConnectionRefusedError):
            plain_client(it.client.getpeername())
        it.client.sendall(b"late")
        it.client.shutdown(socket.SHUT_WR)
        assert it.client.recv(5) == b"late"
        assert it.client.recv(5) == b""
        assert (it.says(), it.says()) == ("cleaned up", "True")
        assert it.wait(10) == 0


@pytest.mark.parametrize("handler", ["shields itself", "blocks it all"])
def test_program_ends_on_the_spot(handler):
    """A third signal ends the process, whatever a handler does: shield itself, or block it all."""
    with program(PROGRAM, handler, b"hello") as it:
        for _ in range(2):
            it.send(signal.SIGTERM)
        assert it.poll() is None
        it.send(signal.SIGTERM)
        assert it.wait(10) == -signal.SIGTERM


FORKS = """
import multiprocessing, os, signal, sys, time, types, trioserver

processes = multiprocessing.get_context("fork")

def ends_them_at_once():
    for _ in range(20):
        child = processes.Process(target=time.sleep, args=[60])
        child.start()
        child.terminate()
        child.join(5)
        assert child.exitcode == -signal.SIGTERM, child.exitcode

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

def runs_trio_in_one():
    if (child := os.fork()) == 0:
        import trio, warnings
        warnings.simplefilter("error")
        trio.run(trio.lowlevel.checkpoint)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

def forks(request, client_address, server):
    globals()[sys.argv[1]]()
    request.sendall(b"done")

tells = types.SimpleNamespace(server_listening=lambda addresses: print(*addresses[0], flush=True))
trioserver.run(trioserver.ThreadingTCPServer(("127.0.0.1", 0), forks, observers=[tells]))
print("ended", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["ends_them_at_once", "interrupts_it", "runs_trio_in_one"])
def test_signals_of_a_child_that_a_handler_forks(deed):
    """They do what they did before `run`: what waits for them is the parent, and it alone."""
    with program(FORKS, deed, b"done") as it:
        it.send_signal(signal.SIGTERM)
        assert (it.says(), it.says()) == ("ended", "")
        assert it.wait(10) == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of the threads of other tests
def test_signal_handler_of_its_own_stays_in_a_child(handlers):
    """What the program has put in the place of ours since, a child has, too; and the mask."""

    async def forks(request, client_address, server):
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

    statuses = []
    trioserver.run(visited(forks))
    assert statuses == [0]
