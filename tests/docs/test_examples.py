"""The examples: each one runs by itself, and is talked to over real sockets."""

import http.client
import logging
import re
import shutil
import signal
import smtplib
import stat
import struct
import time
import xmlrpc.client
from contextlib import asynccontextmanager, closing
from functools import partial
from logging.handlers import SysLogHandler
from wsgiref.validate import validator

import pytest
import trio
import trustme
from support import Witness
from support.pages import EXAMPLES, example
from support.programs import (
    Client,
    interrupted,
    listening,
    output,
    printed_lines,
    program,
    pytest_says,
)
from support.scenes import table
from support.tls import SERVER

from trioserver.testing import MemoryDatagramServer, MemoryMixIn, TLSClient

NAMES = {path.stem for path in EXAMPLES.glob("*.py")}
HERE = "127.0.0.1"


@pytest.fixture
async def start(nursery):
    """Starts the server of an example, as a part of a program."""

    async def start_one(name, *arguments):
        return await nursery.start(example(name).main, *arguments)

    return start_one


@pytest.fixture
async def connect():
    """Connects clients to the port of a server, or one of a program; closes them after the test."""
    clients = []

    async def connect_one(where):
        port = where if isinstance(where, str) else where.server_address[1]
        with trio.fail_after(10):
            clients.append(Client(await trio.open_tcp_stream(HERE, int(port))))
        return clients[-1]

    yield connect_one
    for client in clients:
        await client.stream.aclose()


@asynccontextmanager
async def datagram_client(server):
    """A UDP socket that sends to the bound port of this machine, with a bound on its waits."""
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
        await client.connect((HERE, server.server_address[1]))
        with trio.fail_after(10):
            yield client


async def ending(server):
    """The report of a server that ends."""
    with trio.fail_after(10):
        return await server.wait_closed()


@pytest.mark.slow
def test_testing_suite(tmp_path):
    """What a reader copies into a folder of his own passes there, every file of it."""
    suite = shutil.copytree(EXAMPLES / "testing", tmp_path / "suite")
    told = pytest_says("-v", "-p", "no:cacheprovider", "suite", cwd=tmp_path)
    assert re.match("=+ 19 passed in [^,]*=+$", told.splitlines()[-1]), told
    shown = (suite / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in suite.iterdir() if path.is_file()} - {"README.md"}
    assert files == set(re.findall(r"^\| `(\S+)` \|", shown, re.MULTILINE))


