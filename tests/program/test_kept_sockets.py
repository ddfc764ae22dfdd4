"""Listening sockets that a service manager keeps: a port is not closed by a crash, or a restart."""

import os
import signal
import time

import pytest
from support import plain_client
from support.listening import on_linux
from support.running_programs import SECONDS, heard, running_program, who_answers
from support.scenes import table
from support.service_manager import stand_in

pytestmark = on_linux

BOTH = """
servers = [
    trioserver.TCPServer(("127.0.0.1", 0), handle),
    trioserver.UnixStreamServer("socket", handle),
]
trioserver.run(*servers, start_timeout=8)
"""


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """A service manager that keeps sockets for this unit."""
    with stand_in(str(tmp_path / "notify"), monkeypatch, FDSTORE="8") as it:
        yield it


def keeps(manager, count):
    """Wait until it keeps so many descriptors, and has heard that the program is ready."""
    until = time.monotonic() + SECONDS / 2
    while not (manager.values("READY") and len(manager.kept) == count):
        heard = manager.heard
        assert time.monotonic() < until, (heard, manager.kept)
        time.sleep(0.01)


def port_of(program):
    """That of its first server."""
    return int(program.says(r"serves 127.0.0.1:(\d+)")[0])


@table("number", {"a crash": signal.SIGKILL, "a restart": signal.SIGTERM})
def test_clients_wait_for_the_next_start(number, manager, tmp_path):
    """Fifty who connect while nothing runs are served, on TCP and on a path."""
    path = tmp_path / "program.py"
    with running_program(path, BOTH) as program:
        addresses = [("127.0.0.1", port_of(program)), str(tmp_path / "socket")]
        keeps(manager, 2)
        program.order(number.name)
        program.ends(-number if number == signal.SIGKILL else 0)
    clients = [plain_client(addresses[number % 2]) for number in range(50)]
    for client in clients:
        client.sendall(b"hello\n")
    with running_program(path, BOTH, manager.kept) as program:
        assert port_of(program) == addresses[0][1]
        assert [heard(client, b"hello\n") for client in clients] == [program.process.pid] * 50
        for client in clients:
            client.close()
        program.order("SIGTERM")
        program.ends()
    assert manager.values("FDSTOREREMOVE") == []


def test_who_is_queued_when_it_drains(manager, tmp_path):
    """He is served by the one that drains: the service manager does not accept in its place."""
    source = """
async def slowly(request, client_address, server):
    if server.statistics().accepted == 1:
        logging.info("holds it")
        while not server.draining:
            await trio.sleep(0.01)
    await handle(request, client_address, server)

limits = trioserver.Limits(requests=1)
trioserver.run(trioserver.TCPServer(("127.0.0.1", 0), slowly, limits=limits))
"""
    with running_program(tmp_path / "program.py", source) as program:
        address = ("127.0.0.1", port_of(program))
        keeps(manager, 1)
        with plain_client(address) as first, plain_client(address) as second:
            program.says("holds it")
            for client in (first, second):
                client.sendall(b"hello\n")
            program.order("SIGTERM")
            assert heard(first, b"hello\n") == program.process.pid
            first.close()
            assert heard(second, b"hello\n") == program.process.pid
        program.ends()


def test_servers_that_there_are_not_any_more(manager, tmp_path):
    """Their sockets are closed, and kept no longer."""
    path = tmp_path / "program.py"
    with running_program(path, BOTH) as program:
        address = ("127.0.0.1", port_of(program))
        keeps(manager, 2)
    fewer = BOTH.replace('trioserver.TCPServer(("127.0.0.1", 0), handle),', "")
    with running_program(path, fewer, manager.kept) as program:
        program.says("serves unix:socket")
        keeps(manager, 1)
        with pytest.raises(ConnectionRefusedError):
            plain_client(address)
        assert who_answers(str(tmp_path / "socket")) == program.process.pid


def test_file_that_is_gone(manager, tmp_path):
    """Nobody reaches such a socket any more: another one is bound, and kept from now on."""
    path = tmp_path / "program.py"
    with running_program(path, BOTH) as program:
        program.says("serves")
        keeps(manager, 2)
    os.unlink(tmp_path / "socket")  # noqa: PTH108
    with running_program(path, BOTH, manager.kept) as program:
        program.says("serves")
        assert who_answers(str(tmp_path / "socket")) == program.process.pid
        keeps(manager, 3)


def test_unit_that_keeps_nothing(manager, tmp_path, monkeypatch):
    """Without descriptors to keep (``FileDescriptorStoreMax=``) it is not asked to."""
    monkeypatch.setenv("FDSTORE", "0")
    with running_program(tmp_path / "program.py", BOTH) as program:
        program.says("serves")
        keeps(manager, 0)
        program.order("SIGTERM")
        program.ends()
    assert manager.values("FDSTORE") == []
    assert not (tmp_path / "socket").exists()


def test_handover_of_kept_sockets(manager, tmp_path):
    """The service manager hears who the main process is now, and keeps each socket once.

    Signs of life come from the successor, whose number is another one.
    """
    watchdog = {"WATCHDOG_USEC": "100000"}
    with running_program(tmp_path / "program.py", BOTH, **watchdog) as program:
        port_of(program)
        keeps(manager, 2)
        program.order("SIGUSR2")
        (new,) = program.says(r"goes on as process (\d+)")
        program.ends()
        assert manager.values("MAINPID") == [new]
        assert manager.values("STOPPING") == []
        assert len(manager.kept) == 2
        before = len(manager.values("WATCHDOG"))
        until = time.monotonic() + SECONDS / 2
        while len(manager.values("WATCHDOG")) < before + 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert who_answers(str(tmp_path / "socket")) == int(new)
    assert not [line for line in program.said if "Traceback" in line]
