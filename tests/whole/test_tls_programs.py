"""The servers by TLS, met by programs that everybody has: ``openssl s_client``, and ``curl``."""

import json
import shutil
from contextlib import asynccontextmanager
from functools import partial
from subprocess import PIPE, STDOUT

import pytest
import trio
import trustme
from support.scenes import table
from support.tls import SERVER
from support.tls_handlers import (
    AsyncFacts,
    AsyncMail,
    AsyncPage,
    AsyncTalks,
    Facts,
    Page,
    Talks,
)

import trioserver
from trioserver.testing import open_test_server

MODES = {
    "task": (trioserver.TCPServer, AsyncFacts, AsyncPage),
    "thread": (trioserver.ThreadingTCPServer, Facts, Page),
    "process": (trioserver.ProcessTCPServer, Facts, Page),
}


def serving(mode, handler, **fields):
    """A server by TLS, in a mode."""
    kind = MODES[mode][0]
    if mode == "process":
        fields["min_children"] = 1
    return open_test_server(kind(("127.0.0.1", 0), handler, **fields), transport="tcp")


async def runs(*command, says=b""):
    """A program's output, which has to end well."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}")
    with trio.fail_after(20):
        return await trio.run_process(
            [*map(str, command)], stdin=says, capture_stdout=True, capture_stderr=True, check=False
        )


def s_client(port, *options):
    """``openssl s_client``, which says nothing but what it gets."""
    authority = SERVER.tls.certificate.parent / "authority.pem"
    SERVER.tls.authority.cert_pem.write_to_path(authority)
    quiet = ("-quiet", "-verify_quiet", "-verify_return_error", "-ign_eof")
    return (
        "openssl",
        "s_client",
        *quiet,
        "-CAfile",
        authority,
        "-connect",
        f"127.0.0.1:{port}",
        *options,
    )


@pytest.fixture
def ada(tmp_path):
    """The files of a client's certificate; and who has issued it."""
    members = trustme.CA()
    issued = members.issue_cert("ada@example.org", common_name="ada")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    members.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path


@pytest.mark.parametrize("mode", MODES)
@table(
    ("options", "facts"),
    {
        "as it is": ([], {"version": "TLSv1.3"}),
        "an old version": (["-tls1_2"], {"version": "TLSv1.2"}),
        "-alpn": (["-alpn", "lines"], {"alpn": "lines"}),
        "-servername": (["-servername", "localhost"], {"server_name": "localhost"}),
    },
)
async def test_openssl(mode, options, facts):
    """What was agreed on is what it has asked for."""
    context = partial(trioserver.server_context, *own_files(), alpn=["lines"])
    async with serving(mode, MODES[mode][1], ssl_context=context) as server:
        done = await runs(*s_client(server.port, *options))
        told = json.loads(done.stdout)
        if mode != "task":  # ssl.SSLSocket does not tell
            told["server_name"] = facts.get("server_name")
        assert done.returncode == 0, done.stderr
        assert {name: told[name] for name in facts} == facts


def own_files():
    """The server's certificate, and key."""
    return SERVER.tls.certificate, SERVER.tls.key


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("has_one", [True, False])
async def test_openssl_with_a_certificate(mode, has_one, ada):
    """-cert: the handler knows who it is; nobody else gets that far."""
    context = partial(trioserver.server_context, *own_files(), client_ca=ada / "ca.pem")
    async with serving(mode, MODES[mode][1], ssl_context=context) as server:
        options = ["-cert", ada / "cert.pem", "-key", ada / "key.pem"] if has_one else []
        done = await runs(*s_client(server.port, *options))
        [exchange] = await server.wait_requests()
    if has_one:
        assert json.loads(done.stdout)["who"] == "ada"
    else:
        assert (str(exchange.outcome), done.stdout) == ("refused", b"")
        assert exchange.record.reason == "TLS: peer did not return a certificate"
        assert b"certificate required" in done.stderr


async def test_openssl_starttls():
    """-starttls smtp: the protocol as others speak it."""
    server = trioserver.TCPServer(("127.0.0.1", 0), AsyncMail)
    server.own_context = partial(trioserver.server_context, *own_files())
    async with open_test_server(server, transport="tcp") as running:
        done = await runs(*s_client(running.port, "-starttls", "smtp"), says=b"NOOP\r\nQUIT\r\n")
    assert done.stdout.replace(b"\r\n", b"\n").endswith(b"250 NOOP by TLSv1.3\n221 bye\n")


@pytest.mark.parametrize("mode", MODES)
async def test_new_keys(mode):
    """TL-08: -K: both sides have new keys, again and again, and nothing is lost."""
    talks = {"task": AsyncTalks}.get(mode, Talks)
    async with serving(mode, talks, ssl_context=SERVER.context) as server:
        # A command is a write of its own that begins with its letter, and there are none in quiet.
        command = [part for part in s_client(server.port) if part not in {"-quiet", "-ign_eof"}]
        async with talking_to(*command) as (say, hear):
            for number in range(3):
                await say(b"K\n")
                await hear(b"KEYUPDATE\n")
                await say(b"after %d\n" % number)
                await hear(b"AFTER %d\n" % number)
            await say(b"Q\n")
        [exchange] = await server.wait_requests()
    assert exchange.outcome is trioserver.Outcome.COMPLETED
    assert exchange.record.bytes_received == 3 * len(b"after 0\n")


@asynccontextmanager
async def talking_to(*command):
    """How to say something to a program, at once, and to read up to an expected word."""
    start = partial(trio.run_process, stdin=PIPE, stdout=PIPE, stderr=STDOUT, check=False)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            program = await nursery.start(start, [*map(str, command)])
            heard = bytearray()

            async def hear(word):
                while word not in heard:
                    heard.extend(await program.stdout.receive_some() or b"(it has ended)")
                del heard[: heard.index(word) + len(word)]

            yield program.stdin.send_all, hear


@pytest.mark.parametrize("mode", MODES)
async def test_curl(mode):
    """A page, by HTTPS; and by mistake without."""
    context = partial(trioserver.server_context, *own_files())
    authority = SERVER.tls.certificate.parent / "authority.pem"
    SERVER.tls.authority.cert_pem.write_to_path(authority)
    async with serving(mode, MODES[mode][2], ssl_context=context) as server:
        host = f"127.0.0.1:{server.port}"
        done = await runs("curl", "-sS", "--cacert", authority, f"https://{host}/")
        assert (done.returncode, done.stdout) == (0, b"x" * 100_000)
        done = await runs("curl", "-sS", f"http://{host}/")
        assert done.returncode == 52  # an empty reply
        outcomes = [str(one.outcome) for one in await server.wait_requests(2)]
    assert outcomes == ["completed", "refused"]
