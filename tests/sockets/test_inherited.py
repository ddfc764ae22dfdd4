"""Sockets that a service manager passes to a program, which finds them by name, each once."""

import ast
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
import trio
from support.listening import asked, on_linux
from support.running_programs import passing
from support.scenes import table

from trioserver._sockets.inherited import passed_to_us

pytestmark = on_linux


def program_with(files, names, source, **environment):
    """What a program prints, as a value, to which these open files are passed."""
    environment = {"LISTEN_FDS": str(len(files)), **environment}
    if names is not None:
        environment["LISTEN_FDNAMES"] = names
    numbers = [file.fileno() for file in files]
    program = [sys.executable, "-c", f"import os, trioserver\n{source}"]
    command = passing(numbers, program, environment)
    done = subprocess.run(command, pass_fds=numbers, stdout=subprocess.PIPE, check=True, timeout=20)
    return ast.literal_eval(done.stdout.decode())


@pytest.fixture
def listening():
    """Three sockets that listen, and their addresses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        yield sockets, [sock.getsockname() for sock in sockets]


TAKES = """
def take(*names):
    return [it.getsockname() for it in trioserver.inherited_sockets(*names)]
"""


def test_each_is_taken_once(listening):
    """By name, in the order in which they were passed; then the rest; and then there are none."""
    sockets, (first, second, third) = listening
    told = f"{TAKES}print([take('web'), take('web'), take('other'), take(), take()])"
    taken = program_with(sockets, "web:admin:web", told)
    assert taken == [[first, third], [], [], [second], []]


def test_without_names(listening):
    """They have the name that the C library gives them, and are the rest."""
    sockets, addresses = listening
    told = f"{TAKES}print([take('unknown'), take()])"
    assert program_with(sockets, None, told) == [addresses, []]


def test_children_know_nothing_of_them(listening):
    """Neither the variables nor the descriptors reach a program that this one starts."""
    sockets, _ = listening
    told = """
sockets = trioserver.inherited_sockets('web')
variables = [name for name in os.environ if name.startswith('LISTEN_')]
print([variables, [os.get_inheritable(number) for number in (3, 4, 5)]])
"""
    assert program_with(sockets, "web:web:other", told) == [[], [False] * 3]


def test_those_of_another_process(listening):
    """Variables that were meant for a parent are not believed, and not passed on either."""
    told = f"{TAKES}print([take(), 'LISTEN_FDS' in os.environ])"
    assert program_with(listening[0], "a:b:c", told, LISTEN_PID="1") == [[], False]


def test_something_that_is_no_socket(listening):
    """Who asks for it is told; the others can still be had by their names."""
    sockets, (first, *_) = listening
    told = f"""{TAKES}
try:
    take()
except ValueError as error:
    print([str(error), take('web')])
"""
    with open(os.devnull) as nothing:  # noqa: PTH123  (for its descriptor)
        message, taken = program_with([sockets[0], nothing], "web:log", told)
    assert message.startswith("descriptor 4 ('log') was passed to this program; an open socket")
    assert taken == [first]


OURS = {"LISTEN_PID": str(os.getpid())}


@table(
    ("environment", "message"),
    {
        "a number that is none": ({"LISTEN_FDS": "two"}, "LISTEN_FDS is 'two'; a whole number"),
        "a negative one": ({"LISTEN_FDS": "-1"}, "LISTEN_FDS is '-1'; a whole number"),
        "a process that is none": ({"LISTEN_PID": ""}, "LISTEN_PID is ''; a whole number"),
        "an identity that is none": ({"LISTEN_PIDFDID": "x"}, "LISTEN_PIDFDID is 'x'; a whole"),
        "another number of names": (
            {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web"},
            "LISTEN_FDNAMES is 'web', so 1 names; 2 were expected",
        ),
        "a descriptor that is not open": (
            {"LISTEN_FDS": "1000"},
            r"descriptor \d+ \('unknown'\) was passed to this program; an open socket",
        ),
    },
)
def test_variables_that_make_no_sense(environment, message):
    """They are named, with what was expected, and left as they are."""
    environment = {"LISTEN_FDS": "0", **OURS, **environment}
    before = dict(environment)
    with pytest.raises(ValueError, match=message):
        passed_to_us(environment)
    assert environment == before


@table(
    ("identity", "count"),
    {"its own": ("{identity}", 3), "that of an earlier process of its number": ("{identity}0", 0)},
)
def test_identity_of_the_process(identity, count, listening):
    """Where the service manager tells the kernel's own identity of a process, that counts."""
    told = "print(len(trioserver.inherited_sockets()))"
    assert program_with(listening[0], None, told, LISTEN_PIDFDID=identity) == count


SERVED = """
import trioserver

async def handle(request, client_address, server):
    await request.sendall((await request.recv(100)).upper())
    server.shutdown()

(report,) = trioserver.run(
    trioserver.UnixStreamServer(trioserver.inherited_sockets("web") or "none", handle)
)
"""


async def test_by_a_real_service_manager(tmp_path):
    """``systemd-socket-activate`` listens, and for a client starts the program with its socket."""
    if shutil.which("systemd-socket-activate") is None:
        message = "systemd-socket-activate is not installed: apt-get install systemd"
        pytest.fail(message) if "CI" in os.environ else pytest.skip(message)
    path = str(tmp_path / "socket")
    environment = [f"-E{name}" for name in ("PATH", "PYTHONPATH") if name in os.environ]
    command = ["systemd-socket-activate", *environment, "-l", path, "--fdname=web"]
    process = await trio.lowlevel.open_process([*command, sys.executable, "-c", SERVED])
    try:
        with trio.fail_after(20):
            while not os.path.lexists(path):  # noqa: ASYNC110, ASYNC240
                await trio.sleep(0.01)
            assert await asked(path) == b"ASKED\n"
            assert await process.wait() == 0
    finally:
        process.kill()
