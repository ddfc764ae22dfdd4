"""The examples: each one runs by itself, and is talked to over real sockets."""

import http.client
import itertools
import logging
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from logging.handlers import SysLogHandler
from wsgiref.validate import validator

import pytest
import trio
from support import Witness, read_to_end, until
from support.pages import EXAMPLES, example
from support.programs import Client, interrupted, listening, output, printed_lines, program

import trioserver
from trioserver.testing import MemoryDatagramServer, MemoryMixIn

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


Connect = Callable[[trioserver.TCPServer], Awaitable[Client]]


@pytest.fixture
async def connect():
    """Connects clients to the bound port of this machine, and closes them after the test."""
    clients = []

    async def connect_one(server):
        with trio.fail_after(10):
            stream = await trio.open_tcp_stream("127.0.0.1", server.server_address[1])
        clients.append(Client(stream))
        return clients[-1]

    yield connect_one
    for client in clients:
        await client.stream.aclose()


@asynccontextmanager
async def datagram_client(server):
    """A UDP socket that sends to the bound port of this machine, with a bound on its waits."""
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
        await client.connect(("127.0.0.1", server.server_address[1]))
        with trio.fail_after(10):
            yield client


async def ending(server):
    """The report of a server that ends."""
    with trio.fail_after(10):
        return await server.wait_closed()


