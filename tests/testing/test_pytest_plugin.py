"""The pytest plugin: its fixtures, and that wrong tests fail, with words that say why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import trio
from support import Upper

from trioserver.testing import (
    Latency,
    RunningServer,
    ServerFactory,
    eof,
    expect,
    open_descriptors,
    reply,
)

SETTINGS = """
[pytest]
trio_mode = true
strict_config = true
filterwarnings = error
"""

BEGINNING = """
import pytest
import trio
import trio.testing
import trioserver
from trioserver.testing import *


class Upper(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(line.upper())


async def fails(request, client_address, server):
    await request.recv(100)
    raise KeyError("a handler's own")


async def stays(request, client_address, server):
    with trio.CancelScope(shield=True):
        await trio.sleep(3)


"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project of somebody's, in a folder of its own."""
    pytester.makeini(SETTINGS)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return pytester


def result_of(suite: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    """Run these tests."""
    suite.makepyfile(test_theirs=BEGINNING + textwrap.dedent(tests))
    return suite.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:randomly", *options)


def outcome_of(suite: pytest.Pytester, tests: str, **outcomes: int) -> str:
    """What pytest says of tests that end so."""
    result = result_of(suite, tests)
    result.assert_outcomes(**outcomes)
    told = result.stdout.str()
    assert "INTERNALERROR" not in told
    assert "TrioInternalError" not in told
    return told


# Right tests -------------------------------------------------------------------------


async def test_trio_server(trio_server: ServerFactory, autojump_clock: object) -> None:
    """Serves in memory, gives clients that are closed with the test, and tells of requests."""
    server = await trio_server(Upper, faults=[Latency(100)])
    assert isinstance(server, RunningServer)
    client = await server.connect()
    await client.send_all(b"hello\n")
    assert await client.receive_some() == b"HELLO\n"
    assert trio.current_time() == 200
    await client.send_eof()
    [exchange] = await server.wait_requests(1)
    assert (exchange.received, exchange.sent) == (b"hello\n", b"HELLO\n")


@pytest.mark.parametrize("transport", ["memory", "tcp", "unix"])
async def test_client_that_is_left_open(transport: str, trio_server: ServerFactory) -> None:
    """PY-01: it is the fixture's, which closes it: nobody waits, and nothing is left."""
    server = await trio_server(Upper, transport=transport)
    client = await server.connect()
    await client.send_all(b"hel")


async def test_scripted_server(scripted_server: ServerFactory) -> None:
    """The steps of the script, in their order."""
    server = await scripted_server(expect(b"hello *\n"), reply(b"hi\n"), eof())
    client = await server.connect()
    await client.send_all(b"hello you\n")
    assert await client.receive_some() == b"hi\n"
    assert await client.receive_some() == b""


def test_servers_are_closed_in_reverse(suite: pytest.Pytester) -> None:
    """PY-05: one that needs another is closed before it; each can be stopped by itself, too."""
    result = result_of(
        suite,
        """
        class Tells(trioserver.Observer):
            def __init__(self, name):
                self.name = name
            def server_closed(self, report):
                print("closed:", self.name)

        def named(name):
            return trioserver.TCPServer(("127.0.0.1", 0), Upper, observers=[Tells(name)])

        async def test_three(trio_server):
            await trio_server(named("first"))
            second = await trio_server(named("second"))
            await trio_server(named("third"))
            await second.stop()
            print("over:", "test")
        """,
        "-s",
    )
    result.assert_outcomes(passed=1)
    told = [line for line in result.outlines if "closed:" in line or "over:" in line]
    assert [line.split()[-1] for line in told] == ["second", "test", "third", "first"]


def test_nothing_is_left(suite: pytest.Pytester) -> None:
    """PY-01: not by tests that fail, either."""
    before = open_descriptors()
    result = result_of(
        suite,
        """
        @pytest.mark.parametrize("transport", ["memory", "tcp", "unix"])
        async def test_fails(trio_server, transport):
            server = await trio_server(Upper, transport=transport)
            await server.connect()
            assert not await server.connect()
        """,
    )
    result.assert_outcomes(failed=3)
    assert open_descriptors() == before


def test_a_mark_instead_of_the_mode(suite: pytest.Pytester) -> None:
    """Where only some tests are of Trio."""
    suite.makeini("[pytest]\n")
    tests = """
        @pytest.mark.trio
        async def test_marked(trio_server):
            await trio_server(Upper)
        """
    assert "1 passed" in outcome_of(suite, tests, passed=1)


def test_nothing_is_imported_before(suite: pytest.Pytester) -> None:
    """The plugin brings pytest and the package, and not the tools, nor pytest-trio."""
    suite.makeini("[pytest]\n")
    suite.makepyfile(
        """
        import sys

        def test_modules():
            tools = [name for name in sys.modules if name.startswith("trioserver.testing")]
            assert tools == []
            assert "trio.testing" not in sys.modules
        """
    )
    result = suite.runpytest_subprocess("-p", "no:trio", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)


# Wrong tests -------------------------------------------------------------------------


def test_handler_error_fails_the_test(suite: pytest.Pytester) -> None:
    """PY-04: what the client does not notice, with the traceback of the handler."""
    told = outcome_of(
        suite,
        """
        async def test_client(trio_server):
            server = await trio_server(fails)
            client = await server.connect()
            await client.send_all(b"hello")
            assert await client.receive_some() == b""
        """,
        failed=1,
    )
    assert "handlers have failed (1 sub-exception)" in told
    assert 'raise KeyError("a handler\'s own")' in told


def test_expected_error_fails_nothing(suite: pytest.Pytester) -> None:
    """PY-04: unless the test has said that it expects it."""
    outcome_of(
        suite,
        """
        async def test_client(trio_server):
            server = await trio_server(fails)
            client = await server.connect()
            async with server.expect_error(KeyError):
                await client.send_all(b"hello")
                assert await client.receive_some() == b""
        """,
        passed=1,
    )


def test_test_and_handler_fail(suite: pytest.Pytester) -> None:
    """PY-03: both are told of, and the next test is not concerned."""
    told = outcome_of(
        suite,
        """
        async def test_client(trio_server):
            server = await trio_server(fails)
            client = await server.connect()
            await client.send_all(b"hello")
            assert await client.receive_some() == b"HELLO"

        async def test_next(trio_server):
            await trio_server(Upper)
        """,
        failed=1,
        passed=1,
    )
    assert "assert b'' == b'HELLO'" in told
    assert 'raise KeyError("a handler\'s own")' in told


def test_two_servers_fail(suite: pytest.Pytester) -> None:
    """PY-03: of more than one, all errors are told."""
    told = outcome_of(
        suite,
        """
        async def test_client(trio_server):
            for _ in range(2):
                server = await trio_server(fails)
                client = await server.connect()
                await client.send_all(b"hello")
                await server.wait_requests()
        """,
        failed=1,
    )
    assert "more than one server has failed the test (2 sub-exceptions)" in told
    assert told.count('raise KeyError("a handler\'s own")') >= 2


def test_unfinished_handler_fails_the_test(suite: pytest.Pytester) -> None:
    """PY-01, PY-09: a request that goes on after the test is named, by a virtual second."""
    began = time.perf_counter()
    told = outcome_of(
        suite,
        """
        async def test_client(trio_server, autojump_clock):
            server = await trio_server(stays)
            client = await server.connect()
        """,
        failed=1,
    )
    assert "requests still go on 1 s after the test:" in told
    assert "request 1 from 127.0.0.1:49152, working, for 1.000 s" in told
    assert time.perf_counter() - began < 10


def test_socket_that_is_left_open_fails_the_test(suite: pytest.Pytester) -> None:
    """PY-09: one that the fixture does not own keeps its request, which is named."""
    told = outcome_of(
        suite,
        """
        async def test_client(trio_server):
            server = await trio_server(Upper, transport="tcp")
            global stream
            stream = await trio.open_tcp_stream(*server.address)
            await stream.send_all(b"hello\\n")
            await stream.receive_some()

        async def test_next():
            await stream.aclose()
        """,
        failed=1,
        passed=1,
    )
    assert "requests still go on 1 s after the test:" in told
    assert "idle, for" in told


def test_server_that_crashes_fails_the_test_at_once(suite: pytest.Pytester) -> None:
    """PY-02: the test does not wait for anything any more; the traceback is the server's."""
    began = time.perf_counter()
    told = outcome_of(
        suite,
        """
        class Breaks(trioserver.TCPServer):
            def get_request(self, listener):
                raise RuntimeError("the server's own")

        async def test_client(trio_server):
            server = await trio_server(Breaks(("127.0.0.1", 0), Upper))
            client = await server.connect()
            await trio.sleep(60)
        """,
        failed=1,
    )
    assert "RuntimeError: the server's own" in told
    assert "in get_request" in told
    assert time.perf_counter() - began < 10


def test_server_that_cannot_start_fails_the_test(suite: pytest.Pytester) -> None:
    """PY-10: what it raises comes out of the fixture's call, bare."""
    told = outcome_of(
        suite,
        """
        async def test_client(trio_server):
            first = await trio_server(Upper, transport="tcp")
            with pytest.raises(OSError, match="in use"):
                await trio_server(trioserver.TCPServer(first.address, Upper), transport="tcp")
            with pytest.raises(TypeError, match="is a class of servers"):
                await trio_server(trioserver.TCPServer)
            raise ValueError("the end was reached")
        """,
        failed=1,
    )
    assert "ValueError: the end was reached" in told


def test_client_that_waits_for_ever_is_shown(suite: pytest.Pytester) -> None:
    """A deadlock ends by the wall clock, and every task is shown where it waits."""
    told = outcome_of(
        suite,
        """
        async def test_client(trio_server):
            server = await trio_server(Upper, guard=0.3)
            client = await server.connect()
            await client.send_all(b"no end of line")
            await client.receive_some()
        """,
        failed=1,
    )
    assert "Hung: it took more than 0.3 real seconds; the tasks were here:" in told
    assert "in test_client: await client.receive_some()" in told
    assert "in handle: async for line in self.rfile:" in told


def test_wrong_clock_is_refused(suite: pytest.Pytester) -> None:
    """CK-05: a clock that jumps, and a server on a real socket."""
    told = outcome_of(
        suite,
        """
        async def test_client(trio_server, autojump_clock):
            await trio_server(Upper, transport="tcp")
        """,
        failed=1,
    )
    assert "this test runs on a clock with autojump, and the TCPServer over 'tcp'" in told


def test_unmet_step_fails_the_test(suite: pytest.Pytester) -> None:
    """What was wanted, and what came."""
    told = outcome_of(
        suite,
        """
        async def test_client(scripted_server):
            server = await scripted_server(expect(b"hello\\n"), reply(b"hi\\n"))
            client = await server.connect()
            await client.send_all(b"hallo\\n")
            await client.receive_some()

        async def test_nobody(scripted_server):
            await scripted_server(expect(b"hello\\n"))
        """,
        failed=2,
    )
    assert r"step 1 of 2, expect(b'hello\n'), is not met: got b'hallo\n'" in told
    assert r"nobody has connected; the first of 1 step is expect(b'hello\n')" in told


# Tests that cannot have it ------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["trio_server", "scripted_server"])
def test_plain_test_is_refused(fixture: str, suite: pytest.Pytester) -> None:
    """PY-06: it is told what there is for it; the next test with the fixture is not harmed."""
    tests = f"""
        def test_plain({fixture}):
            pass

        async def test_next({fixture}):
            pass
        """
    told = outcome_of(suite, tests, errors=1, passed=1)
    assert (
        f"the fixture {fixture} cannot be had here: the test is not async; for such tests there"
        " is trioserver.testing.serve_in_thread"
    ) in told


def test_unmarked_test_is_refused(suite: pytest.Pytester) -> None:
    """PY-06: without trio_mode a test has to be marked."""
    suite.makeini("[pytest]\n")
    told = outcome_of(suite, "async def test_unmarked(trio_server):\n    pass\n", errors=1)
    assert "mark it (pytest.mark.trio), or set trio_mode" in told


def test_without_pytest_trio(suite: pytest.Pytester) -> None:
    """PY-06: it is named."""
    suite.makeini("[pytest]\n")
    result = result_of(suite, "async def test_it(trio_server):\n    pass\n", "-p", "no:trio")
    result.assert_outcomes(errors=1)
    assert "it needs pytest-trio, which is not installed" in result.stdout.str()


def test_wrong_scope_is_refused(suite: pytest.Pytester) -> None:
    """PY-06: pytest itself says so."""
    told = outcome_of(
        suite,
        """
        @pytest.fixture(scope="module")
        async def shared(trio_server):
            return await trio_server(Upper)

        async def test_it(shared):
            pass
        """,
        errors=1,
    )
    assert "ScopeMismatch" in told


def test_anyio_is_refused(suite: pytest.Pytester) -> None:
    """A test of anyio's plugin is told what to do instead."""
    told = outcome_of(
        suite,
        """
        @pytest.fixture
        def anyio_backend():  # as its plugin has one
            return "trio"

        async def test_it(anyio_backend, trio_server):
            pass
        """,
        errors=1,
    )
    assert "this test is run by the plugin of anyio; open the server in the test" in told


def test_skipped_test_is_skipped(suite: pytest.Pytester) -> None:
    """Whatever else is wrong with it."""
    outcome_of(
        suite,
        """
        @pytest.mark.skip
        def test_marked(trio_server):
            pass

        async def test_skips(trio_server):
            await trio_server(Upper)
            pytest.skip("not today")
        """,
        skipped=2,
    )


@pytest.mark.parametrize("word", ["skip", "xfail"])
@pytest.mark.parametrize(
    "server",
    [
        'scripted_server(expect(b"hello"), reply(b"hi"))',
        "trio_server(fails)",
        "trio_server(stays)",
    ],
)
def test_skip_after_a_server_was_opened(suite: pytest.Pytester, word: str, server: str) -> None:
    """Nothing is expected any more of the test, nor of its server."""
    outcome = {"skip": "skipped", "xfail": "xfailed"}[word]
    outcome_of(
        suite,
        f"""
        async def test_ends_early(trio_server, scripted_server, autojump_clock):
            server = await {server}
            client = await server.connect()
            await client.send_all(b"!")
            await trio.testing.wait_all_tasks_blocked()
            pytest.{word}("not today")
        """,
        **{outcome: 1},
    )


RUNS_AGAIN = """
from _pytest.runner import runtestprotocol


def pytest_runtest_protocol(item, nextitem):
    for _ in range(3):
        item._initrequest()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not any(report.failed for report in reports):
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    return True
"""


@pytest.mark.parametrize("fixture", ["trio_server", "scripted_server"])
def test_another_attempt(suite: pytest.Pytester, fixture: str) -> None:
    """A test that is run again, as pytest-rerunfailures does it, has its fixture again."""
    suite.makeconftest(RUNS_AGAIN)
    outcome_of(
        suite,
        f"""
        attempts = []

        async def test_flaky({fixture}):
            attempts.append({fixture})
            assert len(attempts) == 3

        @pytest.mark.parametrize("number", [1, 2])
        async def test_fine({fixture}, number):
            pass
        """,
        passed=3,
    )


def test_exit_ends_the_session(suite: pytest.Pytester) -> None:
    """``pytest.exit`` in a test with a server is what it says."""
    result = result_of(
        suite,
        """
        async def test_exits(trio_server):
            await trio_server(Upper)
            pytest.exit("enough", returncode=7)

        def test_next():
            pass
        """,
    )
    assert result.ret == 7
    result.stdout.fnmatch_lines(["*Exit: enough*"])
    result.assert_outcomes()


# Whole suites ------------------------------------------------------------------------

MANY = """
import os
import signal

@pytest.mark.parametrize("number", range(24))
@pytest.mark.parametrize("transport", ["memory", "tcp", "unix"])
async def test_it(trio_server, transport, number):
    server = await trio_server(Upper, transport=transport)
    client = await server.connect()
    await client.send_all(b"hello\\n")
    assert await client.receive_some() == b"HELLO\\n"


def test_in_processes():
    server = trioserver.ProcessTCPServer(("127.0.0.1", 0), socket_upper, min_children=1)
    with serve_in_thread(server) as running:
        client = running.connect()
        client.sendall(b"hello\\n")
        assert client.recv(100) == b"HELLO\\n"


def socket_upper(request, client_address, server):
    request.sendall(request.recv(100).upper())
"""


@pytest.mark.slow
def test_on_eight_workers(suite: pytest.Pytester) -> None:
    """PY-07: ports and paths never clash."""
    suite.makepyfile(test_theirs=BEGINNING + MANY)
    result = suite.runpytest_subprocess("-n", "8", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=73)


@pytest.mark.slow
def test_in_random_order_until_the_first_failure(suite: pytest.Pytester) -> None:
    """PY-07: no test depends on another one; and ``-x`` ends it with nothing left."""
    shuffle = """
    import random

    def pytest_collection_modifyitems(items):
        random.Random({seed}).shuffle(items)
    """
    wrong = """
    async def test_wrong(trio_server):
        server = await trio_server(stays, transport="tcp")
        await server.connect()
        assert False
    """
    suite.makepyfile(test_theirs=BEGINNING + MANY + textwrap.dedent(wrong))
    for seed in (1, 2):
        suite.makeconftest(shuffle.format(seed=seed))
        result = suite.runpytest_subprocess("-x", "-p", "no:cacheprovider", "-q")
        assert result.parseoutcomes()["failed"] == 1
        result.stdout.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.slow
def test_ctrl_c(suite: pytest.Pytester, tmp_path: Path) -> None:
    """PY-07: in the middle of a test it ends everything: no process, no socket file, no trace."""
    tests = """
    import socket, os

    async def test_it(trio_server, tmp_path):
        path = str(tmp_path / "socket")
        server = trioserver.ProcessUnixStreamServer(path, socket_upper, min_children=2)
        running = await trio_server(server, transport="unix")
        with open("facts", "w") as facts:
            print(path, *server.active_children, file=facts)
        os.rename("facts", "facts of it")
        await trio.sleep(60)
    """
    suite.makepyfile(test_theirs=BEGINNING + MANY + textwrap.dedent(tests))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-k",
        "test_it and not memory and not tcp and not unix",
    ]
    facts = suite.path / "facts of it"
    with subprocess.Popen(
        [*command, "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'theirs'}"],
        cwd=suite.path,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as theirs:
        deadline = time.monotonic() + 60
        while not facts.exists():
            assert theirs.poll() is None, theirs.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        theirs.send_signal(signal.SIGINT)
        told, _ = theirs.communicate(timeout=60)
    assert theirs.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in told
    path, *pids = facts.read_text(encoding="utf-8").split()
    assert not os.path.lexists(path)
    assert len(pids) == 2
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
