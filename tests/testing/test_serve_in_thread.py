"""`trioserver.testing.serve_in_thread`: servers for plain tests, and that wrong ones fail."""

import contextlib
import math
import signal
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from support import Upper, descriptors, process_handlers
from support.speaking import ON_SOCKETS, Back, fails

import trioserver
from trioserver.testing import (
    Faults,
    Hung,
    Latency,
    Refuse,
    Reset,
    ThreadServer,
    open_descriptors,
    serve_in_thread,
)

A_MOMENT = 0.5
"""Seconds of patience for what will not come; a busy machine answers within it."""

THERE = ("127.0.0.1", 0)


def server_threads():
    """Those that this file's subject starts."""
    return [one for one in threading.enumerate() if one.name.startswith("serve_in_thread")]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """No thread, no descriptor, no file, whatever a test does."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = descriptors()
    yield
    assert server_threads() == []
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []


async def holds(request, client_address, server):
    """Says that it has begun, and does not end by itself."""
    await request.sendall(b"begun")
    await trio.sleep_forever()


def crashing(hook, error):
    """A server that fails itself, in that hook."""

    def crash(*arguments):
        raise error

    server = trioserver.TCPServer(THERE, Upper)
    vars(server)[hook] = crash
    return server


def ask(server, text):
    """A connection's worth of answers."""
    with server.connect() as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(100), b""))


def fail(server, text=b"hello\n"):
    """Have a handler fail."""
    assert ask(server, text) == b""


def begin(server):
    """Have one of `holds` begin."""
    assert server.connect().recv(100) == b"begun"


@ON_SOCKETS
def test_serves_a_handler(where):
    """In a thread that ends with the block; what was noted can be looked at after it.

    Without faults from the beginning nothing is between the server and its sockets. A port that
    is taken is an error of the ``with`` statement, bare.
    """
    with serve_in_thread(Upper, transport=where) as server:
        [thread] = server_threads()
        assert (thread.name, thread.daemon) == ("serve_in_thread(Upper)", True)
        assert ask(server, b"hello\nworld\n") == b"HELLO\nWORLD\n"
        [exchange] = server.wait_requests()
        server.wait_idle()
        assert exchange.outcome is trioserver.Outcome.COMPLETED
        with pytest.raises(RuntimeError, match=r"give some when it is opened: faults=Faults"):
            _ = server.faults
        if where == "tcp":
            again = serve_in_thread(trioserver.TCPServer(server.address, Upper))
            with pytest.raises(OSError, match="in use") as caught, again:
                raise AssertionError("it was served")
            assert any(entry.name == "server_bind" for entry in caught.traceback)
    assert server.exchanges == [exchange]
    if where == "tcp":
        assert exchange.info.server_address == server.address == ("127.0.0.1", server.port)
    else:
        assert not Path(server.address).exists()
        with pytest.raises(TypeError, match="has no port"):
            _ = server.port


@pytest.mark.parametrize("where", ["udp", "unix"])
def test_serves_datagrams(where, tmp_path):
    """With clients that can be replied to; those on Unix have a path for that."""
    with serve_in_thread(Back, transport=where) as server:
        client = server.connect()
        client.send(b"hello")
        assert client.recv(100) == b"olleh"
        assert len(list(tmp_path.glob("client-*"))) == (where == "unix")


@pytest.fixture(scope="module")
def parents_of_workers():
    """Are there: `multiprocessing` starts them once, and keeps them to the program's end."""
    with serve_in_thread(trioserver.ProcessTCPServer(THERE, process_handlers.Upper)):
        pass


@pytest.mark.parametrize("kind", [trioserver.ThreadingTCPServer, trioserver.ProcessTCPServer])
def test_serves_a_server_as_it_is(kind, parents_of_workers):
    """And gives it back closed; workers may be started by a thread that is not the main one."""
    served = kind(THERE, process_handlers.Upper)
    with serve_in_thread(served, patience=30) as server:
        assert server.server is served
        assert ask(server, b"hello\n") == b"HELLO\n"
    assert served.socket is None


def serve_two():
    """Two servers at once, neither of which knows of the other."""
    with serve_in_thread(Upper) as one, serve_in_thread(Upper) as other:
        assert one.port != other.port
        answer = ask(one, b"one ") + ask(other, b"other")
        one.wait_idle()
        return answer


async def test_in_any_thread():
    """Not just in the main one; also of another Trio, and even in its loop, which stands still."""
    with ThreadPoolExecutor(2) as threads:
        for answer in [threads.submit(serve_two) for _ in range(2)]:
            assert answer.result(20) == b"ONE OTHER"
    assert await trio.to_thread.run_sync(serve_two) == b"ONE OTHER"
    assert serve_two() == b"ONE OTHER"