OTHERS = {"classic_tcp_client", "classic_udp_client", "forking_tcp_server", "threaded_tcp_server"}
OTHERS |= {"starttls_mail", "client_certificates"}
ARGUMENTS = {
    "access_control": ["0", "127.0.0.0/8"],
    "function_handler": ["0", "good morning"],
    "two_servers": ["0", "0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES - OTHERS))
async def test_example_runs_as_a_program(name, folder):
    """Each server takes its address from the command line, says where it is, and ends at Ctrl-C.

    The others are run in tests of their own.
    """
    path = str(folder / "socket")
    arguments = [path] if name == "unix_server" else ARGUMENTS.get(name, ["0"])
    async with program(name, *arguments) as process:
        host, port = await listening(process)
        assert (host in {HERE, "0.0.0.0"}) or (host, port) == ("unix", path)
        assert port not in {"0", "9999", "9998", "9123", "9514"}
        await interrupted(process)
    assert list(folder.iterdir()) == []


SERVER_PRINTS = """\
127.0.0.1 wrote:
b'hello world with TCP'
127.0.0.1 wrote:
b'python is nice'
"""
CLIENTS_PRINT = """\
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
        _, port = await listening(server)
        client = f"{command[0]}_client", "--port", port
        first = await output(*client, "hello", "world", "with", "TCP")
        second = await output(*client, "python", "is", "nice")
        printed, _ = await interrupted(server)
    assert (printed, first + second) == (SERVER_PRINTS, CLIENTS_PRINT)


HELLO = b"hello: ADD number, TOTAL or QUIT\n"
COMMANDS = b"ADD 40\nadd 2\n\nADD two\nADD 1 2\nADD 12345678901\nTOTAL\nQUIT\nTOTAL\n"
REPLIES = b"ok\nok\nwhat?\nwhat?\nwhat?\nwhat?\n42\ngoodbye\n"
PORTIONS = [b"%c" % byte for byte in b"hello\n"]
END, NEAR, FAR = None, ["10.0.0.0/8", "127.0.0.0/24"], ["10.0.0.0/8", "::/0"]


@table(
    ("name", "arguments", "says", "hears"),
    {
        "with rfile it waits for a line": ("classic_tcp", ["line"], PORTIONS, b"HELLO"),
        "with recv it takes the first portion": ("classic_tcp", ["recv"], [b"  hello"], b"HELLO"),
        "commands share a total; QUIT ends": ("line_protocol", [], [COMMANDS], HELLO + REPLIES),
        "the end of input ends, too": ("line_protocol", [], [END], HELLO + b"goodbye\n"),
        "its own network is served": ("access_control", [], [b"a\n", END], b"A\n"),
        "an allowed network is served": ("access_control", [NEAR], [b"a\n", END], b"A\n"),
        "any other is refused": ("access_control", [FAR], [b"a\n", END], b""),
    },
)
async def test_talk(name, arguments, says, hears, start, connect):
    """What a client says in some portions is answered as the example's docstring promises."""
    server = await start(name, 0, *arguments)
    client = await connect(server)
    for portion in says:
        await (client.stream.send_eof() if portion is END else client.says(portion))
    assert await client.hears_all() == hears
    assert server.statistics().outcomes["refused"] == (hears == b"")


FORKED = ("forking_tcp_server", "process: MainProcess", r"(ForkServer|Spawn)Process-\d+")


@pytest.mark.parametrize(
    ("name", "where", "worker"),
    [
        ("threaded_tcp_server", "thread: MainThread", r"request {} from 127\.0\.0\.1:\d+"),
        pytest.param(*FORKED, marks=pytest.mark.slow),  # workers are used again
    ],
)
async def test_workers_print_what_they_always_did(name, where, worker):
    """The text is the classic one, but for the names of threads, or of processes."""
    lines = [f"Server loop running in {where}\n"]
    lines += [f"Received: {worker.format(n)}: Hello World {n}\n" for n in (1, 2, 3)]
    assert re.fullmatch("".join(lines), await output(name, "0"))


@pytest.mark.slow
async def test_process_pool_counts_in_two_processes(connect):
    """Two clients that are there at once are served by two workers, and both counts are right."""
    async with program("process_pool", "0") as server:
        _, port = await listening(server)
        first, second = [await connect(port) for _ in "12"]
        await second.says(b"1000\n")
        answers = [await second.hears_all()]  # the other one has had its worker all the time
        await first.says(b"100000\n")
        answers.append(await first.hears_all())
        await interrupted(server)
    counts, processes = zip(*(re.findall(rb"\d+", answer) for answer in answers), strict=True)
    assert counts == (b"168", b"9592")
    assert len({*processes, b"%d" % server.pid}) == 3


@asynccontextmanager
async def http_client(server):
    """Asks for pages over one connection, which it keeps as long as the server lets it."""

    def ask(path, method="GET", body=None):
        client.request(method, path, body)
        answer = client.getresponse()
        return answer.status, answer.read()

    port = server.server_address[1]
    with closing(http.client.HTTPConnection(HERE, port, timeout=10)) as client:
        with trio.fail_after(20):
            yield partial(trio.to_thread.run_sync, ask)


@pytest.mark.slow
async def test_http_files_serves_a_folder(start, tmp_path):
    """Many files come over one connection, which is idle in the end, and does not delay a drain.

    What is not in the folder is not found, be it beside it.
    """
    folder = tmp_path / "inside" / "a folder"
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (folder / "text.txt").write_bytes(b"hello " * 100_000)
    server = await start("http_files", 0, str(tmp_path / "inside"))
    for path in ("/nothing", "/../secret", "/..%2fsecret"):
        async with http_client(server) as ask:
            assert (await ask(path))[0] == 404
    async with http_client(server) as ask:
        for _ in range(3):
            assert await ask("/a%20folder/text.txt") == (200, b"hello " * 100_000)
        status, listing = await ask("/")
        assert (status, b"a folder/" in listing) == (200, True)
        assert server.statistics().accepted == 3 + 1
        server.shutdown(grace=20)
        report = await ending(server)
        assert [str(record.outcome) for record in report.requests] == ["drained"]


async def test_wsgi_app_serves_any_application(start, nursery):
    """Its own says who asks for what; another keeps to the letter of WSGI, reads, has threads."""
    async with http_client(await start("wsgi_app", 0)) as ask:
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


async def test_xmlrpc_server_is_called(start):
    """Calls have results, wrong ones a fault, and many at once are all counted."""
    server = await start("xmlrpc_server", 0)

    def call_now(name, *arguments):
        with xmlrpc.client.ServerProxy(f"http://{HERE}:{server.server_address[1]}") as proxy:
            return getattr(proxy, name)(*arguments)

    async def count():
        counts.append(await call("count"))

    call, counts = partial(trio.to_thread.run_sync, call_now), []
    with trio.fail_after(20):
        assert await call("add", 40, 2) == 42
        assert {"add", "count"} < {*await call("system.listMethods")}
        with pytest.raises(xmlrpc.client.Fault, match="TypeError"):
            await call("add", 40)
        async with trio.open_nursery() as callers:
            for _ in range(30):
                callers.start_soon(count)
    assert sorted(counts) == list(range(1, 31))


@pytest.mark.slow
async def test_adopt_existing_drains_at_ctrl_c(connect):
    """As a program, Ctrl-C ends an idle client at once, and prints who was there."""
    async with program("adopt_existing", "0") as process:
        _, port = await listening(process)
        client = await connect(port)
        await client.says(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        answer = b""
        while b"visit number 1\n" not in answer:
            answer += await client.stream.receive_some()
        printed, _ = await interrupted(process)
    assert re.match(r"shutdown\(\) was called: ended in .*, 1 drained, 0 unaccepted\n", printed)


async def test_handle_request_loop_ends_when_told(capsys, connect):
    """The loop serves one client after the other, and ends after the one that says stop."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(example("handle_request_loop").main, 0)
            for word in (b"hello", b"again", b"stop"):
                client = await connect(server)
                await client.says(word + b"\n")
                assert await client.hears_all() == word.upper() + b"\n"
    assert capsys.readouterr().out == "1 requests so far\n2 requests so far\n3 requests so far\n"


async def test_handle_request_loop_tells_when_nobody_comes(start, autojump_clock, capsys):
    """Every five seconds without a client are told, and the loop goes on."""
    await start("handle_request_loop", 0)
    await trio.sleep(12)
    line = "nobody came for 5 seconds\n0 requests so far\n"
    assert capsys.readouterr().out == 2 * line


SNTP = struct.Struct("!4B2I4s4Q")
ASKED_AT = 0x0123_4567_89AB_CDEF


def question(version=4, mode=3):
    """What an SNTP client sends: nothing but its version, its mode, and when it did so."""
    return bytes([version << 3 | mode, 0, 6, 0]) + bytes(36) + ASKED_AT.to_bytes(8)


def since_1970(timestamp):
    """A time of NTP's as one of Python's."""
    return (timestamp >> 32) - 2_208_988_800 + (timestamp & 0xFFFF_FFFF) / 2**32


async def test_ntp_tells_the_time(start):
    """The answer is of the client's version, repeats its time, and has that of this machine.

    That is counted from 1900, and anew in 2036.
    """
    async with datagram_client(await start("ntp", 0)) as client:
        for version, extension in ((1, b""), (2, b""), (3, b""), (4, b"an authenticator")):
            before = time.time() - 0.001  # for the float's precision, and a clock being adjusted
            await client.send(question(version) + extension)
            answer = await client.recv(1024)
            after = time.time() + 0.001
            first, *facts, reference, asked_at, received, sent = SNTP.unpack(answer)
            assert (first >> 6, first >> 3 & 7, first & 7) == (0, version, 4)
            assert (facts[0], facts[1], *facts[3:]) == (1, 6, 0, 0, b"LOCL")  # stratum, poll, ...
            assert asked_at == ASKED_AT
            assert before <= since_1970(received) <= since_1970(sent) <= after
            assert reference <= received
    assert example("ntp").timestamp(2**32 - 2_208_988_800) == 0


async def test_ntp_ignores_the_rest(start):
    """What is no question of a client has no reply: two such servers cannot talk to each other."""
    nonsense = [b"", question()[:47], question(version=0), question(version=5)]
    nonsense += [question(mode=mode) for mode in (0, 1, 2, 4, 5, 6, 7)]
    server = await start("ntp", 0)
    async with datagram_client(server) as client:
        for request in (*nonsense, question()):
            await client.send(request)
        assert await client.recv(1024)
    server.shutdown(grace=5)
    counted = (await ending(server)).statistics
    assert (counted.outcomes["completed"], counted.bytes_sent) == (len(nonsense) + 1, SNTP.size)


LOGS = {
    logging.INFO: ("the door is öffen", "local3.info the door is öffen"),
    logging.WARNING: ("it is cold\nand windy", r"local3.warning it is cold\nand windy"),
    logging.ERROR: ("the door is stuck", "local3.err the door is stuck"),
}


def send_logs(address):
    """Log some messages as every Python program can."""
    with closing(SysLogHandler(address, facility="local3")) as handler:
        for level, (message, _) in LOGS.items():
            handler.emit(logging.LogRecord("house", level, __file__, 1, message, None, None))


@pytest.mark.parametrize("over", ["udp", "unix"])
async def test_syslog_receiver_prints_what_logging_sends(over, folder):
    """Messages of the standard library's handler come out in order, with names for their codes."""
    path = folder / "log"
    async with program("syslog_receiver", "0" if over == "udp" else str(path)) as receiver:
        _, port = await listening(receiver)
        address = (HERE, int(port)) if over == "udp" else str(path)
        await trio.to_thread.run_sync(send_logs, address)
        printed = await printed_lines(receiver, len(LOGS))
        assert printed == [line for _, line in LOGS.values()]
        printed, _ = await interrupted(receiver)
    assert printed == ""
    assert not path.exists()


async def test_syslog_receiver_makes_one_line_of_anything(autojump_clock, capsys):
    """Whatever was sent is one printable line, and nobody gets a reply."""
    shown = {
        b"<34>Oct 11 22:14:15 mymachine su: no": "auth.crit Oct 11 22:14:15 mymachine su: no",
        b"<165>1 2003-10-11T22:14Z - - - no": "local4.notice 1 2003-10-11T22:14Z - - - no",
        b"<0>kernel": "kern.emerg kernel",
        b"<191>the last": "local7.debug the last",
        b"<192>one more": "user.notice <192>one more",
        b"<0191>four digits": "user.notice <0191>four digits",
        b"no priority": "user.notice no priority",
        b"": "user.notice ",
        b"<14>\x1b[2J\xff\r\n\0": r"user.info \x1b[2J\xff\r",
    }
    async with MemoryDatagramServer(("memory", 1), example("syslog_receiver").show).serving() as it:
        client = it.client()
        for sent, line in shown.items():
            await client.send(sent)
            await trio.testing.wait_all_tasks_blocked()
            assert capsys.readouterr().out == f"{line}\n"
        assert client.received() == []


async def test_syslog_receiver_is_a_part_of_a_program(start):
    """Started in a nursery it listens, with room for a burst."""
    over_udp = await start("syslog_receiver", "0")
    room = trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as usual:
        assert over_udp.socket.getsockopt(*room) > usual.getsockopt(*room)


async def test_unix_server_answers_its_user_alone(start, folder, capsys):
    """`ask`, in another program, gets its answer over a socket that nobody else may open."""
    path = folder / "upper.sock"
    await start("unix_server", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await output("unix_server", str(path), "hello", "there") == "HELLO THERE\n"
    assert re.fullmatch(r"user (\d+|unknown) is here\n", capsys.readouterr().out)


async def test_line_protocol_says_goodbye_when_it_drains(start, connect):
    """An idle client hears why it ends; one in the middle of a command gets its answer before."""
    server = await start("line_protocol", 0)
    idle, busy = await connect(server), await connect(server)
    for client in (idle, busy):
        await client.asks(b"ADD 1\n", HELLO + b"ok\n")
    await busy.says(b"TOT")
    server.shutdown(grace=5)
    assert await idle.hears_all() == b"goodbye, the server is closing\n"
    await busy.says(b"AL\n")
    assert await busy.hears_all() == b"1\ngoodbye, the server is closing\n"
    report = await ending(server)
    assert (report.clean, len(report.drained)) == (True, 2)


CLOSES = b"* the room closes, goodbye\n"


async def test_chat_tells_everybody(start, connect):
    """What one says, all hear, and those who stay do not notice who leaves.

    At a drain those who wait for others hear goodbye; a line that has begun is told to its end.
    """
    server = await start("chat", 0)
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
    assert (report.clean, len(report.drained)) == (True, 2)


async def test_chat_drops_who_is_slow(autojump_clock):
    """One who does not listen is dropped when its inbox is full; nobody waits for it."""
    chat, witness = example("chat"), Witness()
    kind = type("RoomInMemory", (MemoryMixIn, chat.Room), {"memory_capacity": 32})
    room = kind(("memory", 1), chat.Member, observers=[witness])
    async with room.serving():
        slow = Client(await room.connect())
        await slow.asks(b"I do not listen, but once\n", b"guest 1: I do not listen, but once\n")
        loud = Client(await room.connect())
        began = trio.current_time()
        for number in range(50):
            await loud.asks(b"line %02d\n" % number, b"guest 2: line %02d\n" % number)
            assert trio.current_time() - began == pytest.approx(number * 0.05)
        assert [member.info.id for member in room.members] == [2]
    (dropped,) = [record for record in witness.records if record.info.id == 1]
    assert (dropped.outcome, dropped.reason) == ("cancelled", "too slow for this room")


async def test_function_handler_greets_and_answers(start, connect):
    """The function knows its greeting, its client and its server, and answers until the end.

    Its wait between two messages ends when the server drains.
    """
    server = await start("function_handler", 0)
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
    """One tells of the work, which goes on; told to stop, the other one ends both, and itself."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            public, admin = await nursery.start(example("two_servers").main, 0, 0)
            boss, told = await connect(admin), b"0 pieces are done\n"
            while told == b"0 pieces are done\n":
                visitor = await connect(public)
                told = await visitor.hears_all()
            assert re.fullmatch(rb"\d+ pieces are done\n", told)
            await boss.says(b"what?\nstop\n")
            assert await boss.hears_all() == b"stopping\n"
            reports = [await server.wait_closed() for server in (public, admin)]
    assert [report.clean for report in reports] == [True, True]


# By TLS ---------------------------------------------------------------------------------


async def test_starttls_mail():
    """As a program: mail is taken by TLS only, and who has said what before is forgotten."""
    tls = SERVER.tls
    async with program("starttls_mail", tls.certificate, tls.key, "0") as process:
        _, port = await listening(process)
        client = Client(await trio.open_tcp_stream(HERE, int(port)))
        await client.hears(b"220 mail.example.org at your service\r\n")
        await client.asks(b"MAIL FROM:<a@b>\r\n", b"530 must issue a STARTTLS command first\r\n")
        await client.asks(b"HELO me\r\n", b"250 hello me\r\n")
        await client.asks(b"EHLO me\r\n", b"250-hello me\r\n250 STARTTLS\r\n")
        await client.asks(b"STARTTLS\r\n", b"220 go ahead\r\n")
        secure = Client(TLSClient(client.stream, tls.client_context))
        await secure.stream.do_handshake()
        await secure.asks(b"EHLO me\r\n", b"250 hello me\r\n")
        await secure.asks(b"MAIL FROM:<a@b>\r\n", b"250 mail of <a@b>\r\n")
        await secure.says(b"QUIT\r\n")
        assert await secure.hears_all() == b"221 bye\r\n"
        assert await trio.to_thread.run_sync(sent_by_smtplib, int(port)) == (250, b"mail of <a@b>")
        await interrupted(process)


def sent_by_smtplib(port):
    """What the library of Python's own gets for its sender, by TLS."""
    with smtplib.SMTP(HERE, port, local_hostname="me", timeout=10) as client:
        client.starttls(context=SERVER.client_context(check_hostname=False))
        client.ehlo()
        return client.mail("a@b")


async def test_client_certificates(tmp_path):
    """As a program: it greets by name, and takes a new certificate at a SIGHUP, not a bad one."""
    members = trustme.CA()
    members.cert_pem.write_to_path(tmp_path / "ca.pem")
    shutil.copy(SERVER.tls.certificate, tmp_path / "cert.pem")
    shutil.copy(SERVER.tls.key, tmp_path / "key.pem")
    context = SERVER.client_context()
    members.issue_cert("ada@example.org", common_name="Ada").configure_cert(context)

    async def served_by():
        stream = TLSClient(await trio.open_tcp_stream(HERE, int(port)), context)
        await stream.do_handshake()
        assert await stream.receive_some() == b"hello Ada\n"
        await stream.aclose()
        return stream.ssl_object.getpeercert(binary_form=True)

    async def hang_up(said):
        process.send_signal(signal.SIGHUP)
        heard = b""
        while said not in heard:
            heard += await process.stderr.receive_some()

    names = ("cert.pem", "key.pem", "ca.pem")
    async with program("client_certificates", *(tmp_path / it for it in names), "0") as process:
        _, port = await listening(process)
        first = await served_by()
        (tmp_path / "key.pem").write_text("half of it")
        await hang_up(b"TCPServer could not reload, and goes on as it was")
        assert await served_by() == first
        renewed = SERVER.tls.authority.issue_cert("localhost")
        renewed.private_key_pem.write_to_path(tmp_path / "key.pem")
        renewed.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        await hang_up(b"SIGHUP: reloaded 1 of the 1 servers that can")
        assert await served_by() != first
        await interrupted(process)


async def test_behind_haproxy(start):
    """Who speaks as a proxy of this machine is believed."""
    server = await start("behind_haproxy", 0)
    client = Client(await trio.open_tcp_stream(HERE, server.server_address[1]))
    await client.says(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 443\r\n")
    await client.hears(b"you are 192.0.2.7, port 5000\n")
    await client.stream.aclose()


STUCK = {
    b"wait": "no-deadline: request 1 from 127.0.0.1:",
    b"swallow": "swallowed-cancellation: task 'Practice request 1 from ",
    b"clean": "long-shield: task 'Practice request 1 from ",
    b"block": "blocked-loop: the loop was blocked by task 'Practice request 1 from ",
    b"leak": "child-outlives-request: task ",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", STUCK)
async def test_stuck(line, folder):
    """Whatever a client has go wrong there, the program logs by itself, in words and with where."""
    async with program(EXAMPLES / "monitoring" / "stuck.py", "0") as process:
        _, port = await listening(process)
        client = Client(await trio.open_tcp_stream(HERE, int(port)))
        await client.asks(b"?\n", b"wait, swallow, clean, leak or block?\n")
        await client.says(line + b"\n")
        if line == b"leak":
            await client.hears(b"done\n")
            await client.stream.aclose()
        logged = ""
        while STUCK[line] not in logged:
            logged += (await process.stderr.receive_some()).decode()
        places = {b"wait": "Timeouts.request", b"leak": "in talk_to_nobody"}
        while places.get(line, "stuck.py") not in logged.partition(STUCK[line])[2]:
            logged += (await process.stderr.receive_some()).decode()
        if line != b"leak":
            await client.stream.aclose()
        if line != b"wait":
            await interrupted(process)


async def web(port, target):
    """What a browser gets from a program on this machine."""
    async with await trio.open_tcp_stream(HERE, port) as stream:
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return b"".join([part async for part in stream]).decode()


@pytest.mark.parametrize("name", ["busy", "metrics"])
async def test_watched(name, folder):
    """Each says where it serves and where it is watched, and shows there what it serves."""
    async with program(EXAMPLES / "monitoring" / f"{name}.py") as process:
        said = "\n".join(await printed_lines(process, 2))
        server = int(re.search(r"it serves on \('127.0.0.1', (\d+)\)", said)[1])
        views = int(re.search(r"http://127.0.0.1:(\d+)/", said)[1])
        client = Client(await trio.open_tcp_stream(HERE, server))
        await client.asks(b"hello\n", b"HELLO\n")
        if name == "busy":
            shown = await web(views, "/request?server=0&id=1")
            assert '"bytes_sent": 6' in shown
        else:
            shown = await web(views, "/metrics")
            assert 'trioserver_active_requests{listener="127.0.0.1:' in shown
        await client.stream.aclose()
        await interrupted(process)
