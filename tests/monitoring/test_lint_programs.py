"""The lints, told by programs: what each one finds in a server that runs, and what it leaves."""

import contextlib
import errno
import json
import logging
import sys

import pytest
import trio
from support.scenes import table

import trioserver
from trioserver.monitoring import Linter, as_text, log_findings, task_tree
from trioserver.monitoring._lints import log_findings as module
from trioserver.testing import Findings, MemoryServer, no_findings, open_test_server

# Handlers ---------------------------------------------------------------------------


async def deaf_sleep(seconds):
    """Sleep as what a cancellation cannot reach does: a call in a thread, say."""
    task = trio.lowlevel.current_task()

    async def wake():
        await trio.sleep(seconds)
        trio.lowlevel.reschedule(task)

    trio.lowlevel.spawn_system_task(wake)
    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)


class Program:
    """A server in memory, and the nursery around it, for handlers that start tasks there."""

    def __init__(self, nursery):
        self.nursery = nursery

    async def waits(self, request, client_address, server):
        await trio.sleep(4000)

    async def waits_within_a_deadline(self, request, client_address, server):
        request.cancel_scope.deadline = trio.current_time() + 5000
        await trio.sleep(4000)

    async def hears_nothing(self, request, client_address, server):
        with trio.move_on_after(1):
            await deaf_sleep(10)

    async def hears(self, request, client_address, server):
        with trio.move_on_after(1):
            await trio.sleep(10)
        await trio.sleep(10)

    async def cleans_up_for_long(self, request, client_address, server):
        await self.clean_up(20)

    async def cleans_up(self, request, client_address, server):
        await self.clean_up(4)

    async def clean_up(self, seconds):
        with trio.move_on_after(1):
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(seconds)

    async def leaks_a_child(self, request, client_address, server):
        self.nursery.start_soon(trio.sleep, 20)

    async def waits_for_its_child(self, request, client_address, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 20)

    async def writes(self, request, client_address, server):
        await request.sendall(bytes(1_000_000))


async def visited(program, handler, *, reads_at=None):
    """One client's visit to a handler, within which nothing may be wrong."""
    server = MemoryServer(("memory", 1), getattr(program, handler))
    async with server.serving(), no_findings(server):
        client = await server.connect()
        if reads_at is not None:
            await trio.sleep(reads_at)
        if reads_at is None or reads_at < 20:
            while await client.receive_some():
                pass
        await client.aclose()
        await trio.sleep(100)


@table(
    "handler, reads_at, lint",
    {
        "A request that waits for more than an hour": ("waits", None, "no-deadline"),
        "within a deadline of its own it is fine": ("waits_within_a_deadline", None, None),
        "A task that hears nothing": ("hears_nothing", None, "swallowed-cancellation"),
        "one that hears goes on": ("hears", None, None),
        "A clean-up of 20 seconds": ("cleans_up_for_long", None, "long-shield"),
        "of four is fine": ("cleans_up", None, None),
        "A child in a nursery of the program's": ("leaks_a_child", None, "child-outlives-request"),
        "in one of the handler's it is fine": ("waits_for_its_child", None, None),
        "A client that does not read": ("writes", 25, "reader-never-reads"),
        "one that reads later is fine": ("writes", 5, None),
    },
)
async def test_programs(handler, reads_at, lint, autojump_clock):
    """Each lint finds what it is for in a server that runs, and leaves alone what is right."""
    async with trio.open_nursery() as nursery:
        program = Program(nursery)
        if lint is None:
            await visited(program, handler, reads_at=reads_at)
        else:
            with pytest.raises(Findings) as raised:
                await visited(program, handler, reads_at=reads_at)
            [found] = raised.value.findings
            assert (found.lint, found.server, found.request) == (lint, 0, 1) or (
                # its request is of no server any more
                (found.lint, found.request) == (lint, 1) and lint == "child-outlives-request"
            )
            assert str(raised.value) == f"the lints have found:\n{found}"
            json.dumps(found.as_json())
        nursery.cancel_scope.cancel(reason="the test is over")


class Picky(trioserver.TCPServer):
    """Has no descriptor left for a client, for a while."""

    def get_request(self, listener):
        if not self.may_go.is_set():
            raise OSError(errno.EMFILE, "too many open files")
        return super().get_request(listener)


async def handle(request, client_address, server):
    """Say hello."""
    await request.sendall(b"hello")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of the queue")
@pytest.mark.parametrize("is_picky", [True, False])
async def test_idle_slots(is_picky):
    """Clients that wait before a server with free slots are found, by real sockets."""
    server = (Picky if is_picky else trioserver.TCPServer)(("127.0.0.1", 0), handle)
    vars(server)["may_go"] = trio.Event()
    linter = Linter(idle_slots=0.05)
    with trio.fail_after(20):
        async with server.serving():
            client = await trio.open_tcp_stream(*server.server_address)
            found = []
            if is_picky:
                while not found:
                    found = linter.look(task_tree(), [server.snapshot()])
                    await trio.sleep(0.02)
                server.may_go.set()
            else:
                assert await client.receive_some() == b"hello"
                for _ in range(5):
                    found += linter.look(task_tree(), [server.snapshot()])
                    await trio.sleep(0.02)
            assert [it.lint for it in found] == ["idle-slots"] * is_picky
            await client.aclose()