@asynccontextmanager
async def running_to_its_end():
    """A nursery whose tasks have to end by themselves."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            yield nursery


def test_every_example_is_tested():
    """Each file in examples/ has at least one test that is named for it, or that names it."""
    names = [name for name in globals() if name.startswith("test_")]
    named = {"classic_tcp_client", "classic_udp_client"}  # below, with their servers
    assert NAMES
    assert {
        name for name in NAMES if not any(t.startswith(f"test_{name}_") for t in names)
    } == named


# The suite ----------------------------------------------------------------------


@pytest.mark.slow
def test_testing_suite(tmp_path):
    """What a reader copies into a folder of his own passes there, every file of it."""
    suite = shutil.copytree(EXAMPLES / "testing", tmp_path / "suite")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "suite"]
    finished = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    told = finished.stdout
    assert finished.returncode == 0, told
    assert "19 passed" in told.splitlines()[-1]
    shown = (suite / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in suite.iterdir() if path.is_file()} - {"README.md"}
    assert files == set(re.findall(r"^\| `(\S+)` \|", shown, re.MULTILINE))


# As programs --------------------------------------------------------------------


OTHERS = {"classic_tcp_client", "classic_udp_client", "unix_server"}
OTHERS |= {"forking_tcp_server", "threaded_tcp_server"}
ARGUMENTS = {
    "access_control": ["0", "127.0.0.0/8"],
    "function_handler": ["0", "good morning"],
    "two_servers": ["0", "0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NAMES} - OTHERS))
async def test_example_runs_as_a_program(name):
    """Each server takes its port from the command line, says where it is, and ends at Ctrl-C.

    The five others are run in tests of their own.
    """
    async with program(name, *ARGUMENTS.get(name, ["0"])) as process:
        host, _, port = (await listening(process)).rpartition(":")
        assert host in {"127.0.0.1", "0.0.0.0"}
        assert port not in {"0", "9999", "9998", "9123", "9514"}
        status, _, logged = await interrupted(process)
    assert status == 0
    assert "Traceback" not in logged


# The classic pairs --------------------------------------------------------------

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


@pytest.mark.parametrize(
    "command",
    [
        ["classic_tcp", "0", "--variant", "recv"],
        ["classic_tcp", "0", "--variant", "line"],
        ["classic_udp", "0"],
    ],
)
async def test_classic_pairs_print_what_they_always_did(command):
    """Server and client, as two programs, print the classic text, over UDP just that of TCP."""
    async with program(*command) as server:
        port = (await listening(server)).rpartition(":")[2]
        client = f"{command[0]}_client", "--port", port
        first = await output(*client, "hello", "world", "with", "TCP")
        second = await output(*client, "python", "is", "nice")
        status, printed, _ = await interrupted(server)
    assert first + second == CLIENT_PRINTS
    assert (status, printed) == (0, SERVER_PRINTS)


async def test_classic_tcp_line_takes_several_receives(nursery, capsys, connect):
    """The variant with rfile waits for the end of the line, however it comes."""
    client = await connect(await nursery.start(example("classic_tcp").main, 0, "line"))
    for byte in b"hello world with TCP\n":
        await client.says(bytes([byte]))
    assert await client.hears_all() == b"HELLO WORLD WITH TCP"
    assert capsys.readouterr().out == "127.0.0.1 wrote:\nb'hello world with TCP'\n"


async def test_classic_tcp_recv_takes_what_one_send_brought(nursery, connect):
    """The variant with recv needs no end of line, and takes the first portion as it comes."""
    client = await connect(await nursery.start(example("classic_tcp").main, 0))
    await client.says(b"  hello")
    assert await client.hears_all() == b"HELLO"


async def test_classic_udp_answers_each_datagram(nursery, capsys):
    """A datagram needs no end of line, and has one reply."""
    server = await nursery.start(example("classic_udp").main, 0)
    async with datagram_client(server) as client:
        for word in (b"  hello", b"again\n"):
            await client.send(word)
            assert await client.recv(1024) == word.strip().upper()
    assert capsys.readouterr().out == ("127.0.0.1 wrote:\nb'hello'\n127.0.0.1 wrote:\nb'again'\n")


@pytest.mark.parametrize("client", ["classic_tcp_client", "classic_udp_client"])
async def test_client_needs_a_word(client):
    """Without words a client shows how it is used."""
    async with program(client) as process:
        assert process.stderr is not None
        assert (await read_to_end(process.stderr)).startswith(b"usage:")
        assert await process.wait() == 2


# In threads -----------------------------------------------------------------------

THREADED_PRINTS = """\
Server loop running in thread: Thread-1
Received: Thread-2: Hello World 1
Received: Thread-3: Hello World 2
Received: Thread-4: Hello World 3
"""


async def test_threaded_tcp_server_prints_what_it_always_did():
    """The text is the classic one, but for the names of threads: each bears that of its request."""
    printed = await output("threaded_tcp_server", "0")
    printed = printed.replace("thread: MainThread\n", "thread: Thread-1\n")
    printed = re.sub(
        r"request (\d+) from 127\.0\.0\.1:\d+:", lambda it: f"Thread-{int(it[1]) + 1}:", printed
    )
    assert printed == THREADED_PRINTS


@asynccontextmanager
async def http_client(
    server,
):
    """Asks for pages over one connection, which it keeps as long as the server lets it."""
    client = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)

    def ask_now(path, method, body):
        client.request(method, path, body)
        answer = client.getresponse()
        return answer.status, answer.read()

    async def ask(path, method="GET", body=None):
        return await trio.to_thread.run_sync(ask_now, path, method, body)

    try:
        with trio.fail_after(20):
            yield ask
    finally:
        client.close()


@pytest.mark.slow
async def test_http_files_serves_a_folder(nursery, tmp_path):
    """Many files come over one connection, which is idle in the end, and does not delay a drain.

    What is not in the folder is not found, be it beside it.
    """
    folder = tmp_path / "inside" / "a folder"
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (folder / "text.txt").write_bytes(b"hello " * 100_000)
    server = await nursery.start(example("http_files").main, 0, str(tmp_path / "inside"))
    for path in ("/nothing", "/../secret", "/..%2fsecret"):
        async with http_client(server) as ask:
            assert (await ask(path))[0] == 404
    async with http_client(server) as ask:
        for _ in range(3):
            assert await ask("/a%20folder/text.txt") == (200, b"hello " * 100_000)
        status, listing = await ask("/")
        assert status == 200
        assert b"a folder/" in listing
        assert server.statistics().accepted == 3 + 1
        server.shutdown(grace=20)
        report = await ending(server)
        assert [str(record.outcome) for record in report.requests] == ["drained"]


async def test_wsgi_app_serves_any_application(nursery):
    """Its own says who asks for what; another keeps to the letter of WSGI, reads, has threads."""
    server = await nursery.start(example("wsgi_app").main, 0)
    async with http_client(server) as ask:
        assert await ask("/some/page?x=1") == (200, b"Hello, 127.0.0.1: this is /some/page\n")

    def reverse(environ, start_response):
        assert environ["wsgi.multithread"] is True
        assert environ["SERVER_PORT"] == str(server.server_address[1])
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body[::-1]]

    server = example("wsgi_app").make_server(0, validator(reverse))
    await nursery.start(server.serve_forever)
    async with http_client(server) as ask:
        assert await ask("/", "POST", b"hello") == (200, b"olleh")


async def test_xmlrpc_server_is_called(nursery):
    """Calls have results, wrong ones a fault, and many at once are all counted."""
    server = await nursery.start(example("xmlrpc_server").main, 0)
    url = f"http://127.0.0.1:{server.server_address[1]}"

    def call(name, *arguments):
        with xmlrpc.client.ServerProxy(url) as proxy:
            return getattr(proxy, name)(*arguments)

    counts = []

    async def count():
        counts.append(await trio.to_thread.run_sync(call, "count"))

    with trio.fail_after(20):
        assert await trio.to_thread.run_sync(call, "add", 40, 2) == 42
        names = await trio.to_thread.run_sync(call, "system.listMethods")
        assert {"add", "count"} < set(names)
        with pytest.raises(xmlrpc.client.Fault, match="TypeError"):
            await trio.to_thread.run_sync(call, "add", 40)
        async with trio.open_nursery() as callers:
            for _ in range(30):
                callers.start_soon(count)
    assert sorted(counts) == list(range(1, 31))


async def test_adopt_existing_is_a_part_of_a_program(nursery):
    """Started in a nursery it gives the object, which serves, and ends by its own shutdown."""
    server = await nursery.start(example("adopt_existing").main, 0)
    async with http_client(server) as ask:
        for number in (1, 2, 3):
            assert await ask("/") == (200, b"visit number %d\n" % number)
        server.shutdown()
        await until(lambda: server.fileno() == -1)


@pytest.mark.slow
async def test_adopt_existing_drains_at_ctrl_c():
    """As a program, Ctrl-C ends an idle client at once, and prints who was there."""
    async with program("adopt_existing", "0") as process:
        port = int((await listening(process)).rpartition(":")[2])
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = b""
            while b"visit number 1\n" not in answer:
                answer += await stream.receive_some()
            status, printed, logged = await interrupted(process)
    assert status == 0
    assert re.match(r"shutdown\(\) was called: ended in .*, 1 drained, 0 unaccepted\n", printed)
    assert "Traceback" not in logged


# In worker processes ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="worker processes need POSIX")
async def test_forking_tcp_server_prints_what_it_always_did():
    """The text is the classic one, but for names: of processes, and workers are used again."""
    printed = await output("forking_tcp_server", "0")
    printed = printed.replace("process: MainProcess\n", "thread: Thread-1\n")
    number = itertools.count(2)
    printed = re.sub(
        r"(ForkServer|Spawn)Process-\d+:", lambda it: f"Thread-{next(number)}:", printed
    )
    assert printed == THREADED_PRINTS


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="worker processes need POSIX")
async def test_process_pool_counts_in_two_processes():
    """Two clients that are there at once are served by two workers, and both counts are right."""
    async with program("process_pool", "0") as server:
        port = int((await listening(server)).rpartition(":")[2])
        first, second = [Client(await trio.open_tcp_stream("127.0.0.1", port)) for _ in "12"]
        await second.says(b"1000\n")
        answers = [await second.hears_all()]  # the other one has had its worker all the time
        await first.says(b"100000\n")
        answers.append(await first.hears_all())
        status, _, _ = await interrupted(server)
    assert status == 0
    counts, processes = zip(*(re.findall(rb"\d+", answer) for answer in answers), strict=True)
    assert counts == (b"168", b"9592")
    assert len(set(processes)) == 2
    assert str(server.pid).encode() not in processes


# A request at a time ------------------------------------------------------------


async def test_handle_request_loop_ends_when_told(capsys, connect):
    """The loop serves one client after the other, and ends after the one that says stop."""
    async with running_to_its_end() as nursery:
        server = await nursery.start(example("handle_request_loop").main, 0)
        for word in (b"hello", b"again", b"stop"):
            client = await connect(server)
            await client.says(word + b"\n")
            assert await client.hears_all() == word.upper() + b"\n"
    assert capsys.readouterr().out == "1 requests so far\n2 requests so far\n3 requests so far\n"


async def test_handle_request_loop_tells_when_nobody_comes(
    nursery,
    autojump_clock,
    capsys,
):
    """Every five seconds without a client are told, and the loop goes on."""
    await nursery.start(example("handle_request_loop").main, 0)
    await trio.sleep(12)
    line = "nobody came for 5 seconds\n0 requests so far\n"
    assert capsys.readouterr().out == 2 * line


# The time -----------------------------------------------------------------------

SNTP = struct.Struct("!4B2I4s4Q")


def question(version=4, mode=3, asked_at=0x0123_4567_89AB_CDEF):
    """What an SNTP client sends: nothing but its version, its mode, and when it did so."""
    return bytes([version << 3 | mode, 0, 6, 0]) + bytes(36) + asked_at.to_bytes(8)


def since_1970(timestamp):
    """A time of NTP's as one of Python's."""
    return (timestamp >> 32) - 2_208_988_800 + (timestamp & 0xFFFF_FFFF) / 2**32


@pytest.mark.parametrize("version", [1, 2, 3, 4])
@pytest.mark.parametrize("extension", [b"", b"an authenticator"])
async def test_ntp_tells_the_time(version, extension, nursery):
    """The answer is of the client's version, repeats its time, and has that of this machine."""
    server = await nursery.start(example("ntp").main, 0)
    async with datagram_client(server) as client:
        before = time.time()
        await client.send(question(version) + extension)
        answer = await client.recv(1024)
        after = time.time()
    first, stratum, poll, _, delay, dispersion, clock, *times = SNTP.unpack(answer)
    assert (first >> 6, first >> 3 & 7, first & 7) == (0, version, 4)
    assert (stratum, poll, delay, dispersion, clock) == (1, 6, 0, 0, b"LOCL")
    reference, asked_at, received, sent = times
    assert asked_at == 0x0123_4567_89AB_CDEF
    a_moment = 0.001  # for the float's precision, and a system clock that is being adjusted
    assert before - a_moment <= since_1970(received) <= since_1970(sent) <= after + a_moment
    assert reference <= received


