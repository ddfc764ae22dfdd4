"""Every command, typed: what it serves, what it says, and how it ends."""

import signal
import socket
import ssl
import struct
import subprocess
import sys
import time

import pytest
import trustme
from support import plain_client
from support.listening import on_linux
from support.scenes import table
from support.workers import renews

pytestmark = on_linux

ANY = "--bind 127.0.0.1:0"


def answer(address, line=b"hello\n", kind=socket.SOCK_STREAM):
    """What a new client is answered."""
    with plain_client(address, kind) as client:
        client.sendall(line)
        return client.recv(100)


# serve ------------------------------------------------------------------------------


@table(
    "arguments",
    {
        "a handler class": "app:Upper",
        "in threads": "app:Blocking --mode thread",
        "in processes": "app:Blocking --mode process",
        "a server": "app:server",
        "a function that makes one": "app:make --factory",
    },
)
def test_serve(arguments, command):
    """Whatever it is, it is served."""
    with command("serve", arguments, ANY) as program:
        assert answer(program.address()) == b"HELLO\n"
        program.stops()


def test_serve_datagrams(command):
    """A handler of datagrams is served by UDP; another one, if one says so."""
    for arguments, word in (("app:Packets", b"HELLO\n"), ("app:Upper --udp", b"HELLO\n")):
        with command("serve", arguments, ANY) as program:
            assert answer(program.address(), kind=socket.SOCK_DGRAM) == word
            program.stops()


def test_several_places(command, tmp_path):
    """A server for each, all with the same handler; the file of one is removed."""
    with command("serve app:Upper", ANY, "-b unix:one -b unix:@two", "--print-address") as program:
        one, two = program.address(), program.address(1)
        assert [answer(one), answer(two)] == [b"HELLO\n"] * 2
        printed = [program.process.stdout.readline() for _ in range(3)]
        assert printed == [f"127.0.0.1:{one[1]}\n", "unix:one\n", "unix:@two\n"]
        program.stops()
    assert not (tmp_path / "one").exists()


def test_several_servers(command):
    """A module may have them in a list."""
    with command("serve app:both") as program:
        assert [answer(program.address(nth)) for nth in (0, 1)] == [b"HELLO\n"] * 2
        program.stops()


def test_server_with_other_settings(command):
    """What is typed wins over what the server has; what is not stays."""
    with command("serve app:make --factory -b 127.0.0.2:0 --timeout-line 3") as program:
        host, port = program.address()
        assert host == "127.0.0.2"
        with plain_client((host, port)) as client:
            assert client.recv(1) == b""  # after the 0.2 s that `make` says
        program.stops()


@table(
    ("arguments", "environment"),
    {
        "by name": ("-b inherited:web", {}),
        "all of them": ("-b inherited:", {}),
        "by number": ("-b fd://4", {}),
        "from the environment": ("", {"TRIOSERVER_BIND": "inherited:web"}),
        "with workers, by name": ("-b inherited:web --workers 2", {}),
        "with workers, by number": ("-b fd://4 --workers 2", {}),
    },
)
def test_passed_sockets(arguments, environment, command):
    """Those of a service manager are served, TCP's and Unix's."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as other:
        passed = [("api" if "web" in str(environment) + arguments else "web", other.fileno())]
        passed.append(("web", one.fileno()))
        with command("serve app:Upper", arguments, passed=passed, **environment) as program:
            program.says("ready on")
            assert answer(one.getsockname()) == b"HELLO\n"
            program.stops()


@table(
    "arguments",
    {
        "a handler class": "serve app:Upper",
        "in threads": "serve app:Blocking --mode thread",
        "a function that makes a server": "serve app:make --factory",
        "a small service": "echo",
    },
)
def test_workers(arguments, command):
    """Whatever it is, several processes serve it; SIGHUP renews them, and SIGTERM ends them."""
    with command(arguments, ANY, "--workers 2") as program:
        address = program.address()
        assert answer(address).upper() == b"HELLO\n"
        program.order("SIGHUP")
        program.says("all 2 workers were replaced")
        assert answer(address).upper() == b"HELLO\n"
        program.stops()


def test_workers_of_new_code(command, tmp_path):
    """A worker that SIGHUP starts imports the module anew."""
    (tmp_path / "code.py").write_text(CODE.format("old"))
    with command("serve code:handle", ANY, "--workers 2") as program:
        address = program.address()
        assert answer(address) == b"old"
        (tmp_path / "code.py").write_text(CODE.format("another"))
        renews(program)
        assert {answer(address) for _ in range(8)} == {b"another"}
        program.stops()


CODE = """
async def handle(request, client_address, server):
    await request.sendall(b"{}")
