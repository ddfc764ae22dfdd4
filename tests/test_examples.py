"""The examples: each one runs by itself, and is talked to over real sockets."""

from __future__ import annotations

import importlib.util
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from support import Witness, read_to_end

import trioserver
from trioserver.testing import MemoryMixIn

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def example(name: str) -> ModuleType:
    """An example, imported."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Client:
    """The other end, with a bound on every wait."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream

    async def says(self, line: bytes) -> None:
        with trio.fail_after(10):
            await self.stream.send_all(line)

    async def hears(self, expected: bytes) -> None:
        """Receives just that."""
        heard = b""
        with trio.fail_after(10):
            while len(heard) < len(expected):
                portion = await self.stream.receive_some(len(expected) - len(heard))
                if not portion:
                    break
                heard += portion
        assert heard == expected

    async def hears_the_end(self) -> None:
        assert await self.hears_all() == b""

    async def hears_all(self) -> bytes:
        """Receives to the end, and leaves."""
        with trio.fail_after(10):
            heard = await read_to_end(self.stream)
        await self.stream.aclose()
        return heard


Connect = Callable[[trioserver.TCPServer], Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects clients to the bound port of this machine, and closes them after the test."""
    clients = []

    async def connect_one(server: trioserver.TCPServer) -> Client:
        with trio.fail_after(10):
            stream = await trio.open_tcp_stream("127.0.0.1", server.server_address[1])
        clients.append(Client(stream))
        return clients[-1]

    yield connect_one
    for client in clients:
        await client.stream.aclose()


async def ending(server: trioserver.TCPServer) -> trioserver.ShutdownReport:
    """The report of a server that ends."""
    with trio.fail_after(10):
        return await server.wait_closed()


@asynccontextmanager
async def running_to_its_end() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks have to end by themselves."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            yield nursery


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for that of a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_every_example_is_tested() -> None:
    """Each file in examples/ has at least one test that is named for it."""
    tests = [name for name in globals() if name.startswith("test_")]
    assert NAMES
    assert [name for name in NAMES if not any(t.startswith(f"test_{name}_") for t in tests)] == []


# As programs --------------------------------------------------------------------


@asynccontextmanager
async def program(name: str, *arguments: str) -> AsyncIterator[trio.Process]:
    """An example, run as its docstring says; killed at the end if it is still there."""
    command = [sys.executable, "-X", "dev", str(EXAMPLES / f"{name}.py"), *arguments]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        with trio.fail_after(20):
            yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            await stream.aclose()


async def listening(process: trio.Process) -> str:
    """The first address that a program says it listens on."""
    assert process.stderr is not None
    said = ""
    while (found := re.search(r"listening on ([^,\s]+)[,\n]", said)) is None:
        portion = await process.stderr.receive_some()
        assert portion, f"it ended and said {said!r}"
        said += portion.decode()
    return found[1]


async def interrupted(process: trio.Process) -> tuple[int, str, str]:
    """What becomes of a program at Ctrl-C: its status, what it printed, what it logged after it."""
    assert process.stdout is not None
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    printed, logged = await read_to_end(process.stdout), await read_to_end(process.stderr)
    return await process.wait(), printed.decode(), logged.decode()


async def output(name: str, *arguments: str) -> str:
    """What an example prints that ends by itself."""
    with trio.fail_after(20):
        done = await trio.run_process(
            [sys.executable, "-X", "dev", str(EXAMPLES / f"{name}.py"), *arguments],
            capture_stdout=True,
        )
    return done.stdout.decode()


PROGRAMS = {
    "access_control": ["0", "127.0.0.0/8"],
    "chat": ["0"],
    "classic_tcp": ["0"],
    "function_handler": ["0", "good morning"],
    "handle_request_loop": ["0"],
    "line_protocol": ["0"],
    "two_servers": ["0", "0"],
}


@pytest.mark.parametrize("name", PROGRAMS)
async def test_example_runs_as_a_program(name: str) -> None:
    """Each server takes its port from the command line, says where it is, and ends at Ctrl-C."""
    async with program(name, *PROGRAMS[name]) as process:
        host, _, port = (await listening(process)).rpartition(":")
        assert host in {"127.0.0.1", "0.0.0.0"}
        assert port not in {"0", "9999", "9998"}
        status, _, logged = await interrupted(process)
    assert status == 0
    assert "Traceback" not in logged


def test_every_server_runs_as_a_program() -> None:
    """Of the examples, only these two are run in tests of their own instead."""
    assert set(NAMES) - set(PROGRAMS) == {"classic_tcp_client", "unix_server"}


# The classic pair ---------------------------------------------------------------

SERVER_PRINTS = """\
127.0.0.1 wrote:
b'hello world with TCP'
127.0.0.1 wrote:
b'python is nice'
"""

CLIENT_PRINTS = """\
Sent: hello world with TCP
Received: HELLO WORLD WITH TCP
Sent: python is nice
Received: PYTHON IS NICE
"""


@pytest.mark.parametrize("variant", ["recv", "line"])
async def test_classic_tcp_and_its_client_print_what_they_always_did(variant: str) -> None:
    """The two of them, as two programs, print the classic text in both variants."""
    async with program("classic_tcp", "0", "--variant", variant) as server:
        port = (await listening(server)).rpartition(":")[2]
        first = await output("classic_tcp_client", "--port", port, "hello", "world", "with", "TCP")
        second = await output("classic_tcp_client", "--port", port, "python", "is", "nice")
        status, printed, _ = await interrupted(server)
    assert first + second == CLIENT_PRINTS
    assert (status, printed) == (0, SERVER_PRINTS)


async def test_classic_tcp_line_takes_several_receives(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str], connect: Connect
) -> None:
    """The variant with rfile waits for the end of the line, however it comes."""
    client = await connect(await nursery.start(example("classic_tcp").main, 0, "line"))
    for byte in b"hello world with TCP\n":
        await client.says(bytes([byte]))
    await client.hears(b"HELLO WORLD WITH TCP")
    await client.hears_the_end()
    assert capsys.readouterr().out == "127.0.0.1 wrote:\nb'hello world with TCP'\n"


async def test_classic_tcp_recv_takes_what_one_send_brought(
    nursery: trio.Nursery, connect: Connect
) -> None:
    """The variant with recv needs no end of line, and takes the first portion as it comes."""
    client = await connect(await nursery.start(example("classic_tcp").main, 0))
    await client.says(b"  hello")
    await client.hears(b"HELLO")
    await client.hears_the_end()


async def test_classic_tcp_client_needs_a_word() -> None:
    """Without words the client shows how it is used."""
    async with program("classic_tcp_client") as process:
        assert process.stderr is not None
        assert (await read_to_end(process.stderr)).startswith(b"usage:")
        assert await process.wait() == 2


# A request at a time ------------------------------------------------------------


async def test_handle_request_loop_ends_when_told(
    capsys: pytest.CaptureFixture[str], connect: Connect
) -> None:
    """The loop serves one client after the other, and ends after the one that says stop."""
    async with running_to_its_end() as nursery:
        server = await nursery.start(example("handle_request_loop").main, 0)
        for word in (b"hello", b"again", b"stop"):
            client = await connect(server)
            await client.says(word + b"\n")
            await client.hears(word.upper() + b"\n")
            await client.hears_the_end()
    assert capsys.readouterr().out == "1 requests so far\n2 requests so far\n3 requests so far\n"


async def test_handle_request_loop_tells_when_nobody_comes(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every five seconds without a client are told, and the loop goes on."""
    await nursery.start(example("handle_request_loop").main, 0)
    await trio.sleep(12)
    line = "nobody came for 5 seconds\n0 requests so far\n"
    assert capsys.readouterr().out == 2 * line


# Unix ---------------------------------------------------------------------------


async def test_unix_server_answers_its_user_alone(
    nursery: trio.Nursery, short_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ask` gets its answer over a socket that nobody else may open."""
    module, path = example("unix_server"), short_folder / "upper.sock"
    await nursery.start(module.main, str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with trio.fail_after(10):
        assert await trio.to_thread.run_sync(module.ask, str(path), "hello there") == "HELLO THERE"
    assert re.fullmatch(r"user (\d+|unknown) is here\n", capsys.readouterr().out)


async def test_unix_server_runs_as_two_programs(short_folder: Path) -> None:
    """One serves, the other one asks; at Ctrl-C the socket file is gone."""
    path = short_folder / "upper.sock"
    async with program("unix_server", str(path)) as server:
        assert await listening(server) == f"unix:{path}"
        assert await output("unix_server", str(path), "hello", "there") == "HELLO THERE\n"
        status, _, _ = await interrupted(server)
    assert status == 0
    assert not path.exists()


# Lines --------------------------------------------------------------------------

HELLO = b"hello: ADD number, TOTAL or QUIT\n"


async def test_line_protocol_takes_many_commands(nursery: trio.Nursery, connect: Connect) -> None:
    """Commands on one connection share a total, wrong ones are told, QUIT says goodbye."""
    client = await connect(await nursery.start(example("line_protocol").main, 0))
    await client.hears(HELLO)
    await client.says(b"ADD 40\nadd 2\n\nADD two\nADD 1 2\nADD 12345678901\nTOTAL\nQUIT\nTOTAL\n")
    await client.hears(b"ok\nok\nwhat?\nwhat?\nwhat?\nwhat?\n42\ngoodbye\n")
    await client.hears_the_end()


async def test_line_protocol_says_goodbye_at_the_end_of_input(
    nursery: trio.Nursery, connect: Connect
) -> None:
    """A client that ends its input is told goodbye, too."""
    client = await connect(await nursery.start(example("line_protocol").main, 0))
    await client.stream.send_eof()
    await client.hears(HELLO + b"goodbye\n")
    await client.hears_the_end()


async def test_line_protocol_says_goodbye_when_it_drains(
    nursery: trio.Nursery, connect: Connect
) -> None:
    """An idle client hears why it ends; one in the middle of a command gets its answer before."""
    server = await nursery.start(example("line_protocol").main, 0)
    idle, busy = await connect(server), await connect(server)
    for client in (idle, busy):
        await client.says(b"ADD 1\n")
        await client.hears(HELLO + b"ok\n")
    await busy.says(b"TOT")
    server.shutdown(grace=5)
    await idle.hears(b"goodbye, the server is closing\n")
    await idle.hears_the_end()
    await busy.says(b"AL\n")
    await busy.hears(b"1\ngoodbye, the server is closing\n")
    await busy.hears_the_end()
    report = await ending(server)
    assert report.clean
    assert len(report.drained) == 2


# Chat ---------------------------------------------------------------------------

CLOSES = b"* the room closes, goodbye\n"


async def test_chat_tells_everybody(nursery: trio.Nursery, connect: Connect) -> None:
    """What one says, all hear, and those who stay do not notice who leaves."""
    server = await nursery.start(example("chat").main, 0)
    ann = await connect(server)
    await ann.says(b"first\n")
    await ann.hears(b"guest 1: first\n")
    bob = await connect(server)
    await bob.says(b"second\n")
    for client in (ann, bob):
        await client.hears(b"guest 2: second\n")
    await ann.says(b"last words")
    await ann.stream.send_eof()
    assert await ann.hears_all() == b"guest 1: last words\n"
    await bob.hears(b"guest 1: last words\n")
    await bob.says(b"alone\n")
    await bob.hears(b"guest 2: alone\n")


async def test_chat_drains(nursery: trio.Nursery, connect: Connect) -> None:
    """Those who wait for others hear goodbye; a line that has begun is still told to its end."""
    server = await nursery.start(example("chat").main, 0)
    ann = await connect(server)
    await ann.says(b"hi\n")
    await ann.hears(b"guest 1: hi\n")
    bob = await connect(server)
    await bob.says(b"hello\n")
    for client in (ann, bob):
        await client.hears(b"guest 2: hello\n")
    await ann.says(b"I was just ")
    server.shutdown(grace=5)
    await bob.hears(CLOSES)
    await bob.hears_the_end()
    await ann.says(b"leaving\n")
    await ann.hears(b"guest 1: I was just leaving\n" + CLOSES)
    await ann.hears_the_end()
    report = await ending(server)
    assert report.clean
    assert len(report.drained) == 2


async def test_chat_drops_who_is_slow(autojump_clock: trio.testing.MockClock) -> None:
    """One who does not listen is dropped when its inbox is full; nobody waits for it."""
    chat, witness = example("chat"), Witness()

    class RoomInMemory(MemoryMixIn, chat.Room):
        memory_capacity = 32

    room = RoomInMemory(("memory", 1), chat.Member, observers=[witness])
    async with room.serving():
        slow, loud = await room.connect(), await room.connect()
        await slow.send_all(b"I talk, and I do not listen\n")
        await Client(loud).hears(b"guest 1: I talk, and I do not listen\n")
        began = trio.current_time()
        for number in range(50):
            await loud.send_all(b"line %02d\n" % number)
            await Client(loud).hears(b"guest 2: line %02d\n" % number)
            assert trio.current_time() - began == pytest.approx(number * 0.05)
        assert room.members == {member for member in room.members if member.info.id == 2}
    (dropped,) = [record for record in witness.records if record.info.id == 1]
    assert (dropped.outcome, dropped.reason) == ("cancelled", "too slow for this room")


# The others ---------------------------------------------------------------------


async def test_function_handler_greets_and_answers(nursery: trio.Nursery, connect: Connect) -> None:
    """The function knows its greeting, its client and its server, and answers until the end."""
    server = await nursery.start(example("function_handler").main, 0)
    for number in (1, 2):
        client = await connect(server)
        await client.hears(b"hello, number %d from 127.0.0.1\n" % number)
        for word in (b"one", b"two"):
            await client.says(word)
            await client.hears(word.upper())
        await client.stream.send_eof()
        await client.hears_the_end()


async def test_function_handler_drains(nursery: trio.Nursery, connect: Connect) -> None:
    """Its wait between two messages ends when the server drains."""
    server = await nursery.start(example("function_handler").main, 0)
    client = await connect(server)
    await client.says(b"hi")
    await client.hears(b"hello, number 1 from 127.0.0.1\nHI")
    server.shutdown(grace=5)
    await client.hears_the_end()
    report = await ending(server)
    assert [record.outcome for record in report.requests] == ["drained"]


async def test_two_servers_end_together(connect: Connect) -> None:
    """One tells of the work; told to stop, the other one ends both, and the program."""
    async with running_to_its_end() as nursery:
        public, admin = await nursery.start(example("two_servers").main, 0, 0)
        visitor, boss = await connect(public), await connect(admin)
        assert re.fullmatch(rb"\d+ pieces are done\n", await visitor.hears_all())
        await boss.says(b"what?\nstop\n")
        await boss.hears(b"stopping\n")
        await boss.hears_the_end()
        for server in (public, admin):
            assert (await ending(server)).clean


async def test_two_servers_work_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    """The work is a task of its own, beside the servers."""
    work = example("two_servers").Work()
    with trio.move_on_after(1.05):
        await work.go_on()
    assert work.done == 10


@pytest.mark.parametrize(
    ("networks", "answer", "outcome"),
    [
        ([], b"HELLO\n", "completed"),
        ([["127.0.0.1/32"]], b"HELLO\n", "completed"),
        ([["10.0.0.0/8", "127.0.0.0/24"]], b"HELLO\n", "completed"),
        ([["10.0.0.0/8", "::/0"]], b"", "refused"),
    ],
)
async def test_access_control_serves_its_networks(
    networks: list[Any], answer: bytes, outcome: str, nursery: trio.Nursery, connect: Connect
) -> None:
    """A client of an allowed network is served; any other is refused before the handler."""
    server = await nursery.start(example("access_control").main, 0, *networks)
    client = await connect(server)
    await client.says(b"hello\n")
    await client.stream.send_eof()
    assert await client.hears_all() == answer
    assert server.statistics().outcomes[outcome] == 1