def test_ntp_counts_from_1900():
    """Its timestamps are those of RFC 5905's examples, and begin anew in 2036."""
    timestamp = example("ntp").timestamp
    assert timestamp(0) == 2_208_988_800 << 32
    assert timestamp(946_684_800.5) == (3_155_673_600 << 32) + (1 << 31)  # in the year 2000
    assert timestamp(2**32 - 2_208_988_800) == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        question()[:47],
        question(version=0),
        question(version=5),
        *(question(mode=mode) for mode in (0, 1, 2, 4, 5, 6, 7)),
    ],
)
async def test_ntp_ignores_the_rest(nonsense, nursery):
    """What is no question of a client has no reply: two such servers cannot talk to each other."""
    server = await nursery.start(example("ntp").main, 0)
    async with datagram_client(server) as client:
        await client.send(nonsense)
        await client.send(question())
        assert await client.recv(1024)
    server.shutdown(grace=5)
    counted = (await ending(server)).statistics
    assert (counted.outcomes["completed"], counted.bytes_sent) == (2, SNTP.size)


# Logs ---------------------------------------------------------------------------


def send_logs(address):
    """Log some messages as every Python program can."""
    handler = SysLogHandler(address, facility="local3")
    try:
        for level, message in (
            (logging.DEBUG, "looking for the door"),
            (logging.INFO, "the door is öffen"),
            (logging.WARNING, "it is cold\nand windy"),
            (logging.ERROR, "the door is stuck"),
            (logging.CRITICAL, "fire"),
        ):
            handler.emit(logging.LogRecord("house", level, __file__, 1, message, None, None))
    finally:
        handler.close()


