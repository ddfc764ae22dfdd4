import logging
import os
import re
import signal
import sqlite3
import threading
from contextlib import AsyncExitStack, closing

import pytest
import trioserver
from support import connect, read_to_end, running, until
from support.pages import assert_shown
from support.processes import fails_to_start, on_tcp
from support.threads import ask

import logs
import processes

HERE = ("127.0.0.1", 0)


def assert_record_shown(record, number, request, port):
    """A record is on the page about errors, where other figures stand for those of this run."""
    record = re.sub(
        rf"^request {number} from \S+", f"request {request} from 192.0.2.1:{port}", record
    )
    assert_shown(re.sub(r" after \S+ s, .*", "", record), "explanation/errors")


@pytest.mark.parametrize("handler", [processes.Primes, processes.PrimesInTrio])
async def test_primes(handler):
    """Handlers of both colours count, side by side; a drain ends them between two requests."""
    server = on_tcp(handler)
    async with running(server):
        assert await ask(server, b"10\n100\n") == b"4\n25\n"
        async with await connect(server) as client:
            await client.send_all(b"10\n")
            assert await client.receive_some() == b"4\n"
            assert len(server.active_children) == 1
            server.shutdown()
            assert await read_to_end(client) == b""
    assert len((await server.wait_closed()).drained) == 1
    assert server.active_children == []


async def test_greeter(caplog):
    """A worker's server has its fields and own attributes, and not what cannot be pickled."""
    server = processes.Greeter(HERE, processes.greet, greeting="good morning", min_children=1)
    server.lock = threading.Lock()
    async with running(server):
        assert await ask(server, b"") == b"good morning"
    (warning,) = (it for it in caplog.records if it.levelno == logging.WARNING)
    assert_shown(warning.getMessage(), "how-to/processes")


async def test_handler_that_does_not_pickle():
    """The error on the page is that of a server whose handler is no worker's to import."""
    server = trioserver.ProcessTCPServer(HERE, lambda *_: None)
    message = await fails_to_start(server, TypeError)
    assert message.startswith("ProcessTCPServer.RequestHandlerClass does not pickle")
    assert_shown(message.partition(" (")[0], "how-to/processes")


async def test_dictionary(tmp_path):
    """Each worker opens the database for itself, before its first request."""
    path = tmp_path / "words"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE words (word, meaning)")
        database.execute("INSERT INTO words VALUES ('trio', 'three people')")
    server = processes.dictionary(HERE, path)
    async with running(server):
        for _ in range(3):
            assert await ask(server, b"trio\nquartet\n") == b"three people\n\n"
    assert processes.database is None  # a worker's is its own


async def test_log(monkeypatch, caplog, capsys):
    """What a handler logs in its worker looks as it does in a task, with the id of its request."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    caplog.set_level(logging.WARNING)  # and what it is afterwards is undone
    server = on_tcp(logs.Upper)
    logs.set_up_logging()
    async with running(server):
        assert await ask(server, b"hello\n") == b"HELLO\n"
    assert "INFO upper [1] a line of 6 bytes" in capsys.readouterr().err.splitlines()


async def test_bounded():
    """It begins with two workers, has more when more clients are there, and never above eight."""
    server = processes.bounded(HERE)
    async with running(server), AsyncExitStack() as clients:
        assert len(server.active_children) == 2
        for _ in range(9):
            await clients.enter_async_context(await connect(server))
        await until(lambda: len(server.active_children) == 8)
        await until(lambda: len(server.requests) == 8)


async def test_crashes(caplog):
    """A worker that is killed from outside is what the hook takes it for; the next is unharmed."""
    caplog.set_level(logging.INFO)
    server = processes.Watched(HERE, processes.Primes, min_children=1)
    async with running(server):
        async with await connect(server) as client:
            await client.send_all(b"10\n")
            assert await client.receive_some() == b"4\n"
            (pid,) = server.active_children
            os.kill(pid, signal.SIGKILL)
            assert await read_to_end(client) == b""
        assert await ask(server, b"10\n") == b"4\n"
        assert await ask(server, b"ten\n") == b""
    (told,) = (it for it in caplog.records if it.name == "primes")
    assert told.getMessage() == f"worker {pid}: out of memory?"
    crashed, failed = (it for it in caplog.messages if " failed (" in it)
    assert_record_shown(crashed.replace(str(pid), "4711"), 1, 5, 51030)
    assert_record_shown(failed, 3, 6, 51032)


async def test_killed(caplog):
    """Who computes for too long is killed, whatever it does, and the record says so."""
    caplog.set_level(logging.INFO)
    timeouts = trioserver.Timeouts(request=0.2)
    server = processes.bounded(HERE).evolve(timeouts=timeouts, min_children=1)
    async with running(server):
        assert await ask(server, b"10000000\n") == b""
        assert await ask(server, b"10\n") == b"4\n"
    (killed,) = (it for it in caplog.messages if " killed (" in it)
    assert_record_shown(killed, 1, 7, 51034)
