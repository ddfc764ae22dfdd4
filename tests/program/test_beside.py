"""What a program does beside its servers: functions of the user's own, for as long as they last."""

import pytest
import trio
from support import hold
from support.in_memory_programs import ADDRESS, on_visit, order, until_draining, visited
from support.scenes import table
from support.workers import a_program

import trioserver
from trioserver.testing import MemoryServer

pytestmark = pytest.mark.usefixtures("handlers")

BROKEN = OSError("broken")


def test_beside_from_before_to_after():
    """It begins before servers listen, goes on through the drain, and is cancelled when all end."""
    told = []

    async def watch(servers):
        told.append([server.snapshot().state for server in servers])
        try:
            await until_draining(servers[0])
            told.append(servers[0].snapshot().state)
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            told.append(cancelled.reason)
            told.append([server.snapshot().state for server in servers])
            raise

    trioserver.run(visited("signals 15; sleep 1"), visited("sleep 2"), beside=[watch])
    assert told == [
        ["unbound", "unbound"],
        "draining",
        "the servers have ended",
        ["unbound", "unbound"],
    ]


def test_beside_that_returns():
    """One that returns is done; the servers go on, and so do others beside them."""
    told = []

    async def short(servers):
        told.append("short")

    async def long(servers):
        await until_draining(servers[0])
        told.append("long")

    async def end(server):
        while not told:
            await trio.lowlevel.checkpoint()
        order("SIGTERM")
        await until_draining(server)

    (report,) = trioserver.run(on_visit(end), beside=(short, long))
    assert told == ["short", "long"]
    assert len(report.completed) == 1


def test_beside_that_fails():
    """Its error ends the program, bare, as every nursery has it, and the servers with it."""

    async def fail(servers):
        while not servers[0].statistics().active:
            await trio.lowlevel.checkpoint()
        raise BROKEN

    server = visited("sleep_forever")
    with pytest.raises(OSError, match="broken") as caught:
        trioserver.run(server, beside=[fail])
    assert caught.value is BROKEN
    assert server.snapshot().state == "unbound"
    assert server.statistics().outcomes[trioserver.Outcome.CANCELLED] == 1


async def fits(servers):
    """What can run beside servers."""


@table(
    "beside, told",
    {
        "one function, and no list of them": (fits, "a list of async functions.*not <function"),
        "a plain function": ([fits, print], "print> is none"),
        "a coroutine's name": (["fits"], "'fits' is none"),
    },
)
def test_beside_that_is_refused(beside, told):
    """Before anything is bound, and in words."""
    with pytest.raises(TypeError, match=f"^beside must be .*{told}"):
        trioserver.run(MemoryServer(ADDRESS, hold), beside=beside)


def test_beside_workers(tmp_path):
    """With workers it runs in the process that has been started, and sees all of them."""
    definitions = """
async def watch(servers):
    while [it.state for it in servers[0].snapshot().workers] != ["serving"] * 2:
        await trio.sleep(0.01)
    logging.info("process %d sees 2 workers", os.getpid())
"""
    run = "server, workers=2, beside=[watch]"
    with a_program(tmp_path, run, definitions=definitions) as program:
        (pid,) = program.says(r"process (\d+) sees 2 workers")
        assert int(pid) == program.process.pid
        program.stops()