"""


def test_exec_with_workers(command):
    """Programs are run by workers, too."""
    with command("exec", ANY, "--workers 2 -- cat") as program:
        assert answer(program.address()) == b"hello\n"
        program.stops()


def test_environment(command):
    """Options come from there, and what is typed wins."""
    told = {"TRIOSERVER_BIND": "127.0.0.2:0", "TRIOSERVER_PRINT_ADDRESS": "1"}
    with command("serve app:Upper", **told) as program:
        assert program.process.stdout.readline().startswith("127.0.0.2:")
        program.stops()
    with command("serve app:Upper", ANY, **told) as program:
        assert program.address()[0] == "127.0.0.1"
        program.stops()


def test_tls(command, tmp_path):
    """By TLS, with a certificate that is read anew at SIGHUP."""
    authority = trustme.CA()

    def renew(name):
        issued = authority.issue_cert(name)
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")

    context = ssl.create_default_context()
    authority.configure_trust(context)

    def greets(name, address):
        with context.wrap_socket(plain_client(address), server_hostname=name) as client:
            client.sendall(b"hello\n")
            return client.recv(100)

    renew("one.example")
    with command("serve app:Upper", ANY, "--tls-cert server.pem") as program:
        address = program.address()
        assert greets("one.example", address) == b"HELLO\n"
        renew("two.example")
        program.order("SIGHUP")
        program.says("SIGHUP: reloaded 1 of the 1 servers that can")
        assert greets("two.example", address) == b"HELLO\n"
        program.stops()


def test_proxy_protocol(command):
    """The client's address is the one that a trusted proxy tells."""
    with command("serve app:who", ANY, "--proxy-protocol 127.0.0.0/8,unix") as program:
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n"
        assert answer(program.address(), header) == b"('192.0.2.1', 1234)"
        program.stops()


def test_health_and_check(command):
    """`check` asks what a probe wants to know."""

    def check(*arguments):
        words = [sys.executable, "-m", "trioserver", "check", *arguments]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
        return done.returncode, done.stderr

    with command("serve app:Upper", ANY, "--health unix:checks --ready-off 1h") as program:
        program.address()
        assert check("unix:checks") == (0, "trioserver: ready\n")
        assert check("unix:checks", "--live") == (0, "trioserver: live\n")
        program.order("SIGTERM")
        program.says("says that it is not ready")
        assert check("unix:checks") == (1, "trioserver: not ready: it is about to end\n")
        assert check("unix:checks", "--live") == (0, "trioserver: live\n")
        program.order("SIGTERM")
        program.ends()


@table(
    "arguments",
    {
        "in a task": "app:stuck",
        "in a thread": "app:Stuck --mode thread",
        "in a process": "app:Stuck --mode process",
    },
)
@pytest.mark.parametrize("signals", [["SIGTERM", "SIGINT"], ["SIGINT", "SIGTERM"]])
def test_stuck_client(arguments, signals, command):
    """The second signal cuts it, and the status says which that was."""
    with command("serve", arguments, ANY, "--grace 1h") as program:
        with plain_client(program.address()) as client:
            assert client.recv(5) == b"stuck"
            program.order(signals[0])
            program.says("the program drains")
            assert program.process.poll() is None
            program.order(signals[1])
            program.ends(128 + signal.Signals[signals[1]])


@table(
    "arguments",
    {"in a task": "app:stuck", "in a thread": "app:Stuck --mode thread"},
)
def test_grace_that_is_over(arguments, command):
    """The grace cuts it, too; the log says so, and the status is 0."""
    with command("serve", arguments, ANY, "--grace 100ms") as program:
        with plain_client(program.address()) as client:
            assert client.recv(5) == b"stuck"
            program.stops()
        program.says("the grace of 0.1 s was over: .* has cancelled 1 requests")


