"""The pytest plugin: its fixtures, and that wrong tests fail, with words that say why."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from support import descriptors
from support.programs import failures, pytest_says
from support.scenes import table

from trioserver.testing import open_descriptors

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


async def hears(server):
    client = await server.connect()
    await client.send_all(b"hello")
    return await client.receive_some()


async def stays(request, client_address, server):
    with trio.CancelScope(shield=True):
        await trio.sleep(3)


def socket_upper(request, client_address, server):
    request.sendall(request.recv(100).upper())


"""


@pytest.fixture
def suite(pytester, monkeypatch):
    """A project of somebody's, in a folder of its own."""
    pytester.makeini(SETTINGS)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return pytester


def result_of(suite, tests, *options):
    """Run these tests."""
    suite.makepyfile(test_theirs=BEGINNING + textwrap.dedent(tests))
    return suite.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:randomly", *options)


def test_nothing_is_imported_before(suite):
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


RECORDED = """
async def fails_later(recorder):
    recorder.mark("it begins")
    await trio.sleep(3)
    assert "hello" == "bye"

async def test_fails(trio_recorder, autojump_clock):
    await fails_later(trio_recorder)

@pytest.mark.parametrize("name", ["</title>", "/../" + 200 * "x"])
async def test_named(trio_recorder, name):
    assert not name

async def test_passes(trio_recorder):
    pass

async def test_fails_alone():
    assert False
"""


@pytest.mark.parametrize("options", [(), ("--trio-timelines=to/here",)])
def test_timelines(suite, options):
    """A test that fails has a timeline, and its report says where; others have none."""
    result = result_of(suite, RECORDED, *options, f"--basetemp={suite.path / 'temp'}")
    result.assert_outcomes(failed=4, passed=1)
    folder = suite.path / ("to/here" if options else "temp")
    pages = sorted(page.name for page in folder.glob("*.html"))
    assert len(pages) == 3
    assert "test_theirs.py-test_fails.html" in pages
    assert all(len(name) <= 125 for name in pages)
    text = (folder / "test_theirs.py-test_fails.html").read_text("utf-8")
    assert '"it begins"' in text
    shown = result.stdout.str()
    assert shown.count("timeline of the tasks") == 3
    where = "to/here" if options else str(folder)
    assert f"{where}/test_theirs.py-test_fails.html" in shown


