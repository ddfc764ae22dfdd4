"""`trioserver.testing.serve_in_thread`: servers for plain tests, and that wrong ones fail."""

import contextlib
import math
import signal
import socket
import tempfile
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from support import Upper, hold, process_handlers
from support.speaking import ON_SOCKETS, Back

import trioserver
from trioserver.testing import (
    Faults,
    Hung,
    Latency,
    Refuse,
    Reset,
    ThreadServer,
    Unfinished,
    open_descriptors,
    serve_in_thread,
)

A_MOMENT = 0.5
"""Seconds of patience for what will not come; a busy machine answers within it."""


def server_threads():
    """Those that this file's subject starts."""
    return [one for one in threading.enumerate() if one.name.startswith("serve_in_thread")]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """No thread, no descriptor, no file, whatever a test does."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = open_descriptors()
    yield
    assert server_threads() == []
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []


async def fails(request, client_address, server):
    """Reads a line's beginning, and fails."""
    text = await request.recv(100)
    raise KeyError(text)


async def holds(request, client_address, server):
    """Says that it has begun, and does not end by itself."""
    await request.sendall(b"begun")
    await trio.sleep_forever()


class Blocks:
    """A handler that blocks Trio's loop until it is released."""

    def __init__(self):
        self._begun, self._released = threading.Event(), threading.Event()

    async def __call__(self, request, client_address, server):
        self._begun.set()
        self._released.wait()

    def block(self, server):
        """Have the loop blocked; gives the client."""
        client = server.connect()
        assert self._begun.wait(10)
        return client

    def release(self):
        """Go on; wait for the threads that were left to end by themselves."""
        self._released.set()
        for thread in server_threads():
            thread.join(10)


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


# Serving ---------------------------------------------------------------------------


@ON_SOCKETS
def test_serves_a_handler(where):
    """In a thread that ends with the block; what was noted can be looked at after it."""
    with serve_in_thread(Upper, transport=where) as server:
        [thread] = server_threads()
        assert (thread.name, thread.daemon) == ("serve_in_thread(Upper)", True)
        assert ask(server, b"hello\nworld\n") == b"HELLO\nWORLD\n"
        [exchange] = server.wait_requests()
        server.wait_idle()
        assert exchange.outcome is trioserver.Outcome.COMPLETED
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
    with serve_in_thread(trioserver.ProcessTCPServer(("127.0.0.1", 0), process_handlers.Upper)):
        pass


@pytest.mark.parametrize(
    "served",
    [
        trioserver.TCPServer(("", 0), Upper),
        trioserver.ThreadingTCPServer(("127.0.0.1", 0), process_handlers.Upper),
        trioserver.ProcessTCPServer(("127.0.0.1", 0), process_handlers.Upper),
    ],
)
def test_serves_a_server_as_it_is(served, parents_of_workers):
    """And gives it back closed; workers may be started by a thread that is not the main one."""
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


def test_stop_tells_how_it_ended():
    """Whoever is still served then is cut when the grace is over."""
    with serve_in_thread(holds) as server:
        begin(server)
        report = server.stop(grace=0.01)
        assert [str(one.outcome) for one in report.requests] == ["cancelled"]
        assert report.grace == 0.01
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        server.wait_idle()


class NotingFaults(Faults):
    """Note in which threads they are changed."""

    def __init__(self):
        self.threads = []
        super().__init__()

    def add(self, *faults):
        super().add(*faults)
        self.threads += [threading.current_thread().name for _ in faults[:1]]

    def remove(self, *faults):
        super().remove(*faults)
        self.threads.append(threading.current_thread().name)

    def clear(self):
        super().clear()
        self.threads.append(threading.current_thread().name)


def test_network_changes_from_outside():
    """In the thread of the server, where connections wait for just that."""
    inside = NotingFaults()
    with serve_in_thread(Upper, faults=inside) as server:
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
    assert inside.threads == ["serve_in_thread(Upper)"] * 6  # the last at the end


def test_faults_that_were_not_asked_for():
    """Nothing is between the server and its sockets then."""
    with serve_in_thread(Upper) as server:
        with pytest.raises(RuntimeError, match=r"give some when it is opened: faults=Faults"):
            _ = server.faults


# Wrong tests fail -------------------------------------------------------------------


def test_handler_error_fails_the_test():
    """With its traceback, though the client has noticed nothing but an end."""
    with pytest.raises(ExceptionGroup, match="handlers have failed") as caught:
        with serve_in_thread(fails) as server:
            fail(server)
    [error] = caught.value.exceptions
    assert isinstance(error, KeyError)
    assert error.__traceback__ is not None
    assert server.exchanges[0].error is error


