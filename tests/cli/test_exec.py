"""The super-server: a program for each connection, which ends with it, whatever it does."""

import os
import signal
import socket
import time

import pytest
from support import plain_client, reset
from support.listening import on_linux
from support.process_state import is_running
from support.running_programs import SECONDS
from support.scenes import table

pytestmark = on_linux

ANY = "--bind 127.0.0.1:0"


def shell(script):
    """The arguments that run a script of the shell."""
    return ["--", "sh", "-c", script]


def all_of(client):
    """What a client gets until the end."""
    got = b""
    while data := client.recv(65_536):
        got += data
    return got


def test_program_whose_terminal_is_the_client(command):
    """What the client says is its input, to the end; what it prints goes back, all of it."""
    with command("exec", ANY, "-- tr a-z A-Z") as program:
        for text in (b"hello\n", b"", b"x" * 3_000_000):
            with plain_client(program.address()) as client:
                sending = memoryview(text)
                client.setblocking(False)
                got = bytearray()
                until = time.monotonic() + SECONDS
                while True:
                    assert time.monotonic() < until
                    try:
                        if sending is not None:
                            sending = sending[client.send(sending) :]
                            if not sending:
                                client.shutdown(socket.SHUT_WR)
                                sending = None
                    except BlockingIOError:
                        pass
                    try:
                        data = client.recv(65_536)
                        if not data:
                            break
                        got += data
                    except BlockingIOError:
                        time.sleep(0.001)
                assert got == text.upper()
        program.stops()