def test_clients():
    """They do not hang, and are closed first of all, so that who waits for them ends by that."""
    with serve_in_thread(Upper, patience=20) as server:
        assert server.connect().gettimeout() == 20
        with pytest.raises(TimeoutError):
            server.connect(timeout=0.01).recv(100)
        client = server.connect(timeout=math.inf)
        assert client.gettimeout() is None
        client.sendall(b"hello\n")
        assert client.recv(100) == b"HELLO\n"
    assert client.fileno() == -1
    assert [str(one.outcome) for one in server.exchanges] == ["completed"] * 3


def test_network_changes_from_outside():
    """In the thread of the server, where connections wait for just that."""
    with serve_in_thread(Upper, faults=Faults()) as server:
        client = server.connect()
        client.sendall(b"hello\n")
        assert client.recv(100) == b"HELLO\n"
        server.faults.add(Refuse(), Latency(30))
        assert repr(server.faults) == f"<trioserver.testing.Faults: {Refuse()}, {Latency(30)}>"
        server.faults.remove(Refuse())
        assert len(server.faults) == 1
        server.faults.clear()
        assert ask(server, b"hello") == b"HELLO"
        with server.faults.during(Reset(after=3)):
            assert list(server.faults) == [Reset(after=3)]
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        assert list(server.faults) == []


# Wrong tests fail -------------------------------------------------------------------


def test_handler_error_fails_the_test():
    """With its traceback, though the client has noticed nothing but an end.

    `check` raises each error once: so it fails the test that has caused it, of several that share
    a server, and not the next one, nor the end.
    """
    with pytest.raises(ExceptionGroup, match="handlers have failed") as at_the_end:
        with serve_in_thread(fails) as server:
            for word in (b"first", b"second"):
                server.check()
                fail(server, word)
                with pytest.raises(ExceptionGroup, match="handlers have failed") as caught:
                    server.check()
                assert [error.args for error in caught.value.exceptions] == [(word,)]
            fail(server, b"last")
    [error] = at_the_end.value.exceptions
    assert error.args == (b"last",)
    assert error.__traceback__ is not None
    assert server.exchanges[-1].error is error


def test_lenient():
    """``strict=False``: errors are noted. A stop tells how it ended; nobody listens any more."""
    with serve_in_thread(fails, strict=False) as server:
        fail(server)
        assert server.stop(grace=0.01).grace == 0.01
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        server.wait_idle()
    assert isinstance(server.exchanges[0].error, KeyError)


@pytest.mark.slow
def test_expected_error_does_not():
    """It is there to be looked at; a missing one fails the test, after a second."""
    with serve_in_thread(fails) as server:
        with server.expect_error(KeyError) as errors:
            fail(server)
        assert [error.args for error in errors] == [(b"hello\n",)]
        with pytest.raises(AssertionError, match="no handler has raised LookupError, which this"):
            with server.expect_error(LookupError):
                pass


def test_own_failure_is_not_masked():
    """The handler's error is a note on it; an unfinished one is not even looked for."""
    error = pytest.skip.Exception("not today")
    with pytest.raises(pytest.skip.Exception) as caught:
        with serve_in_thread(fails) as server, server.expect_error(KeyError):
            fail(server)
            raise error
    assert caught.value is error
    [note] = error.__notes__
    assert note.startswith("A handler has failed, too:\nTraceback")
    assert "KeyError: b'hello" in note
    with pytest.raises(ZeroDivisionError) as other:
        with serve_in_thread(holds) as server:
            begin(server)
            raise ZeroDivisionError
    assert not hasattr(other.value, "__notes__")


WAITS = {
    "wait_requests": lambda server: server.wait_requests(2),
    "wait_idle": ThreadServer.wait_idle,
    "check": ThreadServer.check,
    "stop": ThreadServer.stop,
    "connect": ThreadServer.connect,
}


def crash(server):
    """Come, and wait for what becomes of it."""
    with contextlib.suppress(ConnectionError):  # it may be gone before that is known here
        server.connect()
    server.wait_requests(2)


@pytest.mark.parametrize(
    ("hook", "error"), [("get_request", KeyError), ("verify_request", KeyboardInterrupt)]
)
def test_background_crash_fails_who_waits(hook, error):
    """At once, with the server's error; later calls, too, and the end in any case."""
    with pytest.raises(error) as at_the_end:
        with serve_in_thread(crashing(hook, error("the server itself"))) as server:
            for wait in (crash, *WAITS.values()):
                with pytest.raises(error, match="the server itself") as there:
                    wait(server)
            crash(server)
    assert at_the_end.value is there.value


@pytest.mark.parametrize(
    ("hook", "error", "told"),
    [
        ("get_request", KeyError, "KeyError: 'the server itself'\n"),
        ("server_close", KeyboardInterrupt, "KeyboardInterrupt: the server itself\n"),
    ],
)
def test_crash_is_told_of(hook, error, told):
    """When the test has failed by what it has seen of it, or fails when the server does."""
    served = crashing(hook, error("the server itself"))
    with pytest.raises(AssertionError, match="the test's own") as caught:
        with serve_in_thread(served) as server, server.expect_error():
            if hook == "get_request":
                with pytest.raises(KeyError):
                    crash(server)
            raise AssertionError("the test's own")
    [note] = caught.value.__notes__
    assert note.startswith("The server has failed, too:\nTraceback")
    assert note.endswith(told)