async def test_spinning_task_is_found():
    """A task that catches its cancellation again and again is found by a real clock, too."""

    async def spins(request, client_address, server):
        end = trio.current_time() + 0.5
        with trio.move_on_after(0):
            while trio.current_time() < end:
                with contextlib.suppress(trio.Cancelled):  # this is what is wrong
                    await trio.lowlevel.checkpoint()

    linter = Linter(swallowed_cancellation=0.1)
    with trio.fail_after(20), pytest.raises(Findings, match=r"let trio.Cancelled pass"):
        async with (
            open_test_server(spins) as server,
            no_findings(server, every=0.02, linter=linter),
        ):
            client = await server.connect()
            assert await client.receive_some() == b""


# In tests --------------------------------------------------------------------------


async def test_the_clock_is_left_alone(autojump_clock):
    """Looking makes no jump: a block that only waits for others takes no time, and ends."""
    async with no_findings():
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == 0
        await trio.sleep(10**6)
        assert trio.current_time() == 10**6


async def test_own_failure_comes_first(autojump_clock):
    """What the block raises is raised, with what was found as a note; and the instrument goes."""
    with pytest.raises(KeyError) as raised:
        async with no_findings():
            with trio.move_on_after(1):
                await deaf_sleep(10)
            raise KeyError
    assert "swallowed-cancellation" in "".join(raised.value.__notes__)
    async with no_findings():
        pass


async def test_fixture_takes_a_linter(trio_server, autojump_clock):
    """The fixture's servers take a linter, too; one that finds nothing changes nothing."""
    server = await trio_server(handle, linter=Linter())
    client = await server.connect()
    assert await client.receive_some(100) == b"hello"


@pytest.mark.parametrize("servers", [5, None, ["a"], "a"])
async def test_no_servers(servers):
    """What is no server is refused at once."""
    with pytest.raises(TypeError, match=r"servers must be a server or several, not (5|None|'a')"):
        await log_findings(servers)


@pytest.mark.parametrize("every", [0, -1, float("inf"), "1", True])
@pytest.mark.parametrize("use", [lambda every: no_findings(every=every).__aenter__, None])
async def test_wrong_intervals(every, use):
    """What is no number of seconds above 0 is refused."""
    with pytest.raises((TypeError, ValueError), match="every must be a number of seconds"):
        await (log_findings((), every=every) if use is None else use(every)())


# In a program ----------------------------------------------------------------------


def told(caplog):
    """What was logged."""
    return [it.getMessage() for it in caplog.records if it.name == "trioserver.monitoring"]


async def test_log_findings(autojump_clock, caplog, nursery):
    """Each finding is logged once as long as it lasts, and again when it comes again."""
    server = MemoryServer(("memory", 1), Program(nursery).hears_nothing)
    async with server.serving():
        nursery.start_soon(log_findings, server)
        client = await server.connect()
        assert await client.receive_some() == b""
        [line] = told(caplog)
        assert line.startswith("swallowed-cancellation: task 'MemoryServer request 1 from ")
        assert f"at {__file__}:" in line
        assert "in deaf_sleep; let trio.Cancelled pass" in line
        client = await server.connect()
        assert await client.receive_some() == b""
        assert len(told(caplog)) == 2
    nursery.cancel_scope.cancel(reason="the test is over")


async def test_log_findings_fails_alone(autojump_clock, caplog, nursery, monkeypatch):
    """An error of the looking is logged once in a row, and it looks on."""

    class Broken(Linter):
        def look(self, tree, snapshots=(), *, due=0.0):
            if 5 < tree.at < 8:
                raise ValueError("broken")
            return super().look(tree, snapshots, due=due)

    monkeypatch.setattr(module, "task_tree", task_tree)
    nursery.start_soon(lambda: log_findings([], linter=Broken(no_deadline=1)))
    await trio.sleep(20)
    assert told(caplog) == ["looking for what is wrong has failed"]
    [record] = [it for it in caplog.records if it.name == "trioserver.monitoring"]
    assert record.levelno == logging.WARNING
    assert "ValueError: broken" in caplog.text
    nursery.cancel_scope.cancel(reason="the test is over")


async def test_looking_takes_a_twentieth(autojump_clock, nursery, monkeypatch):
    """What takes long comes seldom: after a look of 2 s, the next one is 38 s later."""
    real = iter(range(0, 10**6, 2))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(real)))
    seen = []

    class Noting(Linter):
        def look(self, tree, snapshots=(), *, due=0.0):
            seen.append(tree.at)
            return ()

    nursery.start_soon(lambda: log_findings([], linter=Noting()))
    await trio.sleep(100)
    assert seen == [0, 38, 76]
    nursery.cancel_scope.cancel(reason="the test is over")


def test_findings_are_lines():
    """Nothing found is no text."""
    assert as_text(Linter().look(trio.run(tree_of_now))) == ""


async def tree_of_now():
    """The tree of a program that does nothing else."""
    return task_tree()