LOGGED = [
    "local3.debug looking for the door",
    "local3.info the door is öffen",
    r"local3.warning it is cold\nand windy",
    "local3.err the door is stuck",
    "local3.crit fire",
]


@pytest.mark.parametrize("over", ["udp", "unix"])
async def test_syslog_receiver_prints_what_logging_sends(over, folder):
    """Messages of the standard library's handler come out in order, with names for their codes."""
    path = folder / "log"
    async with program("syslog_receiver", "0" if over == "udp" else str(path)) as receiver:
        where = await listening(receiver)
        port = where.rpartition(":")[2]
        address = ("127.0.0.1", int(port)) if over == "udp" else str(path)
        await trio.to_thread.run_sync(send_logs, address)
        assert await printed_lines(receiver, len(LOGGED)) == LOGGED
        status, printed, logged = await interrupted(receiver)
    assert (status, printed) == (0, "")
    assert "Traceback" not in logged
    assert not path.exists()


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"<34>Oct 11 22:14:15 mymachine su: no", "auth.crit Oct 11 22:14:15 mymachine su: no"),
        (b"<165>1 2003-10-11T22:14Z - - - no", "local4.notice 1 2003-10-11T22:14Z - - - no"),
        (b"<0>kernel", "kern.emerg kernel"),
        (b"<191>the last", "local7.debug the last"),
        (b"<192>one more", "user.notice <192>one more"),
        (b"<0191>four digits", "user.notice <0191>four digits"),
        (b"no priority", "user.notice no priority"),
        (b"", "user.notice "),
        (b"<14>\x1b[2J\xff\r\n\0", r"user.info \x1b[2J\xff\r"),
    ],
)
async def test_syslog_receiver_makes_one_line_of_anything(
    sent,
    shown,
    autojump_clock,
    capsys,
):
    """Whatever was sent is one printable line, and nobody gets a reply."""
    async with MemoryDatagramServer(("memory", 1), example("syslog_receiver").show).serving() as it:
        client = it.client()
        await client.send(sent)
        await trio.testing.wait_all_tasks_blocked()
        assert client.received() == []
    assert capsys.readouterr().out == f"{shown}\n"


