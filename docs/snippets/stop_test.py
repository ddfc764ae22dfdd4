import os
import signal

import pytest
import trio
import trioserver
from support.scenes import Scene, table

import stop


@pytest.fixture
def server():
    return trioserver.TCPServer(("127.0.0.1", 0), stop.Upper)


@pytest.mark.parametrize("way", [stop.as_a_task, stop.as_a_block])
async def test_inside_a_program(way, server, capsys):
    """Both ways to serve inside a program answer, drain and report."""
    with trio.fail_after(10):
        await way(server)
    printed = capsys.readouterr().out
    assert "b'HELLO\\n'" in printed
    assert "shutdown() was called" in printed


async def test_several(server, capsys):
    """Two servers under one nursery both answer, and both end."""
    with trio.fail_after(10):
        await stop.several(server, server.evolve())
    assert capsys.readouterr().out == "b'HELLO\\n'\n" * 2


class SignalWhenListening(trioserver.Observer):
    def server_listening(self, addresses):
        trio.lowlevel.spawn_system_task(self._signal)

    async def _signal(self):
        await trio.testing.wait_all_tasks_blocked()  # then the receiver is there
        os.kill(os.getpid(), signal.SIGUSR2)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGUSR2")
async def test_by_signal(server):
    """A signal of the program's own choice drains the server."""
    server = server.evolve(observers=[SignalWhenListening()])
    with trio.fail_after(10):
        await stop.by_signal(server)
    assert not server.draining


class Balancer(trioserver.Observer):
    """Looks whether the program is ready, has it told to end, and looks again."""

    def __init__(self, checks):
        self.checks, self.answers = checks, []

    def server_listening(self, addresses):
        if "checks" not in addresses[0]:
            trio.lowlevel.spawn_system_task(self._look)

    async def _look(self):
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):  # the second signal cuts the pause short
            self.answers.append(await self._check())
            signal.raise_signal(signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()

    async def _check(self):
        async with await trio.open_unix_socket(self.checks) as stream:
            await stream.send_all(b"GET /ready HTTP/1.1\r\n\r\n")
            return await stream.receive_some()


def test_behind_a_balancer(server, tmp_path):
    """It says that it is not ready before it drains."""
    balancer = Balancer(tmp_path / "checks")
    stop.behind_a_balancer(server.evolve(observers=[balancer]), balancer.checks)
    ready, unready = balancer.answers
    assert ready.startswith(b"HTTP/1.1 200 OK")
    assert unready.endswith(b"not ready: it is about to end\n")


@table(
    "scene",
    {
        "A handler whose loop was ended by a drain can still speak.": Scene(
            stop.Polite, {0: b"hello\n"}, drain_at=1, gets=b"HELLO\nBYE\n", ends_at=1
        ),
        "The same handler says nothing to a client that ends by itself.": Scene(
            stop.Polite, {0: lambda client: client.send_eof()}, gets=b""
        ),
        "A function that waits in an idle block echoes, and ends when the server drains.": Scene(
            stop.echo, {0: b"hello"}, drain_at=1, gets=b"hello", ends_at=1
        ),
    },
)
async def test_handlers(scene, autojump_clock):
    """What the handlers say."""
    await scene.play()


async def test_from_a_handler(autojump_clock):
    """A handler may shut its own server down, and still gets its reply out."""
    line = b"stop the server\n"
    played = await Scene(stop.Stoppable, {0: line}, gets=line.upper(), ends_at=0).play()
    assert (await played.server.wait_closed()).grace == 1