@table(
    "arguments",
    {
        "in a task": "app:Upper",
        "in a thread": "app:Blocking --mode thread",
        "in a process": "app:Blocking --mode process",
        "behind a proxy": "app:Upper --proxy-protocol 127.0.0.1",
    },
)
def test_client_that_had_connected(arguments, command):
    """Who had connected before the signal, and speaks 0, 50 or 200 ms after it, is answered."""
    greeting = b"PROXY UNKNOWN\r\n" if "proxy" in arguments else b""
    for delay in (0, 0.05, 0.2):
        with command("serve", arguments, ANY) as program:
            with plain_client(program.address()) as client:
                program.order("SIGTERM")
                time.sleep(delay)
                client.sendall(greeting + b"hello\n")
                assert client.recv(100) == b"HELLO\n"
            program.ends()


def test_server_that_fails(command):
    """Status 1, and one line, unless one asks for more."""
    for arguments, traces in (("", False), ("--traceback", True)):
        with command("serve app:fragile --log-level critical", arguments) as program:
            plain_client(program.address()).close()
            program.says("trioserver: error: a server failed: it broke")
            program.ends(1)
        assert any("Traceback" in line for line in program.said) == traces


def test_handover(command):
    """SIGUSR2 starts the same command, which finds its sockets, whatever the port."""
    with command("serve app:Upper", ANY) as program:
        address = program.address()
        program.order("SIGUSR2")
        (new,) = program.says(r"goes on as process (\d+)")
        program.ends()
        assert answer(address) == b"HELLO\n"
        program.order("SIGTERM", int(new))
        program.has_gone(int(new))


# The small ones ---------------------------------------------------------------------

SECONDS_FROM_1900_TO_2026 = 3_976_000_000


def is_now(data):
    """Whether these are the seconds since 1900."""
    (seconds,) = struct.unpack("!I", data)
    return seconds > SECONDS_FROM_1900_TO_2026


@table(
    ("name", "is_right"),
    {
        "echo": ("echo", lambda data: data == b"hello\n"),
        "chargen": ("chargen", lambda data: data.startswith(b"0123456789abcdef")),
        "daytime": ("daytime", lambda data: time.strftime("%Y").encode() in data),
        "time": ("time", is_now),
    },
)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_small_services(name, is_right, kind, command):
    """Each says what its RFC wants, by TCP and by UDP."""
    udp = "--udp" if kind == socket.SOCK_DGRAM else ""
    with command(name, ANY, udp) as program:
        assert is_right(answer(program.address(), kind=kind))
        program.stops()


def test_discard(command):
    """It takes whatever comes, says nothing, and ends when the client does."""
    with command("discard", ANY) as program:
        with plain_client(program.address()) as client:
            client.sendall(b"x" * 1_000_000)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        program.stops()


def test_idle_client_of_echo(command):
    """Who only waits holds no drain up."""
    with command("echo", ANY, "--grace 1h") as program:
        with plain_client(program.address()) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            program.stops()


# adopt, demo ------------------------------------------------------------------------


def test_adopt(command):
    """An object of socketserver is served as it is."""
    with command("adopt app:classic") as program:
        assert answer(program.address()) == b"HELLO\n"
        program.stops()


def test_adopted_server_that_forks(command):
    """Its handlers run in threads, if one says so."""
    with command("adopt app:forking --forking threads") as program:
        assert answer(program.address()) == b"HELLO\n"
        program.stops()


def test_other_orders_to_an_adopted_server(command):
    """They end nothing: one shows the tasks, and of the others nothing comes, which is told."""
    with command("adopt app:classic") as program:
        address = program.address()
        for name in ("SIGHUP", "SIGUSR2"):
            program.order(name)
            program.says(f"WARNING {name}: an adopted server neither reloads nor hands over")
        program.order("SIGUSR1")
        program.says("WARNING SIGUSR1: the tasks are")
        assert answer(address) == b"HELLO\n"
        program.stops()


def test_adopted_server_that_is_stuck(command):
    """The second signal cuts it."""
    with command("adopt app:classic --grace 1h") as program:
        with plain_client(program.address()) as client:
            client.sendall(b"a line\nhalf a line")
            assert client.recv(100) == b"A LINE\n"  # so it is none that has just come
            program.order("SIGTERM")
            program.says("INFO draining")
            program.order("SIGINT")
            program.ends(128 + signal.SIGINT)


def test_script():
    """The script does what ``python -m`` does."""
    script = f"{sys.exec_prefix}/bin/trioserver"
    done = subprocess.run([script], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.startswith("usage: trioserver [-h] COMMAND")
