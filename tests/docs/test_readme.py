"""The README: its code runs, does what the text beside it says, and its links lead somewhere."""

import re
import socket
import textwrap

import pytest
import trio
from support import read_to_end
from support.pages import DOCS
from support.programs import Client, interrupted, listening, program

README = (DOCS.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SERVING, STOPPING, LOOKING, TEST = EXAMPLES
HERE = ("127.0.0.1", 0)
ON_A_FREE_PORT = SERVING.replace("9999", "0")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
async def test_readme_first_example_drains_at_a_signal(name, tmp_path):
    """Run as a program, it lets its idle client go at the first signal, and ends with status 0."""
    logging = 'import logging\nlogging.basicConfig(level=logging.INFO, format="%(message)s")\n'
    path = tmp_path / "readme_example.py"
    path.write_text(logging + ON_A_FREE_PORT, encoding="utf-8")
    async with program(path) as process:
        host, port = await listening(process)
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await Client(stream).asks(b"hello\n", b"HELLO\n")
            _, logged = await interrupted(process, name)
            assert await read_to_end(stream) == b""
    assert "draining" in logged


async def stay(address, *, task_status):
    """A client that asks line after line, and stays until it is let go."""
    client = Client(await trio.open_tcp_stream(*address))
    for line in (b"hello\n", b"again\n"):
        await client.asks(line, line.upper())
    task_status.started()
    assert await client.hears_all() == b""


async def test_readme_stopping_example_stops(nursery):
    """The second example serves where its dots are, then drains, and tells who was there.

    `async with server.serving():` is the same as a block, as the README says.
    """
    example = textwrap.indent(STOPPING, "    ")
    source = f"async def stopping():\n{example}    return report\n"
    source = source.replace("...\n", "await clients.start(stay, (host, port))\n")
    names = {"__name__": "readme", "trio": trio, "clients": nursery, "stay": stay}
    exec(ON_A_FREE_PORT + source, names)  # noqa: S102  (that is what a reader does with it)
    server = names["server"]
    with trio.fail_after(10):
        reports = [await names["stopping"]()]
        assert "`async with server.serving():`" in README
        async with server.serving():
            await nursery.start(stay, server.server_address)
        reports.append(await server.wait_closed())
    assert reports[0].grace == 5
    assert [[it.outcome for it in report.requests] for report in reports] == [["drained"]] * 2


async def said(process, *words):
    """Wait until a program has logged all of these."""
    logged = ""
    while not all(word in logged for word in words):
        portion = await process.stderr.receive_some()
        assert portion, logged
        logged += portion.decode()


async def test_readme_looking_example_shows(tmp_path):
    """The third example serves, and shows what it serves at the address that stands there."""
    with socket.create_server(HERE) as one, socket.create_server(HERE) as other:
        serves_on, port = one.getsockname()[1], other.getsockname()[1]
    assert SERVING.rstrip().endswith("trioserver.run(server)")
    definitions = SERVING.replace("9999", str(serves_on)).partition("\nif __name__")[0]
    logging = 'import logging\nlogging.basicConfig(level=logging.INFO, format="%(message)s")\n'
    path = tmp_path / "readme_example.py"
    path.write_text(f"{logging}{definitions}\n{LOOKING.replace('9998', str(port))}")
    async with program(path) as process:
        await said(process, f":{serves_on}", f":{port}")
        async with await trio.open_tcp_stream("localhost", serves_on) as stream:
            await Client(stream).asks(b"hello\n", b"HELLO\n")
            with trio.fail_after(10):
                shown = ""
                while '"active":1' not in shown.replace(" ", ""):
                    async with await trio.open_tcp_stream("127.0.0.1", port) as viewer:
                        await viewer.send_all(b'{"watch": {}}\n')
                        shown = (await viewer.receive_some(100_000)).decode()
        await interrupted(process)


@pytest.mark.parametrize("reply", ["await request.recv()", 'b"wrong"'])
def test_readme_test_file(reply, pytester):
    """The last example is a whole test file; it passes, and fails if its server is wrong."""
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    pytester.makepyfile(TEST.replace("await request.recv()", reply))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    passes = reply == "await request.recv()"
    result.assert_outcomes(passed=passes, failed=not passes)


def test_readme_links_lead_somewhere():
    """Links inside the repository name files that are there."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (DOCS.parent / link).exists()] == []
