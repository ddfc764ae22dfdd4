"""Handlers for worker processes, which find them by name: those of the tests of process mode.

Nothing in here imports pytest, so that workers start fast.
"""

import contextvars
import ctypes
import json
import logging
import logging.handlers
import math
import os
import resource
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import trio

import trioserver
from support import Upper as AsyncUpper  # noqa: F401  (a twin: see below)
from trioserver._modes.processes.protocol.frames import (
    LONGEST_FROM_WORKER,
    Message,
    encode_facts,
    frame,
)


# Of both colours -------------------------------------------------------------------
@attrs.frozen
class Awaited:
    """A socket whose methods are awaited, as those of an asynchronous handler's request are."""

    sock: object

    def __getattr__(self, name):
        function = getattr(self.sock, {"aclose": "close"}.get(name, name))
        if name not in {"recv", "sendall", "sendto", "aclose"}:
            return function

        async def awaited(*arguments):
            return function(*arguments)

        return awaited


def of_both_colours(function):
    """A plain handler that does the same with its socket; the twin's name begins with an "a"."""

    def plain(request, client_address, server):
        if isinstance(request, tuple):
            request = request[0], Awaited(request[1])
        else:
            request = Awaited(request)
        try:
            function(request, client_address, server).send(None)
        except StopIteration:
            return

    plain.__name__ = plain.__qualname__ = function.__name__
    function.__name__ = function.__qualname__ = f"a{function.__name__}"
    globals()[function.__name__] = function
    return plain


async def pause(seconds):
    """Wait, in either colour."""
    if trio.lowlevel.in_trio_run():
        await trio.sleep(seconds)
    else:
        time.sleep(seconds)  # noqa: ASYNC251  (there is no loop to be held up)


async def is_made(path):
    """Wait for a file."""
    while not Path(path).exists():  # noqa: ASYNC240  (another process makes it)
        await pause(0.001)


# Every line is answered ------------------------------------------------------------
class Upper(socketserver.StreamRequestHandler):
    """Answers every line with its upper-case form."""

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class Back(socketserver.DatagramRequestHandler):
    """Answers every datagram with its bytes in reverse."""

    def handle(self):
        self.wfile.write(self.rfile.read()[::-1])


class AsyncBack(trioserver.DatagramRequestHandler):
    async def handle(self):
        await self.wfile.write((await self.rfile.read())[::-1])


class FailsThenFinishes(socketserver.BaseRequestHandler):
    """Fails when its client has gone, and then meets that once more."""

    def handle(self):
        with suppress(ConnectionError):
            self.request.recv(1)
        raise ValueError("on purpose")

    def finish(self):
        self.request.sendall(b"good")
        self.request.sendall(b"bye")


class AsyncFailsThenFinishes(trioserver.BaseRequestHandler):
    async def handle(self):
        with suppress(trioserver.PeerGone):
            await self.request.recv(1)
        raise ValueError("on purpose")

    async def finish(self):
        await self.request.sendall(b"good")
        await self.request.sendall(b"bye")


class MeetsThenFails(socketserver.BaseRequestHandler):
    """Meets that its client has gone, and cannot give back what it has."""

    def handle(self):
        self.request.recv(1)

    def finish(self):
        raise ValueError("on purpose")


class AsyncMeetsThenFails(trioserver.BaseRequestHandler):
    async def handle(self):
        await self.request.recv(1)

    async def finish(self):
        raise ValueError("on purpose")


# What a handler sees -----------------------------------------------------------------
visitor = contextvars.ContextVar("visitor", default="nobody")


@of_both_colours
async def tells(request, client_address, server):
    """Tells all that it sees."""
    info = trioserver.current_request()
    facts = {
        "pid": os.getpid(),
        "request": [info.id, str(info), info.mode],
        "client_address": repr(client_address),
        "server": type(server).__name__,
        "server_address": repr(server.server_address),
        "own": {name: value for name, value in vars(server).items() if name.startswith("my_")},
        "observers": len(server.observers),
        "greeting": getattr(server, "greeting", None),
        "is_bound": server.socket is not None,
        "timeout": request.gettimeout() if hasattr(request, "gettimeout") else None,
        "init": os.environ.get("PROCESS_HANDLERS_INIT"),
        "visitor": visitor.get(),
    }
    visitor.set("the one before")
    server.my_visits = getattr(server, "my_visits", 0) + 1
    await request.sendall(json.dumps(facts).encode())


def init():
    """A ``child_init``."""
    os.environ["PROCESS_HANDLERS_INIT"] = f"ran in {os.getpid()}"
    socket.setdefaulttimeout(7)


def init_fails():
    """One that fails."""
    raise LookupError("no database there")


def init_fails_if(path):
    """One that fails while there is a file; notes each call, with its time, in another one."""
    with Path(path + ".calls").open("a") as calls:
        calls.write(f"{time.time()}\n")
    if Path(path).exists():
        init_fails()


def init_waits_for(path):
    """One that waits until there is a file."""
    while not Path(path).exists():
        time.sleep(0.001)


