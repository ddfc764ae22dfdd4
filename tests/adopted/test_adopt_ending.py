"""`adopt`: what of theirs takes too long, and how long that may be."""

import logging
import socketserver
import threading
import time

import pytest
import trio
from support import until
from support.adopting import THERE, Upper, adopted, fails, in_thread

import trioserver
from trioserver import Timeouts

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


@pytest.fixture
def errors(caplog):
    """What was logged as an error."""
    levels = logging.ERROR
    return lambda: [it.getMessage() for it in caplog.records if it.levelno >= levels]


class Acts(socketserver.TCPServer):
    """Does something besides, and waits in one of its methods until it may go."""

    def __init__(self, waits_in="service_actions"):
        super().__init__(THERE, Upper)
        self.calls = []
        self.began, self.go, self.waits_in = threading.Event(), threading.Event(), waits_in

    def wait(self, where):
        self.began.set()
        if where == self.waits_in:
            self.go.wait(10)
        self.calls.append(where)

    def service_actions(self):
        self.wait("service_actions")

    def server_close(self):
        super().server_close()
        self.wait("server_close")

    def draining(self, grace):
        """As an observer: there is no need to wait any longer."""
        self.go.set()


@pytest.mark.parametrize("waits_in", ["service_actions", "server_close"])
async def test_what_hangs_is_left_behind(waits_in, errors):
    """They get ``timeouts.cleanup`` from the drain on, and a line in the log."""
    async with adopted(server := Acts(waits_in), timeouts=Timeouts(cleanup=0.05)):
        assert await in_thread(server.began.wait, 5)
        start = time.monotonic()
    assert time.monotonic() - start < 2
    server.go.set()
    [told] = errors()
    assert told.startswith(f"Acts.{waits_in} did not end within 0.05 s (cleanup)")
    assert told.endswith("; left behind") == (waits_in == "service_actions")


async def test_service_actions_that_end_in_time_are_waited_for(errors):
    """As ever, nothing of theirs is closed under them."""
    async with adopted(server := Acts(), observers=[server]):
        assert await in_thread(server.began.wait, 5)
    assert server.calls == ["service_actions", "server_close"]
    assert errors() == []


@pytest.mark.parametrize("cleanup", [0.2, 0])
async def test_server_close_is_called_in_any_case(cleanup, errors):
    """Whoever else has all of Trio's threads, and however little time it gets."""
    limiter = trio.to_thread.current_default_thread_limiter()
    for _ in range(int(limiter.total_tokens)):
        limiter.acquire_on_behalf_of_nowait(object())
    server, timeouts = Acts(), Timeouts(cleanup=cleanup)
    server.go.set()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda **it: trioserver.adopt(server, timeouts=timeouts, **it))
            await until(lambda: server.calls)
            server.shutdown()
    assert server.calls == ["service_actions", "server_close"]
    assert errors() == []


@pytest.mark.slow
@pytest.mark.parametrize("waits_for", ["nobody", "the client"])
async def test_handle_error_that_hangs_is_told_once_and_bounded_once(waits_for, errors, caplog):
    """It has ``timeouts.cleanup``, then its thread a moment; its error and its place are told.

    There is no place to tell where it waits for its client, which its time ends, too.
    """
    go = threading.Event()

    class Stuck(socketserver.ThreadingTCPServer):
        def handle_error(self, request, client_address):
            if waits_for == "nobody":
                go.wait(10)
            else:
                request.recv(1)

    async with adopted(Stuck(THERE, fails), timeouts=Timeouts(cleanup=0.5)) as it:
        with it.client() as client:
            await it.ends_with(client)
            await it.ended()
        go.set()
    assert it.outcomes == ["failed"]
    assert 0.5 <= it.records[0].duration < 0.9
    *where, of_what = errors()
    assert ["left behind" in it and "go.wait(10)" in it for it in where] == (
        [True] if waits_for == "nobody" else []
    )
    assert "handle_error did not end within 0.5 s (cleanup), for request 1" in of_what
    assert "ValueError: no" in caplog.text


async def test_first_error_is_not_lost_in_server_close(caplog):
    """What has ended the server is logged when their server_close raises something else."""

    class Fails(socketserver.TCPServer):
        def service_actions(self):
            raise LookupError("the first")

        def server_close(self):
            super().server_close()
            raise RuntimeError("the second") from None

    server = Fails(THERE, Upper)
    with trio.fail_after(5), pytest.raises(RuntimeError, match="the second"):
        await trioserver.adopt(server)
    assert "LookupError: the first" in caplog.text