@pytest.mark.parametrize("handler", [fails, holds])
def test_lenient(handler):
    """``strict=False``: errors are noted, and whoever goes on is cut."""
    with serve_in_thread(handler, strict=False) as server:
        client = server.connect()
        client.sendall(b"hello")
        client.recv(100)
    [exchange] = server.exchanges
    assert isinstance(exchange.error, KeyError) == (handler is fails)
    assert str(exchange.outcome) == ("failed" if handler is fails else "cancelled")


def test_check_raises_each_error_once():
    """So it fails the test that has caused it, and not the next one, nor the end."""
    with serve_in_thread(fails) as server:
        for word in (b"first", b"second"):
            server.check()
            fail(server, word)
            with pytest.raises(ExceptionGroup, match="handlers have failed") as caught:
                server.check()
            assert [error.args for error in caught.value.exceptions] == [(word,)]


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


@pytest.mark.slow
def test_unfinished_handler_fails_the_test():
    """By name, a second after the test."""
    with pytest.raises(Unfinished, match=r"1 s after the test:\n  request 1 from .*, working"):
        with serve_in_thread(holds) as server:
            begin(server)


@pytest.mark.parametrize("error", [AssertionError("the test's own"), pytest.skip.Exception("no")])
def test_own_failure_is_not_masked(error):
    """The handler's error is a note on it; an unfinished one is not even looked for."""
    with pytest.raises(type(error)) as caught:
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


# Crashes ---------------------------------------------------------------------------------


def knock(server):
    """Come; the server may be gone before that is known here."""
    with contextlib.suppress(ConnectionError):
        server.connect()


class Crashes(trioserver.TCPServer):
    """Fails itself, as soon as somebody comes."""

    def get_request(self, listener):
        raise KeyError("the server itself")


class Interrupted(trioserver.TCPServer):
    """The same, with what is no `Exception`."""

    async def verify_request(self, request, client_address):
        raise KeyboardInterrupt("the server itself")


WAITS = {
    "wait_requests": lambda server: server.wait_requests(2),
    "wait_idle": ThreadServer.wait_idle,
    "check": ThreadServer.check,
    "stop": ThreadServer.stop,
    "connect": ThreadServer.connect,
}


@pytest.mark.parametrize("kind", [Crashes, Interrupted])
@pytest.mark.parametrize("wait", WAITS)
def test_background_crash_fails_who_waits(kind, wait):
    """At once, with the server's error; later calls, too, and the end in any case."""
    crash, told = (KeyError, KeyboardInterrupt), "the server itself"
    with pytest.raises(crash, match=told) as at_the_end:
        with serve_in_thread(kind(("127.0.0.1", 0), Upper)) as server:
            knock(server)
            with pytest.raises(crash, match=told) as there:
                server.wait_requests(2)
            with pytest.raises(crash, match=told):
                WAITS[wait](server)
    assert at_the_end.value is there.value


class Unclosable(trioserver.TCPServer):
    """Fails at its end, with what is no `Exception`."""

    async def server_close(self):
        raise KeyboardInterrupt("the server itself")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Crashes, "KeyError: 'the server itself'"),
        (Unclosable, "KeyboardInterrupt: the server itself"),
    ],
)
def test_crash_is_told_of(kind, told):
    """When the test has failed by what it has seen of it, or fails when the server does."""
    with pytest.raises(AssertionError, match="the test's own") as caught:
        with serve_in_thread(kind(("127.0.0.1", 0), Upper)) as server, server.expect_error():
            if kind is Crashes:
                knock(server)
                with pytest.raises(KeyError):
                    server.wait_requests()
            raise AssertionError("the test's own")
    [note] = caught.value.__notes__
    assert note.startswith("The server has failed, too:\nTraceback")
    assert note.endswith(f"{told}\n")


# The start, and the end -----------------------------------------------------------------


def test_port_that_is_taken():
    """Is an error of the ``with`` statement, bare."""
    with serve_in_thread(Upper) as server:
        again = trioserver.TCPServer(server.address, Upper)
        with pytest.raises(OSError, match="in use") as caught, serve_in_thread(again):
            raise AssertionError("it was served")
    assert any(entry.name == "server_bind" for entry in caught.traceback)


THREADED = r'needs .* trioserver\.Threading(TCP|UDP)Server\(\("127.0.0.1", 0\), (Upper|Back)\).*'


