"""A program that starts its successor: no client is turned away, and a bad one does no harm."""

import os

import pytest
import trio
from support import plain_client
from support.in_memory_programs import on_visit, order
from support.listening import is_there, on_linux
from support.running_programs import heard, running_program, who_answers
from support.scenes import table

import trioserver

pytestmark = on_linux  # the tests look at its /proc

RUN = "trioserver.run(server, start_timeout=8)\n"
ON_TCP = f'server = trioserver.TCPServer(("127.0.0.1", 0), handle)\n{RUN}'
ON_A_PATH = f'server = trioserver.UnixStreamServer("socket", handle)\n{RUN}'


@table("source", {"on TCP": ON_TCP, "on a path": ON_A_PATH})
def test_handed_over(source, tmp_path):
    """Who is there is served to the end by the old program; everybody else, by the new one."""
    with running_program(tmp_path / "program.py", source) as program:
        address, old = program.address(), program.process.pid
        with plain_client(address) as client:
            client.sendall(b"hello\n")
            assert heard(client, b"hello\n") == old
            client.sendall(b"half a ")
            new = program.hands_over()
            assert who_answers(address) == new != old
            client.sendall(b"line\n")
            assert heard(client, b"half a line\n") == old
        program.ends()
        assert who_answers(address) == new
        program.order("SIGTERM", new)
        program.has_gone(new)
        assert not is_there(address)  # the ownership of a file has come along
    assert not [line for line in program.said if "Warning" in line or "Traceback" in line]


def test_handed_over_again_and_again(tmp_path):
    """Each successor has one of its own, and the port stays."""
    with running_program(tmp_path / "program.py", ON_TCP) as program:
        address = program.address()
        processes = [program.process.pid]
        for _ in range(3):
            processes.append(program.hands_over())
            assert who_answers(address) == processes[-1]
            program.has_gone(processes[-2])
        program.order("SIGTERM", processes[-1])
        program.has_gone(processes[-1])
    assert len(set(processes)) == 4


SEVERAL = """
first = trioserver.TCPServer(("127.0.0.1", 0), handle)
second = trioserver.TCPServer(("127.0.0.1", 0), handle)
packets = trioserver.UDPServer(("127.0.0.1", 0), handle)
servers = [first, second, packets]
if "TRIOSERVER_HANDOVER" in os.environ:
    servers.insert(0, trioserver.UnixStreamServer("new", handle))  # as new code may
trioserver.run(*servers, health="health", start_timeout=8)
"""


