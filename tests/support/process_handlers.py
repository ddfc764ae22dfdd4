"""Handlers for worker processes, which find them by name: those of the tests of process mode.

Nothing in here imports pytest, so that workers start fast.
"""

import contextvars
import ctypes
import json
import logging
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
from contextlib import suppress
from pathlib import Path

import attrs
import trio

import trioserver
from trioserver._modes.processes.protocol.frames import (
    LONGEST_FROM_WORKER,
    Message,
    encode_facts,
    frame,
)

# Every line is answered ------------------------------------------------------------


class Upper(socketserver.StreamRequestHandler):
    """Answers every line with its upper-case form."""

    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class FailsThenFinishes(socketserver.BaseRequestHandler):
    """Fails when its client has gone, and then meets that once more."""

    def handle(self):
        with suppress(ConnectionError):
            self.request.recv(1)
        raise ValueError("on purpose")

    def finish(self):
        self.request.sendall(b"good")
        self.request.sendall(b"bye")


class MeetsThenFails(socketserver.BaseRequestHandler):
    """Meets that its client has gone, and cannot give back what it has."""

    def handle(self):
        self.request.recv(1)

    def finish(self):
        raise ValueError("on purpose")


class AsyncFailsThenFinishes(trioserver.BaseRequestHandler):
    """The first of the two, asynchronous."""

    async def handle(self):
        with suppress(trioserver.PeerGone):
            await self.request.recv(1)
        raise ValueError("on purpose")

    async def finish(self):
        await self.request.sendall(b"good")
        await self.request.sendall(b"bye")


class AsyncMeetsThenFails(trioserver.BaseRequestHandler):
    """The second one."""

    async def handle(self):
        await self.request.recv(1)

    async def finish(self):
        raise ValueError("on purpose")


class Polite(trioserver.ProcessTCPServer):
    """Some hook of it says goodbye: a test's, in its own process."""


class MadeUp(trioserver.ProcessTCPServer):
    """All its clients have the address that it is told."""

    made_up = None

    def get_request(self, listener):
        got = super().get_request(listener)
        return got and (got[0], self.made_up)


class AsyncUpper(trioserver.StreamRequestHandler):
    """The same, asynchronous."""

    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(line.upper())


class Back(socketserver.DatagramRequestHandler):
    """Answers every datagram with its bytes in reverse."""

    def handle(self):
        self.wfile.write(self.rfile.read()[::-1])


class AsyncBack(trioserver.DatagramRequestHandler):
    """The same, asynchronous."""

    async def handle(self):
        await self.wfile.write((await self.rfile.read())[::-1])


# What a handler sees -----------------------------------------------------------------


def _seen(request, client_address, server):
    info = trioserver.current_request()
    assert info is not None
    facts = {
        "pid": os.getpid(),
        "request": [info.id, str(info), info.mode],
        "client_address": list(client_address),
        "server": type(server).__name__,
        "server_address": list(server.server_address),
        "own": {name: value for name, value in vars(server).items() if name.startswith("my_")},
        "observers": len(server.observers),
        "greeting": getattr(server, "greeting", None),
        "is_bound": server.socket is not None,
        "blocks": request.gettimeout() is None if isinstance(request, socket.socket) else None,
        "init": os.environ.get("PROCESS_HANDLERS_INIT"),
    }
    server.my_visits = getattr(server, "my_visits", 0) + 1
    return json.dumps(facts).encode()


def tells(request, client_address, server):
    """Tells all that it sees."""
    request.sendall(_seen(request, client_address, server))


async def atells(request, client_address, server):
    """The same, asynchronous."""
    await request.sendall(_seen(request, client_address, server))


def init():
    """A ``child_init``."""
    os.environ["PROCESS_HANDLERS_INIT"] = f"ran in {os.getpid()}"


def init_fails():
    """One that fails."""
    raise LookupError("no database there")


def init_fails_if(path):
    """One that fails while there is a file; notes each call, with its time, in another one."""
    with Path(path + ".calls").open("a") as calls:
        calls.write(f"{time.time()}\n")
    if Path(path).exists():
        init_fails()


def init_fails_slowly_if(path):
    """One that fails while there is a file, and leaves a thread that the process waits for."""
    if Path(path).exists():
        threading.Thread(target=time.sleep, args=[30]).start()
        init_fails()


def init_fails_for_others(path):
    """One that fails in every worker but the first, while there is a file."""
    with suppress(FileExistsError):
        Path(path + ".first").touch(exist_ok=False)
        return
    init_fails_if(path)