# Handlers that do what they are told ---------------------------------------------------
own_records = logging.handlers.BufferingHandler(100)  # a module may have handlers of its own
own_log = logging.getLogger("app.own")
own_log.addHandler(own_records)
own_log.propagate = False
app_log = logging.getLogger("app")

ORDERS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")

HEARS = f"""
import signal
usual = {{signal.SIG_DFL, signal.default_int_handler}}
assert {{signal.getsignal(getattr(signal, name)) for name in {ORDERS}}} == usual
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
"""

RECORD = {"levelno": math.inf} | dict.fromkeys(("lineno", "created", "thread", "process"), 1)
TEXTS = dict.fromkeys(("name", "pathname", "funcName", "threadName", "processName", "msg"), "x")
NONSENSE = {
    "no_frame": b"?" * 100,
    "too_long": struct.pack(">cI", b"l", LONGEST_FROM_WORKER + 1),
    "server's_own": frame(Message.DRAIN, encode_facts()),
    "pickle": frame(Message.DONE, b"cposix\nabort\n(tR."),
    "no_outcome": frame(Message.DONE, encode_facts(outcome="splendid")),
    "ready_twice": frame(Message.READY, encode_facts()),
    "not_ready_at_last": frame(Message.NOT_READY, encode_facts(why="nonsense")),
    "endless_level": frame(Message.LOG, encode_facts(**RECORD, **TEXTS)),
    "no_address": frame(Message.REPLY, encode_facts(b"payload", to={"host": "?"})),
}


def fails(kind, *facts):
    """Raise that."""
    raise kind(*facts)


class Unshowable(Exception):
    """An error whose traceback cannot be made."""

    __notes__ = property(lambda _: fails(ValueError, "not to be shown"))


class Deeds:
    """What `does` can be told to do, by name, with an argument, if any."""

    nap, sleep = partial(time.sleep, 0.3), partial(time.sleep, 30)
    c = partial(ctypes.PyDLL(None).sleep, 30)  # which keeps the interpreter to itself
    kill = partial(signal.raise_signal, signal.SIGKILL)
    sysexit, interrupt = partial(fails, SystemExit, 4), partial(fails, KeyboardInterrupt)
    error = partial(fails, ValueError, "on purpose")
    unshowable, generator_exit = partial(fails, Unshowable), partial(fails, GeneratorExit)
    log = partial(app_log.warning, "seen in %s", "a worker")
    fork_return = os.fork

    def nothing(): ...

    @staticmethod
    def exit(status):
        os._exit(int(status))

    def loop():
        while True:
            pass

    def segfault():
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # pytest's own handler may be inherited
        ctypes.string_at(0)

    def deep():
        error = ValueError("on purpose")
        error.lock = threading.Lock()  # which does not pickle
        for _ in range(3000):
            error = ExceptionGroup("deep", [error])
        raise error

    def hoard():
        """From now on this process gets no descriptor more: as if it had all that it may have."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))

    def print():
        print("y" * 1_000_000, flush=True)
        print("z" * 1_000_000, file=sys.stderr, flush=True)

    def close_stdio():
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            stream.close()
        for number in range(3):
            with suppress(OSError):
                os.close(number)

    def log_own():
        own_log.warning("seen in %s", "a worker")
        assert not own_records.buffer

    def log_signal():
        """Log in a signal handler, too, and so again and again in the middle of a record."""
        signal.signal(signal.SIGALRM, lambda *_: app_log.info("in a signal"))
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for _ in range(1000):
            app_log.info("%s", "x" * 1000)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def log_child():
        """Log in a child, as a library may that has forked."""
        with warnings.catch_warnings(action="ignore"):  # of threads, since Python 3.12
            child = os.fork()
        if child == 0:
            app_log.warning("seen in a child")
            app_log.info("not seen")
            os._exit(0)
        os.waitpid(child, 0)

    @staticmethod
    def fork(then="nothing", *arguments):
        """Fork as it was done of old; the child stays for long, with all that it has inherited."""
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        getattr(Deeds, then)(*arguments)

    def hears():
        """A program, and a child, hear signals as ever."""
        subprocess.run([sys.executable, "-c", HEARS], check=True)
        if (child := os.fork()) == 0:
            with suppress(AssertionError):
                exec(HEARS)  # noqa: S102
                time.sleep(60)
            os._exit(1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM

    @staticmethod
    def say(nonsense):
        """Say something to the server over the worker's own line; wait for what comes of it."""
        for number in range(3, 100):
            with suppress(OSError):
                sock = socket.socket(fileno=number)
                if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
                    sock.sendall(NONSENSE[nonsense])
                sock.detach()
        time.sleep(30)


@of_both_colours
async def does(request, client_address, server):
    """Says that it has begun, does what it is told, and says who has done it."""
    deed, *arguments = (await request.recv(1000)).decode().split() or ["nothing"]
    await request.sendall(b"begun.")
    if deed == "wait":
        await request.recv(1)
    elif deed == "sleep":
        await pause(30)
    else:
        getattr(Deeds, deed)(*arguments)
    await request.sendall(b"%d" % os.getpid())