THREADED = r'needs .* trioserver\.Threading(TCP|UDP)Server\(\("127.0.0.1", 0\), (Upper|Back)\).*'


@pytest.mark.parametrize(
    ("server", "options", "error", "message"),
    [
        (Upper, {"transport": "memory"}, ValueError, "no way into a network in memory: transport"),
        (process_handlers.Upper, {}, TypeError, THREADED + "='tcp'"),
        (process_handlers.Back, {"transport": "udp"}, TypeError, THREADED + "='udp'"),
        (Upper, {"patience": True}, TypeError, "patience must be a number of seconds, not True"),
    ],
)
def test_what_cannot_be_served_is_refused(server, options, error, message):
    """In words."""
    with pytest.raises(error, match=message), serve_in_thread(server, **options):
        raise AssertionError("it was served")


class Hangs(trioserver.TCPServer):
    """Does not start."""

    async def server_bind(self):
        await trio.sleep_forever()


@pytest.mark.parametrize(
    ("served", "when", "where"),
    [(Hangs(THERE, Upper), "start", "server_bind"), (holds, "end", "holds")],
)
def test_start_or_end_that_hangs(served, when, where):
    """Is ended, and shown: an end on a request whose second is longer than the patience."""
    with pytest.raises(Hung) as caught, serve_in_thread(served, patience=A_MOMENT) as server:
        assert when == "end"
        begin(server)
    told = f"the {when} took more than {A_MOMENT} real seconds; the tasks were here"
    assert str(caught.value).startswith(told)
    assert f"in {where}: await trio.sleep_forever()" in str(caught.value)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.slow
def test_loop_that_is_blocked():
    """By a handler, say: its thread is left, and ends when it can; a test's failure has a note."""
    begun, released = threading.Event(), threading.Event()

    async def blocks(request, client_address, server):
        begun.set()
        released.wait()

    with pytest.raises(Hung) as caught, serve_in_thread(blocks, patience=A_MOMENT) as server:
        client = server.connect()
        assert begun.wait(10)
        server.wait_idle(timeout=0.01)
    assert str(caught.value).startswith("wait_idle() took more than 0.01 real seconds; Trio's loop")
    [note] = caught.value.__notes__
    assert f"Hung: the end took more than {A_MOMENT} real seconds; Trio's loop is blocked" in note
    assert "released.wait()" in note
    assert "'serve_in_thread(blocks)', a thread, cannot be ended: it is left." in note
    assert client.fileno() == -1
    [thread] = server_threads()
    released.set()
    thread.join(10)


def test_wait_in_vain():
    """Shows the tasks; and the server goes on."""
    with serve_in_thread(Upper) as server:
        client = server.connect()
        client.sendall(b"hello\n")
        assert client.recv(100) == b"HELLO\n"
        for _ in range(2):
            with pytest.raises(Hung) as caught:
                server.wait_requests(2, timeout=0.01)
        head, *tree = str(caught.value).splitlines()
        assert head == "wait_requests(2) took more than 0.01 real seconds; the tasks were here:"
        assert any("TCPServer request 1 from 127.0.0.1" in line for line in tree)
        assert [line.strip() for line in tree].count("wait_requests(2)") == 1
        assert ask(server, b"hello") == b"HELLO"


@pytest.mark.parametrize("wait", [False, True])
def test_ctrl_c_ends_the_server(wait):
    """In the block as in a wait for the server; it leaves as what it is."""

    async def interrupts(request, client_address, server):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt), serve_in_thread(interrupts) as server:
        if wait:
            server.connect()
            server.wait_requests()
        else:
            signal.raise_signal(signal.SIGINT)


def test_call_from_the_server_s_own_thread():
    """Would wait for itself."""

    async def asks_itself(request, client_address, server):
        outside.wait_idle()

    with serve_in_thread(asks_itself) as outside, outside.expect_error(RuntimeError) as errors:
        fail(outside)
    assert "wait_idle() would wait for itself: this is the server's own" in str(errors[0])


def test_use_after_the_end():
    """Is refused in words; a wait in another thread, which the end overtakes, does not go on."""
    begun = threading.Event()

    def wait():
        begun.set()
        return server.wait_requests(3)

    with ThreadPoolExecutor(1) as threads:
        with serve_in_thread(Upper, faults=Faults(), patience=20) as server:
            waits = threads.submit(wait)
            begun.wait()
        uses = {
            **WAITS,
            "expect_error": lambda server: server.expect_error().__enter__(),
            "faults": lambda server: server.faults.clear(),
            r"wait_requests\(3": lambda server: waits.result(20),
        }
        for name, use in uses.items():
            too_late = rf"^{name}.*\) comes too late: the block is left, and"
            with pytest.raises(RuntimeError, match=too_late):
                use(server)