def init_waits_for(path):
    """One that waits until there is a file."""
    while not Path(path).exists():
        time.sleep(0.001)


# Handlers that do what they are told ---------------------------------------------------


class Unpicklable(Exception):
    """An error that cannot travel."""

    def __init__(self):
        super().__init__("cannot travel", threading.Lock())

    def __str__(self):
        return "cannot travel"


class Unshowable(Exception):
    """An error whose traceback cannot be made."""

    @property
    def __notes__(self):
        raise ValueError("not to be shown")


def _fails(kind, *facts):
    raise kind(*facts)


def _fails_deep():
    error = ValueError("on purpose")
    for _ in range(3000):
        error = ExceptionGroup("deep", [error])
    raise error


def _hoards():
    """From now on this process gets no descriptor more: as if it had all that it may have."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def _in_python():
    while True:
        pass


def _segfault():
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # pytest's own handler may be inherited
    ctypes.string_at(0)


def _prints():
    print("y" * 1_000_000)
    print("z" * 1_000_000, file=sys.stderr, flush=True)


def _closes_stdio():
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()
    for number in range(3):
        with suppress(OSError):
            os.close(number)


class OwnRecords(logging.Handler):
    """Keeps what is logged in this process; a module may add such a handler of its own."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


own_records = OwnRecords()
own_log = logging.getLogger("app.own")
own_log.addHandler(own_records)
own_log.propagate = False


def _logs_to_its_own():
    own_log.warning("seen in %s", "a worker")
    assert not own_records.messages


def _logs_nameless():
    logging.logThreads = logging.logProcesses = False
    logging.getLogger("app").warning("by nobody")


def _logs_in_signals():
    """Log in a signal handler, too, and so again and again in the middle of a record."""
    log = logging.getLogger("app")
    signal.signal(signal.SIGALRM, lambda *_: log.info("in a signal"))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    for _ in range(1000):
        log.info("%s", "x" * 1000)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _logs_in_a_child():
    """Log in a child, as a library may that has forked."""
    if (child := os.fork()) == 0:
        logging.getLogger("app").warning("seen in a child")
        logging.getLogger("app").info("not seen")
        os._exit(0)
    os.waitpid(child, 0)


def _forks():
    """Fork as it was done of old; the child stays for long, with all that it has inherited."""
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)


ORDERS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")

HEARS = f"""
import signal
usual = {{signal.SIG_DFL, signal.default_int_handler}}
assert {{signal.getsignal(getattr(signal, name)) for name in {ORDERS}}} == usual
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
"""