class ForksToAnswer(Upper):
    """Has a child answer, as it was done of old."""

    def handle(self):
        if (child := os.fork()) == 0:
            with suppress(BaseException):
                super().handle()
            os._exit(0)
        os.waitpid(child, 0)


# Handlers with threads -------------------------------------------------------------------
def floods_while_it_reads(request, client_address, server):
    """Sends more than the client takes, in one thread, and receives in another."""
    threading.Thread(target=request.sendall, args=(bytes(50_000_000),)).start()
    while request.recv(1):
        pass


def floods_beside_a_reader(request, client_address, server):
    """The other way round."""

    def reads():
        with suppress(OSError):
            request.recv(1)

    threading.Thread(target=reads, daemon=True).start()
    request.sendall(bytes(50_000_000))


def leaves_a_reader(request, client_address, server):
    """Told ``leave``, leaves a thread behind that reads after the next request has begun."""

    def reads():
        init_waits_for(Path(server.my_path, "now"))
        with suppress(OSError):
            request.recv(1)
        Path(server.my_path, "done").touch()

    if request.recv(1000) == b"leave":
        threading.Thread(target=reads, daemon=True).start()
    else:
        request.sendall(b"begun.")
        time.sleep(30)


# Handlers that wait ----------------------------------------------------------------------
@of_both_colours
async def floods(request, client_address, server):
    """Sends more than any client takes that does not read."""
    await request.sendall(bytes(50_000_000))


async def cancels_itself(request, client_address, server):
    """Gives up in its own words."""
    request.cancel_scope.cancel(reason="had enough")
    await trio.sleep_forever()


def makes_a_file(request, client_address, server):
    """Answers by a file that takes the descriptor over, and closes it."""
    with os.fdopen(request.fileno(), "wb") as file:
        file.write(b"a file")


@of_both_colours
async def closes_early(request, client_address, server):
    """Sends much, closes its connection, and goes on until it is told to end."""
    await request.sendall(bytes(20_000_000))
    await request.aclose()
    await is_made(server.my_path)


def starts_a_program(request, client_address, server):
    """Starts a program that runs for long, and tells its process id."""
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(program, close_fds=False)
    request.sendall(b"%d" % child.pid)
    if request.recv(1):  # else the client has hung up
        time.sleep(60)


def init_default_of_sigpipe():
    """A ``child_init`` that sets what Python has taken away."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


@of_both_colours
async def sends_to_nobody(request, client_address, server):
    """Sends until it is told that the client has left."""
    await request.recv(1)
    with suppress(OSError):
        while True:
            await request.sendall(b"x")


# Datagrams -------------------------------------------------------------------------------
@of_both_colours
async def replies(request, client_address, server):
    """Tells the asker, on a second datagram, how a first one went: "size", or "size port"."""
    data, way_back = request
    size, _, port = data.partition(b" ")
    there = (client_address[0], int(port)) if port else client_address
    try:
        sent = await way_back.sendto(bytes(int(size)), there)
        told = f"{sent} sent from {way_back.getsockname()[0]}"
    except (OSError, OverflowError) as error:
        told = repr(error)
    await way_back.sendto(told.encode(), client_address)


@of_both_colours
async def replies_twice(request, client_address, server):
    """Sends two datagrams back, with time in between for whatever is to happen."""
    data, way_back = request
    await way_back.sendto(data, client_address)
    await is_made(os.fsdecode(data))
    await way_back.sendto(data, client_address)


@of_both_colours
async def replies_without_end(request, client_address, server):
    """Sends until the client's queue is full, and longer."""
    data, way_back = request
    while True:
        await way_back.sendto(data, client_address)


def replies_too_late(request, client_address, server):
    """Replies; told ``late``, once more after its end, and notes in a file what came of that."""
    data, way_back = request
    way_back.sendto(data, client_address)

    def reply_then():
        init_waits_for(server.my_path)
        try:
            way_back.sendto(b"too late", client_address)
        except trio.ClosedResourceError as error:
            Path(server.my_path).write_text(str(error))

    if data == b"late":
        threading.Thread(target=reply_then).start()


# Servers ---------------------------------------------------------------------------------
class Announces(trioserver.ProcessTCPServer):
    """Prints its port when clients can queue there."""

    async def server_activate(self):
        await super().server_activate()
        print(self.server_address[1], flush=True)


class Noting(trioserver.ProcessTCPServer):
    """Has a field of its own, and keeps what it is told of: errors, and that nobody came."""

    greeting: str = attrs.field(default="hello")
    errors: list[BaseException | None] = attrs.field(factory=list)
    waited: list[float] = attrs.field(factory=list)

    async def handle_error(self, request, client_address):
        self.errors.append(sys.exception())

    async def handle_timeout(self):
        self.waited.append(trio.current_time())