def test_timeline_that_cannot_be_written(suite):
    """Then the report says why, and the test fails as it would have."""
    (suite.path / "file").write_text("in the way")
    tests = "async def test_fails(trio_recorder):\n    assert 1 == 2\n"
    result = result_of(suite, tests, "--trio-timelines=file")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*", "could not be written to file/*"])


THEIRS = """
before, closed = open_descriptors(), []

class Tells(trioserver.Observer):
    def __init__(self, name):
        self.name = name
    def server_closed(self, report):
        closed.append(self.name)

async def test_three(trio_server):
    for name in ("first", "second", "third"):
        observers = [Tells(name)]
        one = trioserver.TCPServer(("127.0.0.1", 0), Upper, observers=observers)
        server = await trio_server(one)
        if name == "second":
            await server.stop()
    closed.append("the test")

def test_three_are_closed():
    assert closed == ["second", "the test", "third", "first"]

# failed: assert not <
async def test_leaves(trio_server):
    for transport in ("memory", "tcp", "unix"):
        client = await (await trio_server(Upper, transport=transport)).connect()
    assert not client

# failed: assert b'' == b'HELLO' | raise KeyError("a handler's own")
async def test_both_fail(trio_server):
    assert await hears(await trio_server(fails)) == b"HELLO"

async def test_next(trio_server):
    await trio_server(Upper)

# failed: more than one server has failed the test (2 sub-exceptions)
async def test_two_fail(trio_server):
    for _ in range(2):
        server = await trio_server(fails)
        await hears(server)
        await server.wait_requests()

# failed: requests still go on 1 s after the test: | 49152, working, for 1.000 s
async def test_unfinished(trio_server, autojump_clock):
    await (await trio_server(stays)).connect()

class Breaks(trioserver.TCPServer):
    def get_request(self, listener):
        raise RuntimeError("the server's own")

# failed: RuntimeError: the server's own | in get_request
async def test_crash(trio_server):
    server = await trio_server(Breaks(("127.0.0.1", 0), Upper))
    client = await server.connect()
    await trio.sleep(60)

# failed: ValueError: the end was reached
async def test_start(trio_server):
    first = await trio_server(Upper, transport="tcp")
    with pytest.raises(OSError, match="in use"):
        await trio_server(trioserver.TCPServer(first.address, Upper), transport="tcp")
    with pytest.raises(TypeError, match="is a class of servers"):
        await trio_server(trioserver.TCPServer)
    raise ValueError("the end was reached")

@pytest.fixture
def anyio_backend():  # as its plugin has one
    return "trio"

# error: this test is run by the plugin of anyio; open the server in the test
async def test_anyio(anyio_backend, trio_server):
    pass

# skipped
@pytest.mark.skip
def test_skipped(trio_server):
    pass

async def ends_early(opening, ends):
    client = await (await opening).connect()
    await client.send_all(b"!")
    await trio.testing.wait_all_tasks_blocked()
    ends("not today")

# skipped
async def test_skips_script(scripted_server, autojump_clock):
    await ends_early(scripted_server(expect(b"hello"), reply(b"hi")), pytest.skip)

# skipped
async def test_skips_handler(trio_server, autojump_clock):
    await ends_early(trio_server(stays), pytest.skip)

# xfail
async def test_fails_as_expected(trio_server, autojump_clock):
    await ends_early(trio_server(fails), pytest.xfail)

def test_nothing_is_left():
    assert open_descriptors() == before
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """What becomes of each of these tests: its outcome, and what pytest says of it."""
    folder, began = tmp_path_factory.mktemp("theirs"), time.monotonic()
    (folder / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
    (folder / "test_theirs.py").write_text(BEGINNING + THEIRS, encoding="utf-8")
    told = pytest_says("-v", "-p", "no:cacheprovider", "-p", "no:randomly", cwd=folder)
    assert "INTERNALERROR" not in told
    assert "TrioInternalError" not in told
    assert time.monotonic() - began < 30  # nobody has waited for the sixty seconds of a crash
    outcomes = re.findall(r"^test_theirs\.py::(\w+) ([A-Z]+)", told, re.MULTILINE)
    failed = failures(told)
    return {name: (outcome.lower(), failed.get(name, "")) for name, outcome in outcomes}


SAID = re.compile(r"^(?:# (\w+)(?:: (.+))?\n)?(?:@.*\n)?(?:async )?def (test_\w+)", re.MULTILINE)
"""What has to become of each test, and what pytest has to say: in the line before it."""


@pytest.mark.slow
@pytest.mark.parametrize(("outcome", "told", "test"), SAID.findall(THEIRS))
def test_what_becomes_of_tests(theirs, test, outcome, told):
    """Each has its own outcome, and pytest says why; none is harmed by the one before it.

    PY-05: a server that needs another is closed before it; each can be stopped by itself, too.
    PY-03, PY-04: all errors are told, of the test and of each handler, with a traceback. PY-01,
    PY-09: a request that goes on is named, by a virtual second; nothing is left, also by tests
    that fail. PY-02: the server's own error ends the test at once. PY-10: what a start raises
    comes out of the fixture's call, bare. PY-06: a test that cannot have the fixture is told what
    there is for it. Who skips expects nothing any more, also of the server.
    """
    came, said = theirs[test]
    assert came == (outcome or "passed"), said
    for text in filter(None, told.split(" | ")):
        assert text in said


@table(
    ("mark", "options", "outcome", "told"),
    {
        "a mark does, where only some tests are of Trio": (
            *("@pytest.mark.trio\n", [], "passed", "1 passed"),
        ),
        "PY-06: without trio_mode a test has to be marked": (
            *("", [], "errors", "mark it (pytest.mark.trio), or set trio_mode"),
        ),
        "PY-06: pytest-trio is named where it is not": (
            *("", ["-p", "no:trio"], "errors", "it needs pytest-trio, which is not installed"),
        ),
    },
)
def test_tests_without_the_mode(suite, mark, options, outcome, told):
    """In a suite that has tests of other kinds."""
    suite.makeini("[pytest]\n")
    tests = f"{mark}async def test_it(trio_server):\n    await trio_server(Upper)\n"
    result = result_of(suite, tests, *options)
    result.assert_outcomes(**{outcome: 1})
    assert told in result.stdout.str()


def test_another_attempt(suite):
    """A test that is run again, as pytest-rerunfailures does it, has its fixture again."""
    suite.makeconftest("""
        from _pytest.runner import runtestprotocol

        def pytest_runtest_protocol(item, nextitem):
            for is_last in (False, False, True):
                item._initrequest()
                runtestprotocol(item, nextitem=nextitem, log=is_last)
            return True
        """)
    tests = """
        attempts = []

        @pytest.mark.parametrize("number", [1, 2])
        async def test_flaky(trio_server, scripted_server, number):
            attempts.append(trio_server)
            assert len(attempts) >= 3
        """
    result_of(suite, tests).assert_outcomes(passed=2)


def test_exit_ends_the_session(suite):
    """``pytest.exit`` in a test with a server is what it says."""
    tests = """
        async def test_exits(trio_server):
            await trio_server(Upper)
            pytest.exit("enough", returncode=7)

        def test_next():
            pass
        """
    result = result_of(suite, tests)
    assert result.ret == 7
    result.stdout.fnmatch_lines(["*Exit: enough*"])
    result.assert_outcomes()


@pytest.mark.slow
def test_many(suite):
    """PY-07: ports and paths never clash, on many workers, and no test depends on another one.

    ``-x`` ends it with nothing left.
    """
    shuffle = """
        import random

        def pytest_collection_modifyitems(items):
            random.Random(3).shuffle(items)
        """
    many = """
@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("transport", ["memory", "tcp", "unix"])
async def test_it(trio_server, transport, number):
    server = await trio_server(Upper, transport=transport)
    client = await server.connect()
    await client.send_all(b"hello\\n")
    assert await client.receive_some() == b"HELLO\\n"
"""
    wrong = """
async def test_wrong(trio_server):
    await (await trio_server(stays, transport="tcp")).connect()
    assert False
"""
    suite.makepyfile(test_theirs=BEGINNING + many)
    suite.makeconftest(shuffle)
    result = suite.runpytest_subprocess("-n", "4", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=36)
    before = descriptors()
    result = result_of(suite, many + wrong, "-x")
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    assert open_descriptors() == before


@pytest.mark.slow
def test_ctrl_c(suite, tmp_path):
    """PY-07: in the middle of a test it ends everything: no process, no socket file, no trace."""
    tests = """
import os

async def test_it(trio_server, tmp_path):
    path = str(tmp_path / "socket")
    server = trioserver.ProcessUnixStreamServer(path, socket_upper, min_children=2)
    running = await trio_server(server, transport="unix")
    with open("facts", "w") as facts:
        print(path, *server.active_children, file=facts)
    os.rename("facts", "facts of it")
    await trio.sleep(60)
"""
    suite.makepyfile(test_theirs=BEGINNING + tests)
    facts = suite.path / "facts of it"
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'it'}"],
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
    assert len(pids) == 2
    assert not any(os.path.lexists(left) for left in (path, *(f"/proc/{pid}" for pid in pids)))