@pytest.mark.parametrize(
    ("server", "options", "error", "message"),
    [
        (Upper, {"transport": "memory"}, ValueError, "no way into a network in memory: transport"),
        (Upper, {"transport": "sctp"}, ValueError, "must be .*, not 'sctp'"),
        (trioserver.UDPServer(("", 0), hold), {}, TypeError, "over 'tcp'; its own is 'udp'"),
        (process_handlers.Upper, {}, TypeError, THREADED + "='tcp'"),
        (process_handlers.Back, {"transport": "udp"}, TypeError, THREADED + "='udp'"),
        (Upper, {"patience": "1"}, TypeError, "patience must be a number of seconds, not '1'"),
        (Upper, {"patience": True}, TypeError, "patience must be a number of seconds, not True"),
        (Upper, {"patience": 0}, ValueError, "patience must be greater than 0 seconds, not 0"),
        (Upper, {"patience": math.nan}, ValueError, "greater than 0 seconds, not nan"),
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
    [
        (Hangs(("127.0.0.1", 0), Upper), "start", "server_bind"),
        (holds, "end", "holds"),
    ],
)
def test_start_or_end_that_hangs(served, when, where):
    """Is ended, and shown: an end on a request whose second is longer than the patience."""
    with pytest.raises(Hung) as caught, serve_in_thread(served, patience=A_MOMENT) as server:
        assert when == "end"
        begin(server)
    told = str(caught.value)
    assert told.startswith(
        f"the {when} took more than {A_MOMENT} real seconds; the tasks were here"
    )
    assert f"in {where}: await trio.sleep_forever()" in told
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.slow
def test_loop_that_is_blocked():
    """By a handler, say: it is shown where, and its thread is left, and ends when it can.

    A failure of the test itself is not masked by that: it has this as a note.
    """
    blocks, left = Blocks(), "'serve_in_thread(Blocks)', a thread, cannot be ended: it is left."
    with pytest.raises(Hung) as caught, serve_in_thread(blocks, patience=A_MOMENT) as server:
        client = blocks.block(server)
        with pytest.raises(Hung, match=r"wait_idle\(\) took .*loop is blocked here:"):
            server.wait_idle(timeout=0.01)
    told = str(caught.value)
    assert told.startswith(
        f"the end took more than {A_MOMENT} real seconds; Trio's loop is blocked"
    )
    assert "self._released.wait()" in told
    assert caught.value.__notes__ == [left]
    assert client.fileno() == -1
    assert len(server_threads()) == 1
    blocks.release()
    blocks = Blocks()
    with pytest.raises(ZeroDivisionError) as own, serve_in_thread(blocks, patience=A_MOMENT) as it:
        blocks.block(it)
        raise ZeroDivisionError
    [note] = own.value.__notes__
    assert "Hung: the end took more than" in note
    assert "it is left" in note
    blocks.release()


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

    with pytest.raises(KeyboardInterrupt):
        with serve_in_thread(interrupts) as server:
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


USES = {
    **WAITS,
    "expect_error": lambda server: server.expect_error().__enter__(),
    "faults": lambda server: server.faults.clear(),
}


@pytest.mark.parametrize("use", USES)
def test_use_after_the_end(use):
    """Is refused in words."""
    with serve_in_thread(Upper, faults=Faults()) as server:
        pass
    with pytest.raises(RuntimeError, match=rf"^{use}.*\) comes too late: the block is left, and"):
        USES[use](server)


def test_wait_that_the_end_overtakes():
    """In another thread; it does not go on for ever."""
    with ThreadPoolExecutor(1) as threads:
        with serve_in_thread(Upper, patience=20) as server:
            begun = threading.Event()

            def wait():
                begun.set()
                return server.wait_requests(2)

            waits = threads.submit(wait)
            begun.wait()
        with pytest.raises(RuntimeError, match=r"wait_requests\(2\) comes too late"):
            waits.result(20)


# unittest ---------------------------------------------------------------------------------


class Suite(unittest.TestCase):
    """Tests that share a server; not collected by pytest, but run below."""

    __test__ = False
    server: ThreadServer

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(serve_in_thread(fails))

    def setUp(self):
        self.addCleanup(self.server.check)

    def test_a_does_nothing(self):
        """So nothing fails."""

    def test_b_fails(self):
        """Does not notice that its handler has failed."""
        fail(self.server)

    def test_c_expects(self):
        """Knows that its handler fails."""
        with self.server.expect_error(KeyError):
            fail(self.server)


def test_shared_server_fails_the_right_test():
    """The one whose handler has failed; and the others are none the worse."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Suite).run(result)
    [(test, told)] = result.errors
    assert test.id().endswith(".Suite.test_b_fails")
    assert "handlers have failed" in told
    assert "KeyError: b'hello" in told
    assert (result.testsRun, result.failures) == (3, [])