async def test_syslog_receiver_is_a_part_of_a_program(nursery, folder):
    """Started in a nursery it listens where it was told, with room for a burst."""
    main = example("syslog_receiver").main
    over_udp = await nursery.start(main, "0")
    room = over_udp.socket.getsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF)
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as usual:
        assert room > usual.getsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF)
    over_unix = await nursery.start(main, str(folder / "log"))
    assert over_unix.server_address == str(folder / "log")


# Unix ---------------------------------------------------------------------------


async def test_unix_server_answers_its_user_alone(nursery, folder, capsys):
    """`ask` gets its answer over a socket that nobody else may open."""
    module, path = example("unix_server"), folder / "upper.sock"
    await nursery.start(module.main, str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with trio.fail_after(10):
        assert await trio.to_thread.run_sync(module.ask, str(path), "hello there") == "HELLO THERE"
    assert re.fullmatch(r"user (\d+|unknown) is here\n", capsys.readouterr().out)


async def test_unix_server_runs_as_two_programs(folder):
    """One serves, the other one asks; at Ctrl-C the socket file is gone."""
    path = folder / "upper.sock"
    async with program("unix_server", str(path)) as server:
        assert await listening(server) == f"unix:{path}"
        assert await output("unix_server", str(path), "hello", "there") == "HELLO THERE\n"
        status, _, _ = await interrupted(server)
    assert status == 0
    assert not path.exists()


# Lines --------------------------------------------------------------------------

HELLO = b"hello: ADD number, TOTAL or QUIT\n"


async def test_line_protocol_takes_many_commands(nursery, connect):
    """They share a total, wrong ones are told; QUIT and the end of input are told goodbye."""
    server = await nursery.start(example("line_protocol").main, 0)
    client, brief = await connect(server), await connect(server)
    await client.says(b"ADD 40\nadd 2\n\nADD two\nADD 1 2\nADD 12345678901\nTOTAL\nQUIT\nTOTAL\n")
    replies = b"ok\nok\nwhat?\nwhat?\nwhat?\nwhat?\n42\ngoodbye\n"
    assert await client.hears_all() == HELLO + replies
    await brief.stream.send_eof()
    assert await brief.hears_all() == HELLO + b"goodbye\n"


async def test_line_protocol_says_goodbye_when_it_drains(nursery, connect):
    """An idle client hears why it ends; one in the middle of a command gets its answer before."""
    server = await nursery.start(example("line_protocol").main, 0)
    idle, busy = await connect(server), await connect(server)
    for client in (idle, busy):
        await client.asks(b"ADD 1\n", HELLO + b"ok\n")
    await busy.says(b"TOT")
    server.shutdown(grace=5)
    assert await idle.hears_all() == b"goodbye, the server is closing\n"
    await busy.says(b"AL\n")
    assert await busy.hears_all() == b"1\ngoodbye, the server is closing\n"
    report = await ending(server)
    assert report.clean
    assert len(report.drained) == 2


# Chat ---------------------------------------------------------------------------

CLOSES = b"* the room closes, goodbye\n"


async def test_chat_tells_everybody(nursery, connect):
    """What one says, all hear, and those who stay do not notice who leaves.

    At a drain those who wait for others hear goodbye; a line that has begun is told to its end.
    """
    server = await nursery.start(example("chat").main, 0)
    ann = await connect(server)
    await ann.asks(b"first\n", b"guest 1: first\n")
    bob = await connect(server)
    await bob.says(b"second\n")
    for client in (ann, bob):
        await client.hears(b"guest 2: second\n")
    await ann.says(b"last words")
    await ann.stream.send_eof()
    assert await ann.hears_all() == b"guest 1: last words\n"
    await bob.hears(b"guest 1: last words\n")
    await bob.asks(b"alone\n", b"guest 2: alone\n")
    cid = await connect(server)
    await cid.asks(b"hi\n", b"guest 3: hi\n")
    await bob.hears(b"guest 3: hi\n")
    await bob.says(b"I was just ")
    server.shutdown(grace=5)
    assert await cid.hears_all() == CLOSES
    await bob.says(b"leaving\n")
    assert await bob.hears_all() == b"guest 2: I was just leaving\n" + CLOSES
    report = await ending(server)
    assert report.clean
    assert len(report.drained) == 2


async def test_chat_drops_who_is_slow(autojump_clock):
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


async def test_function_handler_greets_and_answers(nursery, connect):
    """The function knows its greeting, its client and its server, and answers until the end.

    Its wait between two messages ends when the server drains.
    """
    server = await nursery.start(example("function_handler").main, 0)
    for number in (1, 2, 3):
        client = await connect(server)
        await client.hears(b"hello, number %d from 127.0.0.1\n" % number)
        for word in (b"one", b"two"):
            await client.asks(word, word.upper())
        if number == 3:
            server.shutdown(grace=5)
        else:
            await client.stream.send_eof()
        assert await client.hears_all() == b""
    report = await ending(server)
    assert [record.outcome for record in report.requests] == ["drained"]


async def test_two_servers_end_together(connect):
    """One tells of the work; told to stop, the other one ends both, and the program."""
    async with running_to_its_end() as nursery:
        public, admin = await nursery.start(example("two_servers").main, 0, 0)
        visitor, boss = await connect(public), await connect(admin)
        assert re.fullmatch(rb"\d+ pieces are done\n", await visitor.hears_all())
        await boss.says(b"what?\nstop\n")
        assert await boss.hears_all() == b"stopping\n"
        for server in (public, admin):
            assert (await ending(server)).clean


async def test_two_servers_work_goes_on(autojump_clock):
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
async def test_access_control_serves_its_networks(networks, answer, outcome, nursery, connect):
    """A client of an allowed network is served; any other is refused before the handler."""
    server = await nursery.start(example("access_control").main, 0, *networks)
    client = await connect(server)
    await client.says(b"hello\n")
    await client.stream.send_eof()
    assert await client.hears_all() == answer
    assert server.statistics().outcomes[outcome] == 1