def test_many_at_once(command):
    """Each client has a program of its own, as many as there are slots."""
    with command("exec", ANY, "--limit-requests 3", "-- cat") as program:
        clients = [plain_client(program.address()) for _ in range(4)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        assert [client.recv(1) for client in clients[:3]] == [b"0", b"1", b"2"]
        clients[3].settimeout(0.2)
        with pytest.raises(TimeoutError):
            clients[3].recv(1)
        clients[0].close()
        clients[3].settimeout(10)
        assert clients[3].recv(1) == b"3"
        for client in clients:
            client.close()
        program.stops()


def test_environment(command):
    """Who the client is stands there; what is the server's own does not."""
    script = 'echo "$PROTO $TCPREMOTEIP:$TCPREMOTEPORT $TCPLOCALIP:$TCPLOCALPORT $NOTIFY_SOCKET."'
    with command("exec", ANY, shell(script), NOTIFY_SOCKET="/nowhere") as program:
        address = program.address()
        with plain_client(address) as client:
            host, port = client.getsockname()
            told = f"TCP {host}:{port} {address[0]}:{address[1]} .\n"
            assert all_of(client).decode() == told
        program.stops()


def test_environment_on_a_path(command):
    """On a Unix socket, it is the user."""
    script = 'echo "$PROTO $IPCREMOTEEUID $IPCREMOTEEGID $IPCLOCALPATH"'
    with command("exec -b unix:socket", shell(script)) as program:
        program.says("ready on unix:socket")
        with plain_client("socket") as client:
            assert all_of(client).decode() == f"IPC {os.getuid()} {os.getgid()} socket\n"
        program.stops()


def test_descriptors(command):
    """It has the three that every program has, and none of the server's."""
    with command("exec", ANY, "--health unix:checks", shell("ls /proc/self/fd")) as program:
        with plain_client(program.address()) as client:
            assert all_of(client).split() == [b"0", b"1", b"2", b"3"]  # the last one is of ls
        program.stops()


def test_errors_go_to_the_log(command):
    """Line by line, whatever is in them; a long one in pieces."""
    script = r"printf 'one\ntwo \033[31m\n' >&2; head -c 9000 /dev/zero | tr '\0' x >&2; echo done"
    with command("exec", ANY, shell(script)) as program:
        with plain_client(program.address()) as client:
            assert all_of(client) == b"done\n"
        program.says(r"INFO request 1 from 127.0.0.1:\d+: 'one'$")
        program.says(r"INFO request 1 from 127.0.0.1:\d+: 'two \\x1b\[31m'$")
        program.says(r"'x{4096}'$", times=2)
        program.says(r"'x{808}'$")
        program.stops()


@table(
    ("script", "why"),
    {
        "by its status": ("echo bye; exit 3", "sh has ended with status 3"),
        "by a signal": ("echo bye; kill -9 $$", "sh has ended by signal 9"),
    },
)
def test_program_that_fails(script, why, command):
    """The log says how; what it had said before has arrived."""
    with command("exec", ANY, shell(script)) as program:
        with plain_client(program.address()) as client:
            assert all_of(client) == b"bye\n"
        program.says(f"WARNING request 1 from .*: {why}")
        program.stops()
    assert not any("Traceback" in line for line in program.said)


def test_program_that_is_gone(command, tmp_path):
    """It was there when the server began, and is not any more: that client's business."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho here\n")
    script.chmod(0o755)
    with command("exec", ANY, ["--", str(script)]) as program:
        with plain_client(program.address()) as client:
            assert all_of(client) == b"here\n"
        script.unlink()
        with plain_client(program.address()) as client:
            assert all_of(client) == b""
        program.says("cannot start .*script: No such file or directory")
        program.stops()


# How it is ended --------------------------------------------------------------------


def family(*words):
    """A program with a child, which says the numbers of both."""
    before = "trap '' TERM; " if "stubborn" in words else ""
    after = "" if "ends" in words else "; wait"
    return shell(f'{before}sleep 600 <&- >&- 2>&- & echo "$$ $!"{after}')


def members_of(client):
    """The processes of such a program."""
    return [int(pid) for pid in client.makefile("rb").readline().split()]


def goes(client, act):
    """The client resets, or says nothing any more."""
    if act == "resets":
        reset(client)


@table(
    ("options", "words", "act"),
    {
        "the client has gone": ("", (), "resets"),
        "nobody said anything": ("--timeout-idle 1s", (), "stays"),
        "its time is over": ("--timeout-request 1s", (), "stays"),
        "the grace is over": ("--grace 100ms", (), "drain"),
        "it heeds no order": ("--timeout-request 1s --timeout-cleanup 300ms", ("stubborn",), ""),
        "it has ended, and has left a child": ("", ("ends",), "stays"),
    },
)
def test_ended_with_all_that_it_has_started(options, words, act, command):
    """SIGTERM, and SIGKILL when `--timeout-cleanup` is over, go to its whole group."""
    with command("exec", ANY, options, family(*words)) as program:
        with plain_client(program.address()) as client:
            pids = members_of(client)
            assert len(pids) == 2
            goes(client, act)
            if act == "drain":
                program.order("SIGTERM")
            until = time.monotonic() + SECONDS / 2
            while any(map(is_running, pids)):
                assert time.monotonic() < until
                time.sleep(0.01)
        if act != "drain":
            program.order("SIGTERM")
        program.ends()
    assert not any("Traceback" in line for line in program.said)


def test_silence_is_told(command):
    """The log says what it was that ended it."""
    with command("exec", ANY, "--timeout-idle 300ms", "-- cat") as program:
        with plain_client(program.address()) as client:
            assert all_of(client) == b""
        program.says(r"timed_out \(no byte from either side for 0.3 s \(idle\)\)")
        program.stops()


def test_silence_is_that_of_both(command):
    """A program that says something now and then is not ended for a client that does not."""
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done"
    with command("exec", ANY, "--timeout-idle 700ms", shell(script)) as program:
        with plain_client(program.address()) as client:
            assert all_of(client) == b"1\n2\n3\n4\n5\n6\n"
        program.stops()


def test_second_signal(command):
    """It cuts everybody, and nothing is left."""
    with command("exec", ANY, "--grace 1h", family()) as program:
        with plain_client(program.address()) as client:
            pids = members_of(client)
            program.order("SIGTERM")
            program.says("the program drains")
            program.order("SIGTERM")
            program.ends(128 + signal.SIGTERM)
        assert not any(map(is_running, pids))