def _starts_what_hears():
    """A program, and a child, hear signals as ever."""
    subprocess.run([sys.executable, "-c", HEARS], check=True)
    if (child := os.fork()) == 0:
        with suppress(AssertionError):
            exec(HEARS)  # noqa: S102
            time.sleep(60)
        os._exit(1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def _forks_and(do, number):
    _forks()
    do(number)


RECORD = encode_facts(
    **dict.fromkeys(("name", "pathname", "funcName", "threadName", "processName", "msg"), "x"),
    **dict.fromkeys(("lineno", "created", "thread", "process"), 1),
    levelno=math.inf,
)
ENDED = {"received": 10**9, "sent": 5}

NONSENSE = {
    "no frame": b"?" * 100,
    "too long": struct.pack(">cI", b"l", LONGEST_FROM_WORKER + 1),
    "server's own": frame(Message.DRAIN, encode_facts()),
    "no body": frame(Message.DONE),
    "pickle": frame(Message.DONE, b"cposix\nabort\n(tR."),
    "no json": frame(Message.DONE, b"completed"),
    "no object": frame(Message.DONE, b"[1, 2]\n"),
    "deep": frame(Message.DONE, b"[" * 100_000),
    "no outcome": frame(Message.DONE, encode_facts(outcome="splendid")),
    "half an end": frame(Message.DONE, encode_facts(**ENDED)),
    "ready twice": frame(Message.READY, encode_facts()),
    "not ready at last": frame(Message.NOT_READY, encode_facts(why="nonsense")),
    "no record": frame(Message.LOG, encode_facts(msg="x")),
    "endless level": frame(Message.LOG, RECORD),
    "huge level": frame(Message.LOG, RECORD.replace(b"Infinity", b"1" * 4000)),
    "no address": frame(Message.REPLY, encode_facts(b"payload", to={"host": "?"})),
}


def _says(nonsense):
    """Say something to the server over the worker's own line; wait for what comes of it."""
    for number in range(3, 100):
        with suppress(OSError):
            sock = socket.socket(fileno=number)
            if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
                sock.sendall(NONSENSE[nonsense])
            sock.detach()
    time.sleep(30)


DEEDS = {
    "nothing": lambda: None,
    "": lambda: None,
    "nap": lambda: time.sleep(0.3),
    "sleep": lambda: time.sleep(30),
    "loop": _in_python,
    "c": lambda: ctypes.PyDLL(None).sleep(30),  # which keeps the interpreter to itself
    "exit3": lambda: os._exit(3),
    "exit0": lambda: os._exit(0),
    "sysexit": lambda: _fails(SystemExit, 4),
    "interrupt": lambda: _fails(KeyboardInterrupt),
    "segfault": _segfault,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "error": lambda: _fails(ValueError, "on purpose"),
    "unpicklable": lambda: _fails(Unpicklable),
    "unshowable": lambda: _fails(Unshowable),
    "deep": _fails_deep,
    "generator-exit": lambda: _fails(GeneratorExit),
    "hoard": _hoards,
    "print": _prints,
    "stdio": _closes_stdio,
    "log": lambda: logging.getLogger("app").warning("seen in %s", "a worker"),
    "log-own": _logs_to_its_own,
    "log-nameless": _logs_nameless,
    "log-signal": _logs_in_signals,
    "log-child": _logs_in_a_child,
    "fork": _forks,
    "fork-return": os.fork,
    "fork-exit": lambda: _forks_and(os._exit, 3),
    "fork-sleep": lambda: _forks_and(time.sleep, 30),
    "hears": _starts_what_hears,
    "say": _says,
}


def does(request, client_address, server):
    """Says that it has begun, does what it is told, and says who has done it."""
    deed, _, argument = request.recv(1000).decode().partition(" ")
    request.sendall(b"begun.")
    if deed == "wait":
        request.recv(1)
    elif argument:
        DEEDS[deed](argument)
    else:
        DEEDS[deed]()
    request.sendall(b"%d" % os.getpid())


async def adoes(request, client_address, server):
    """The same, asynchronous."""
    deed, _, argument = (await request.recv(1000)).decode().partition(" ")
    await request.sendall(b"begun.")
    if deed == "wait":
        await request.recv(1)
    elif deed == "sleep":
        await trio.sleep(30)
    elif argument:
        DEEDS[deed](argument)
    else:
        DEEDS[deed]()
    await request.sendall(b"%d" % os.getpid())


class ForksToAnswer(Upper):
    """Has a child answer, as it was done of old."""

    def handle(self):
        if (child := os.fork()) == 0:
            with suppress(BaseException):
                super().handle()
            os._exit(0)
        os.waitpid(child, 0)


visitor = contextvars.ContextVar("visitor", default=b"nobody")


def remembers(request, client_address, server):
    """Notes who visits, and says who has before."""
    before = visitor.get()
    visitor.set(request.recv(100))
    request.sendall(before)


async def aremembers(request, client_address, server):
    """The same, asynchronous."""
    before = visitor.get()
    visitor.set(await request.recv(100))
    await request.sendall(before)


# Handlers with threads -------------------------------------------------------------------


def floods_while_it_reads(request, client_address, server):
    """Sends more than the client takes, in one thread, and receives in another."""
    flood = threading.Thread(target=request.sendall, args=(bytes(50_000_000),))
    flood.start()
    while request.recv(1):
        pass
    flood.join()


def leaves_a_reader(request, client_address, server):
    """Told ``leave``, leaves a thread behind that reads after the next request has begun."""
    if request.recv(1000) != b"leave":
        request.sendall(b"begun.")
        time.sleep(30)

    def reads():
        while not Path(server.my_path, "now").exists():
            time.sleep(0.001)
        with suppress(OSError):
            request.recv(1)
        Path(server.my_path, "done").touch()

    threading.Thread(target=reads, daemon=True).start()


# Handlers that wait ----------------------------------------------------------------------


class Floods(socketserver.BaseRequestHandler):
    """Sends more than any client takes that does not read."""

    def handle(self):
        self.request.sendall(bytes(50_000_000))


class AsyncFloods(trioserver.BaseRequestHandler):
    """The same, asynchronous."""

    async def handle(self):
        await self.request.sendall(bytes(50_000_000))


def slowly(request, client_address, server):
    """Takes a moment for whatever it is asked."""
    data = request.recv(100)
    time.sleep(0.05)
    request.sendall(data.upper())


async def aslowly(request, client_address, server):
    """The same, asynchronous."""
    data = await request.recv(100)
    await trio.sleep(0.05)
    await request.sendall(data.upper())


async def cancels_itself(request, client_address, server):
    """Gives up in its own words."""
    request.cancel_scope.cancel(reason="had enough")
    await trio.sleep_forever()


def makes_a_file(request, client_address, server):
    """Answers by a file that takes the descriptor over, and closes it."""
    with os.fdopen(request.fileno(), "wb") as file:
        file.write(b"%d" % os.getpid())


def closes_early(request, client_address, server):
    """Sends much, closes its connection, and goes on until it is told to end."""
    request.sendall(bytes(20_000_000))
    request.close()
    while not Path(server.my_path).exists():
        time.sleep(0.001)


async def acloses_early(request, client_address, server):
    """The same, asynchronous."""
    await request.sendall(bytes(20_000_000))
    await request.aclose()
    while not Path(server.my_path).exists():  # noqa: ASYNC110, ASYNC240  (another process)
        await trio.sleep(0.001)


def starts_a_program(request, client_address, server):
    """Starts a program that runs for long, and tells its process id."""
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(program, close_fds=False)
    request.sendall(b"%d" % child.pid)
    if request.recv(1):  # else the client has hung up
        time.sleep(60)


# Datagrams -------------------------------------------------------------------------------


def replies(request, client_address, server):
    """Tells the asker, on a second datagram, how the first one went; ``size`` is asked for."""
    data, way_back = request
    try:
        sent = way_back.sendto(bytes(int(data)), client_address)
    except OSError as error:
        way_back.sendto(type(error).__name__.encode() + b" %d" % error.errno, client_address)
    else:
        way_back.sendto(
            b"%d sent from %s" % (sent, way_back.getsockname()[0].encode()), client_address
        )


async def areplies(request, client_address, server):
    """The same, asynchronous."""
    data, way_back = request
    try:
        sent = await way_back.sendto(bytes(int(data)), client_address)
    except OSError as error:
        await way_back.sendto(type(error).__name__.encode() + b" %d" % error.errno, client_address)
    else:
        text = b"%d sent from %s" % (sent, way_back.getsockname()[0].encode())
        await way_back.sendto(text, client_address)


def misaddresses(request, client_address, server):
    """Tells what comes of an address that is none."""
    _, way_back = request
    try:
        way_back.sendto(b"hello", (client_address[0], 99_999))
    except (OSError, OverflowError) as error:
        way_back.sendto(repr(error).encode(), client_address)


async def amisaddresses(request, client_address, server):
    """The same, asynchronous."""
    _, way_back = request
    try:
        await way_back.sendto(b"hello", (client_address[0], 99_999))
    except (OSError, OverflowError) as error:
        await way_back.sendto(repr(error).encode(), client_address)


def says_its_timeout(request, client_address, server):
    """Answers with its time-out."""
    request.sendall(repr(request.gettimeout()).encode())


def init_default_of_sigpipe():
    """A ``child_init`` that sets what Python has taken away."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def sends_to_nobody(request, client_address, server):
    """Sends until it is told that the client has left."""
    request.recv(1)
    with suppress(OSError):
        while True:
            request.sendall(b"x")


async def asends_to_nobody(request, client_address, server):
    """The same, asynchronous."""
    await request.recv(1)
    with suppress(trioserver.PeerGone):
        while True:
            await request.sendall(b"x")


def says_where_from(request, client_address, server):
    """Answers with the client's address."""
    request.sendall(repr(client_address).encode())


async def asays_where_from(request, client_address, server):
    """The same, asynchronous."""
    await request.sendall(repr(client_address).encode())


def replies_twice(request, client_address, server):
    """Sends two datagrams back, with time in between for whatever is to happen."""
    data, way_back = request
    way_back.sendto(data, client_address)
    while not Path(os.fsdecode(data)).exists():
        time.sleep(0.001)
    way_back.sendto(data, client_address)


async def areplies_twice(request, client_address, server):
    """The same, asynchronous."""
    data, way_back = request
    await way_back.sendto(data, client_address)
    while not await trio.Path(os.fsdecode(data)).exists():  # noqa: ASYNC110  (another process)
        await trio.sleep(0.001)
    await way_back.sendto(data, client_address)


def replies_without_end(request, client_address, server):
    """Sends until the client's queue is full, and longer."""
    data, way_back = request
    while True:
        way_back.sendto(data, client_address)


async def areplies_without_end(request, client_address, server):
    """The same, asynchronous."""
    data, way_back = request
    while True:
        await way_back.sendto(data, client_address)


def replies_in_threads(request, client_address, server):
    """Sends ten datagrams at once, and one when they are all gone."""
    _, way_back = request
    sends = [
        threading.Thread(target=way_back.sendto, args=(b"%d" % number, client_address))
        for number in range(10)
    ]
    for thread in sends:
        thread.start()
    for thread in sends:
        thread.join()
    way_back.sendto(b"all", client_address)


def replies_too_late(request, client_address, server):
    """Replies; told ``late``, once more after its end, and notes in a file what came of that."""
    data, way_back = request
    way_back.sendto(data, client_address)
    if data == b"late":
        threading.Thread(target=_replies_then, args=(way_back, client_address, server)).start()


def _replies_then(way_back, client_address, server):
    while not Path(server.my_path).exists():
        time.sleep(0.001)
    try:
        way_back.sendto(b"too late", client_address)
    except trio.ClosedResourceError as error:
        Path(server.my_path).write_text(str(error))


def gives_up_a_reply(request, client_address, server):
    """Is interrupted by a signal in the wait for a client that takes nothing."""
    data, way_back = request
    if data == b"give up":
        signal.signal(signal.SIGALRM, _interrupts)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with suppress(InterruptedError):
            while True:
                way_back.sendto(data, client_address)
    else:
        way_back.sendto(data, client_address)


def _interrupts(*_):
    raise InterruptedError


# Servers ---------------------------------------------------------------------------------


class Announces(trioserver.ProcessTCPServer):
    """Prints its port when clients can queue there."""

    async def server_activate(self):
        await super().server_activate()
        print(self.server_address[1], flush=True)


class Greeting(trioserver.ProcessTCPServer):
    """A server with a field of its own."""

    greeting: str = attrs.field(default="hello")


class Hooked(trioserver.ProcessTCPServer):
    """Notes who calls its hooks, and where."""

    called: list[tuple[str, int]] = attrs.field(factory=list)

    def note(self, name):
        """It is called, here."""
        self.called.append((name, os.getpid()))

    def get_request(self, listener):
        got = super().get_request(listener)
        if got is not None:
            self.note("get_request")
        return got

    async def handle_error(self, request, client_address):
        self.note("handle_error")


def _noted(name):
    async def hook(self, *arguments):
        self.note(name)
        return await getattr(super(Hooked, self), name)(*arguments)

    return hook


for _name in (
    *("server_bind", "server_activate", "verify_request", "process_request", "finish_request"),
    *("shutdown_request", "close_request", "server_close"),
):
    setattr(Hooked, _name, _noted(_name))


class Erring(trioserver.ProcessTCPServer):
    """Keeps the errors that it is told of, and what was then left of the request."""

    errors: list[BaseException | None] = attrs.field(factory=list)

    async def handle_error(self, request, client_address):
        self.errors.append(sys.exception())


class Lenient(Erring):
    """Has no deadline for the first client."""

    async def verify_request(self, request, client_address):
        if request.info.id == 1:
            request.cancel_scope.deadline = math.inf
        return True


class Hides(trioserver.ProcessTCPServer):
    """Its ``handle_error`` fails, and hides what it was told of."""

    async def handle_error(self, request, client_address):
        raise RuntimeError("the second") from None


class ReadsAhead(trioserver.ProcessTCPServer):
    """Reads as much as a line may have before a worker gets the connection."""

    async def process_request(self, request, client_address):
        with suppress(trioserver.LimitExceeded):
            await trioserver.RequestReader(request).readline()
        await super().process_request(request, client_address)


class Closes(trioserver.ProcessTCPServer):
    """Closes each connection before a worker gets it."""

    async def process_request(self, request, client_address):
        await request.aclose()
        await super().process_request(request, client_address)


class Greets(trioserver.ProcessTCPServer):
    """Reads a first line, and answers it, before a worker gets the connection."""

    async def process_request(self, request, client_address):
        assert await trioserver.RequestReader(request).readline() == b"hello\n"
        await request.sendall(b"welcome\n")
        await super().process_request(request, client_address)


class Patient(trioserver.ProcessTCPServer):
    """Notes each time that it has waited in vain."""

    waited: list[float] = attrs.field(factory=list)

    async def handle_timeout(self):
        self.waited.append(trio.current_time())
