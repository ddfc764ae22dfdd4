"""`adopt`: what of theirs takes too long, and how long that may be."""

from __future__ import annotations

import logging
import socketserver
import threading
import time
from typing import Any

import pytest
import trio
from support import Witness, plain_client, until
from support.adopting import THERE, Upper, adopted, in_thread

import trioserver

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_service_actions_that_hang_are_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They get ``timeouts.cleanup`` from the drain on, and a line in the log."""
    go, began = threading.Event(), threading.Event()

    class Stuck(socketserver.TCPServer):
        def service_actions(self) -> None:
            began.set()
            go.wait(10)

    async with adopted(Stuck(THERE, Upper), timeouts=trioserver.Timeouts(cleanup=0.05)):
        assert await in_thread(began.wait, 5)
        start = time.monotonic()
    assert time.monotonic() - start < 2
    go.set()
    assert errors_in(caplog) == [
        "Stuck.service_actions did not end within 0.05 s (cleanup); left behind"
    ]


async def test_service_actions_that_end_in_time_are_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As ever, nothing of theirs is closed under them."""
    calls, began, go = [], threading.Event(), threading.Event()

    class Acts(socketserver.TCPServer):
        def service_actions(self) -> None:
            began.set()
            go.wait(10)
            calls.append("service_actions")

        def server_close(self) -> None:
            calls.append("server_close")
            super().server_close()

    class Drains:
        def draining(self, grace: float) -> None:
            go.set()

    async with adopted(Acts(THERE, Upper), observers=[Drains()]):
        assert await in_thread(began.wait, 5)
    assert calls == ["service_actions", "server_close"]
    assert errors_in(caplog) == []


@pytest.mark.parametrize("cleanup", [0.2, 0])
async def test_server_close_is_called_in_any_case(
    cleanup: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever else has all of Trio's threads, and however little time it gets."""
    called = []

    class Closes(socketserver.TCPServer):
        def service_actions(self) -> None:
            called.append("service_actions")

        def server_close(self) -> None:
            called.append("server_close")
            super().server_close()

    limiter = trio.to_thread.current_default_thread_limiter()
    for _ in range(int(limiter.total_tokens)):
        limiter.acquire_on_behalf_of_nowait(object())
    server = Closes(THERE, Upper)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            timeouts = trioserver.Timeouts(cleanup=cleanup)
            await nursery.start(lambda **it: trioserver.adopt(server, timeouts=timeouts, **it))
            await until(lambda: called)
            server.shutdown()
    assert called == ["service_actions", "server_close"]
    assert errors_in(caplog) == []


async def test_handle_error_that_hangs_is_told_once_and_bounded_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It has ``timeouts.cleanup``, then its thread a moment; its error and its place are told."""
    go = threading.Event()

    class Stuck(socketserver.ThreadingTCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            go.wait(10)

    def fails(request: Any, client_address: Any, server: Any) -> None:
        raise ValueError("no")

    server, witness = Stuck(THERE, fails), Witness()
    timeouts = trioserver.Timeouts(cleanup=0.5)
    async with adopted(server, timeouts=timeouts, observers=[witness]):
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
            await until(lambda: witness.records)
        go.set()
    assert witness.outcomes == ["failed"]
    assert 0.5 <= witness.records[0].duration < 0.9
    where, of_what = errors_in(caplog)
    assert "left behind" in where
    assert "go.wait(10)" in where
    assert "handle_error did not end within 0.5 s (cleanup), for request 1" in of_what
    assert "ValueError: no" in caplog.text


async def test_handle_error_that_waits_for_the_client_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its thread ends when its time is over, so there is no stack to tell."""

    class Asks(socketserver.ThreadingTCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            request.recv(1)

    def fails(request: Any, client_address: Any, server: Any) -> None:
        raise ValueError("no")

    server, witness = Asks(THERE, fails), Witness()
    timeouts = trioserver.Timeouts(cleanup=0.1)
    async with adopted(server, timeouts=timeouts, observers=[witness]):
        with plain_client(server.server_address) as client:
            assert await in_thread(client.recv, 1) == b""
            await until(lambda: witness.records)
    (told,) = errors_in(caplog)
    assert "handle_error did not end within 0.1 s (cleanup), for request 1" in told
    assert "ValueError: no" in caplog.text


async def test_first_error_is_not_lost_in_server_close(caplog: pytest.LogCaptureFixture) -> None:
    """What has ended the server is logged when their server_close raises something else."""

    class Fails(socketserver.TCPServer):
        def service_actions(self) -> None:
            raise LookupError("the first")

        def server_close(self) -> None:
            super().server_close()
            raise RuntimeError("the second") from None

    server = Fails(THERE, Upper)
    with trio.fail_after(5), pytest.raises(RuntimeError, match="the second"):
        await trioserver.adopt(server)
    assert "LookupError: the first" in caplog.text
