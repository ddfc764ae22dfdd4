"""The README: its code runs, does what the text beside it says, and its links lead somewhere."""

import re
import textwrap
from pathlib import Path

import pytest
import trio
from support import read_to_end
from support.programs import Client, interrupted, listening, program

import trioserver

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def first_example():
    """The first example, on a port that is free."""
    assert blocks("python")[0].count("9999") == 1
    return blocks("python")[0].replace("9999", "0")


@pytest.fixture
def server():
    """The server of the first example."""
    names = {"__name__": "readme"}
    exec(first_example(), names)  # noqa: S102  (that is what a reader does with it)
    made = names["server"]
    assert isinstance(made, trioserver.TCPServer)
    return made


def test_readme_code_is_all_tested():
    """It has three examples; tests for a fourth one would belong here."""
    assert len(blocks("python")) == 3


async def test_readme_first_example_serves(server, nursery):
    """The first example answers line after line in upper case."""
    await nursery.start(server.serve_forever)
    async with await trio.open_tcp_stream(*server.server_address) as stream:
        for line in (b"hello\n", b"again\n"):
            await Client(stream).asks(line, line.upper())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
async def test_readme_first_example_drains_at_a_signal(name, tmp_path):
    """Run as a program, it lets its idle client go at the first signal, and ends with status 0."""
    logging = 'import logging\nlogging.basicConfig(level=logging.INFO, format="%(message)s")\n'
    path = tmp_path / "readme_example.py"
    path.write_text(logging + first_example(), encoding="utf-8")
    async with program(path) as process:
        host, _, port = (await listening(process)).rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await Client(stream).asks(b"hello\n", b"HELLO\n")
            status, _, logged = await interrupted(process, name)
            assert await read_to_end(stream) == b""
    assert status == 0
    assert "draining" in logged
    assert "Traceback" not in logged


async def stay(address, *, task_status):
    """A client that asks once, and stays until it is let go."""
    client = Client(await trio.open_tcp_stream(*address))
    await client.asks(b"hello\n", b"HELLO\n")
    task_status.started()
    assert await client.hears_all() == b""


async def test_readme_stopping_example_stops(server, nursery):
    """The second example serves where its dots are, then drains, and tells who was there."""
    example = textwrap.indent(blocks("python")[1], "    ")
    assert example.count("        ...\n") == 1
    source = f"async def stopping():\n{example}    return report\n"
    source = source.replace("...\n", "await clients.start(stay, (host, port))\n")
    names = {"trio": trio, "server": server, "clients": nursery, "stay": stay}
    exec(source, names)  # noqa: S102  (as above)
    with trio.fail_after(10):
        report = await names["stopping"]()
    assert isinstance(report, trioserver.ShutdownReport)
    assert report.grace == 5
    assert [record.outcome for record in report.requests] == ["drained"]


async def test_readme_block_serves_and_drains(server, nursery):
    """`async with server.serving():` is the same as a block, as the README says."""
    assert "`async with server.serving():`" in README
    with trio.fail_after(10):
        async with server.serving():
            await nursery.start(stay, server.server_address)
        report = await server.wait_closed()
    assert [record.outcome for record in report.requests] == ["drained"]


@pytest.mark.parametrize("reply", ["await request.recv()", 'b"wrong"'])
def test_readme_test_file(reply, pytester):
    """The third example is a whole test file; it passes, and fails if its server is wrong."""
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    pytester.makepyfile(blocks("python")[2].replace("await request.recv()", reply))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    passes = reply == "await request.recv()"
    result.assert_outcomes(passed=passes, failed=not passes)


def test_readme_links_lead_somewhere():
    """Links inside the repository name files that are there."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