def test_servers_of_a_kind(tmp_path):
    """Each finds its own sockets, whatever else there is; health checks come along."""
    with running_program(tmp_path / "program.py", SEVERAL) as program:
        ports = program.says(r"serves 127.0.0.1:(\d+), 127.0.0.1:(\d+), 127.0.0.1:(\d+)")
        new = program.hands_over()
        assert (
            program.says(r"serves unix:new, 127.0.0.1:(\d+), 127.0.0.1:(\d+), 127.*:(\d+)") == ports
        )
        assert [who_answers(("127.0.0.1", int(port))) for port in ports[:2]] == [new] * 2
        program.ends()
        with plain_client(str(tmp_path / "health")) as client:
            client.sendall(b"GET /ready HTTP/1.1\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


INHERITED = """
sockets = [socket for name in ("web", "api") for socket in trioserver.inherited_sockets(name)]
servers = [trioserver.TCPServer(sock, handle) for sock in sockets]
trioserver.run(*servers, start_timeout=8)
"""


def test_sockets_of_a_service_manager(tmp_path):
    """The new program finds them by the same names."""
    passing = """
import os, socket
for number, name in enumerate(("api", "web")):
    sock = socket.create_server(("127.0.0.1", 0))
    os.dup2(sock.fileno(), 100 + number)
    print(name, sock.getsockname()[1], flush=True)
if "LISTEN_FDS" not in os.environ and "TRIOSERVER_HANDOVER" not in os.environ:
    for number in (0, 1):
        os.dup2(100 + number, 3 + number)
    os.environ |= {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "api:web", "LISTEN_PID": str(os.getpid())}
    os.execv(sys.executable, sys.orig_argv)
"""
    with running_program(tmp_path / "program.py", passing + INHERITED) as program:
        ports = program.says(r"serves 127.0.0.1:(\d+), 127.0.0.1:(\d+)")
        new = program.hands_over()
        assert program.says(r"serves 127.0.0.1:(\d+), 127.0.0.1:(\d+)", times=2) == ports
        assert who_answers(("127.0.0.1", int(ports[1]))) == new


# Successors that do not get ready -------------------------------------------------------

BAD = {
    "one that crashes": ("raise SystemExit(3)", "has ended before it was ready, with status 3"),
    "one that is killed": ("os.kill(os.getpid(), 9)", "before it was ready, by signal 9"),
    "one that hangs": ("time.sleep(60)", r"was not ready within 1.5 s"),
    "one that cannot even be ended": (
        "import signal; signal.signal(15, signal.SIG_IGN); time.sleep(60)",
        r"was not ready within 1.5 s",
    ),
    "one that is never ready": (
        "trio.run(trio.sleep_forever)",
        r"was not ready within 1.5 s",
    ),
}


@table(("fault", "why"), BAD)
def test_bad_successor(fault, why, tmp_path):
    """It is told of and is gone, and the old program serves on as if nothing had happened."""
    path = tmp_path / "program.py"
    source = ON_TCP.replace("start_timeout=8", "start_timeout=1.5")
    with running_program(path, source) as program:
        address, old = program.address(), program.process.pid
        good = path.read_text()
        path.write_text(good.replace("server =", f"{fault}\nserver ="))
        program.order("SIGUSR2")
        program.says(f"^{old} the successor .*{why}: this program serves on")
        assert who_answers(address) == old
        path.write_text(good)
        new = program.hands_over()
        assert who_answers(address) == new
        program.ends()


def test_bad_command(tmp_path):
    """A program whose code is gone cannot start another one."""
    path = tmp_path / "program.py"
    with running_program(path, ON_TCP) as program:
        address, old = program.address(), program.process.pid
        path.unlink()
        program.order("SIGUSR2")
        program.says("the successor has ended before it was ready, with status 2")
        assert who_answers(address) == old


def test_end_in_the_middle(tmp_path):
    """Who is told to end while its successor starts, ends it, too."""
    path = tmp_path / "program.py"
    with running_program(path, ON_TCP.replace("=8", "=60")) as program:
        address = program.address()
        sleeps = "logging.info('sleeps')\ntime.sleep(60)\n"
        path.write_text(path.read_text().replace("server =", f"{sleeps}server ="))
        with plain_client(address) as client:
            client.sendall(b"half a ")
            program.order("SIGUSR2")
            (new,) = program.says(r"^(\d+) sleeps")
            program.order("SIGUSR2")
            program.says("does not hand over: a successor is being started already")
            program.order("SIGTERM")
            program.has_gone(int(new))
            client.sendall(b"line\n")
            assert heard(client, b"half a line\n") == program.process.pid
        program.ends()
        with pytest.raises(ConnectionRefusedError):
            plain_client(address)


OWN = """
import socket
server = trioserver.TCPServer(socket.create_server(("127.0.0.1", 0)), handle)
trioserver.run(server, start_timeout=8)
"""


def test_socket_of_its_own_making(tmp_path):
    """The next program would make another one; so it is refused, and says what to do."""
    with running_program(tmp_path / "program.py", OWN) as program:
        address = program.address()
        program.order("SIGUSR2")
        program.says("cannot hand over: the socket at .* was made by the program itself")
        assert who_answers(address) == program.process.pid


# What is refused --------------------------------------------------------------------


def refused(act, caplog, **options):
    """What the log says of a handover that is ordered at this moment."""

    async def end(server):
        await act(server)
        order("SIGUSR2")
        await trio.testing.wait_all_tasks_blocked()
        if not server.draining:
            order("SIGTERM")

    trioserver.run(on_visit(end), **options)
    (record,) = [it for it in caplog.records if it.name == "trioserver.error"]
    return record.getMessage()


async def at_once(server):
    """Nothing else happens before."""


async def when_it_drains(server):
    """The server is told to."""
    order("SIGTERM")
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.usefixtures("handlers")
@table(
    ("act", "why"),
    {
        "in memory there is nothing to hand over": (at_once, "memory:1 has no socket to hand over"),
        "one that is about to end": (when_it_drains, "it is about to end"),
    },
)
def test_refused(act, why, caplog):
    """A program that cannot hand over says why, and goes on."""
    assert why in refused(act, caplog)


@pytest.mark.usefixtures("handlers")
def test_process_1_of_a_container(caplog, monkeypatch):
    """With it everything in the container would end, its successor included."""

    async def act(server):
        monkeypatch.setattr(os, "getpid", lambda: 1)

    assert "it is process 1 of a container" in refused(act, caplog)


def test_variable_of_somebody_else(tmp_path):
    """Who finds it by accident, in the environment of its parent, does not believe it."""
    told = '{"parent": 1, "ready": 9, "sockets": []}'
    with running_program(tmp_path / "program.py", ON_TCP, TRIOSERVER_HANDOVER=told) as program:
        assert who_answers(program.address()) == program.process.pid
