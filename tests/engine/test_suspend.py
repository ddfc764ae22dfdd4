"""A server that is suspended: who is there goes on, and who comes waits in the queue."""

from operator import methodcaller

import pytest
import trio
from support import Upper, hold, running, until
from support.listening import LOOPBACK, asked
from support.memory import MEMORY, ask, come, memory, noting
from support.scenes import Scene, Visit, end, table
from support.sweeping import Careful, InMemory, OnTCP, OnUnix, Setting, suspend_a_while
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver import Limits
from trioserver.testing import MemoryServer


async def tell(client):
    """That there is no slot."""
    await client.sendall(b"full")


suspend, resume = methodcaller("suspend"), methodcaller("resume")
meanwhile = {1: suspend, 5: resume}
one = {0: [b"one\n", end]}


@table(
    {
        "who comes while it is suspended is served when it goes on": Scene(
            Upper, {2: [b"a\n", end]}, comes_at=2, meanwhile=meanwhile
        ).gives(b"A\n", 5, "completed"),
        "who was there before notices nothing": Scene(
            Upper, {0: b"a\n", 3: [b"b\n", end]}, meanwhile=meanwhile
        ).gives(b"A\nB\n", 3, "completed"),
        "who comes and leaves again meanwhile is a client all the same": Scene(
            Upper, one, meanwhile=meanwhile
        )
        .gives(b"ONE\n", 0, "completed", "completed")
        .beside(Visit({3: end}, comes_at=2).gives(b"", 5)),
        "a drain that comes first serves who is queued": Scene(
            Upper, {2: [b"a\n", end]}, comes_at=2, meanwhile={1: suspend}, drain_at=4
        ).gives(b"A\n", 4, "completed", closed_at=4),
        "to suspend, or to go on, twice is once": Scene(
            Upper,
            {2: [b"a\n", end]},
            comes_at=2,
            meanwhile={1: suspend, 3: suspend, 5: resume, 6: resume},
        ).gives(b"A\n", 5, "completed"),
        "to go on without having been suspended is nothing": Scene(
            Upper, one, meanwhile={0: resume}
        ).gives(b"ONE\n", 0, "completed"),
        "a slot that becomes free is nobody's until it goes on": Scene(
            Upper, {2: [b"a\n", end]}, limits=Limits(requests=1), meanwhile=meanwhile
        )
        .gives(b"A\n", 2, "completed", "completed")
        .beside(Visit({0: [b"b\n", end]}).gives(b"B\n", 5)),
        "who finds no slot is told so only when it goes on": Scene(
            Upper,
            {9: end},
            limits=Limits(requests=1, when_full=tell),
            meanwhile=meanwhile,
        )
        .gives(b"", 9)
        .beside(Visit({}, comes_at=2).gives(b"full", 5)),
    }
)
async def test_suspended(scene, autojump_clock):
    """LC-10: who is there, who comes, and who waits."""
    await scene.play()


async def test_who_comes_in_the_very_step():
    """A client that had connected, but was not accepted, waits, too; and nothing spins."""
    server = memory(Upper)
    async with server.serving():
        await wait_all_tasks_blocked()
        client = server.listener.connect_now()
        server.suspend()
        for _ in range(3):
            await wait_all_tasks_blocked()
            assert server.statistics().accepted == 0
        assert [it.accepting for it in server.snapshot().listeners] == [False]
        assert server.snapshot().state == "suspended"
        server.resume()
        assert server.snapshot().state == "serving"
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        await client.aclose()


async def test_server_that_is_suspended_before_it_serves(autojump_clock):
    """It begins to serve so; and `handle_request` takes nobody, however long it waits."""
    timed_out = []
    kind = noting(
        MemoryServer, ["handle_timeout"], lambda *_: timed_out.append(trio.current_time())
    )
    server = memory(Upper, kind, timeout=3)
    async with server:
        server.suspend()
        assert server.snapshot().state == "bound"
        (client,) = await come(server)
        await server.handle_request()
        assert (timed_out, server.statistics().accepted) == ([3], 0)
        async with server.serving():
            await wait_all_tasks_blocked()
            assert server.statistics().accepted == 0
            server.resume()
            assert await ask(server) == b"HELLO\n"
            await client.aclose()


@table(
    ("kind", "address"),
    {"on TCP": (trioserver.TCPServer, LOOPBACK), "on Unix": (trioserver.UnixStreamServer, "s")},
)
async def test_suspended_on_sockets(kind, address, tmp_path, monkeypatch):
    """The kernel keeps who connects, and lets go of them in order."""
    monkeypatch.chdir(tmp_path)
    server, answers = kind(address, Upper), []

    async def asks():
        answers.append(await asked(where))

    async with running(server) as where, trio.open_nursery() as nursery:
        server.suspend()
        nursery.start_soon(asks)
        await wait_all_tasks_blocked(0.05)
        assert server.statistics().accepted == 0
        server.resume()
        await until(lambda: answers == [b"ASKED\n"])


@table(
    ("server", "message"),
    {
        "who serves datagrams": (trioserver.UDPServer(LOOPBACK, hold), "no connection"),
        "who is on a path, of datagrams": (trioserver.UnixDatagramServer("d", hold), "drops what"),
    },
)
async def test_servers_that_cannot_be_suspended(server, message, tmp_path, monkeypatch):
    """They say why, and go on."""
    monkeypatch.chdir(tmp_path)
    async with running(server):
        with pytest.raises(RuntimeError, match=message):
            server.suspend()
        assert server.snapshot().state == "serving"


@pytest.mark.parametrize("name", ["suspend", "resume", "hand_over"])
async def test_calls_at_the_wrong_time_or_place(name):
    """They are for a server that is bound, in its own thread: anything else says what to do."""
    server = MemoryServer(MEMORY, hold)
    call = getattr(server, name)
    with pytest.raises(RuntimeError, match="is not bound: use `async with server:`"):
        call()
    async with server.serving():
        with pytest.raises(RuntimeError, match=f"from_thread.run_sync\\(server.{name}\\)"):
            await trio.to_thread.run_sync(call)
        assert server.snapshot().state == "serving"
        if name != "hand_over":
            await trio.to_thread.run_sync(trio.from_thread.run_sync, call)


@pytest.mark.parametrize("kind", [InMemory, OnTCP, OnUnix])
def test_suspended_after_every_step(kind):
    """Wherever it is suspended for a while, everybody gets all replies, and nothing is left."""
    seeds = (0, 1, 2) if kind is InMemory else (0,)
    steps = Setting(kind, [suspend_a_while], Careful, gentle=True).sweep(seeds=seeds)
    assert steps > 50
