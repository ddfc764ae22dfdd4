"""What a service manager hears of a program, and when; and that nobody else speaks for it."""

import os
import re
import socket
import sys
import time

import pytest
import trio
from support import until
from support.in_memory_programs import on_visit, order, until_draining
from support.scenes import table
from support.service_manager import stand_in

import trioserver
from trioserver import Timeouts
from trioserver.testing import MemoryServer

pytestmark = pytest.mark.usefixtures("handlers")


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """Such a service manager."""
    with stand_in(str(tmp_path / "notify"), monkeypatch) as it:
        yield it


@table(
    "address",
    {"on a path": lambda folder: str(folder / "n"), "by a name": lambda _: b"\0trioserver-" + NAME},
)
def test_whole_life(address, tmp_path, monkeypatch):
    """It hears when everything listens, and when it ends, each with a sentence about it."""

    async def end(server):
        order("SIGTERM")
        await until_draining(server)

    with stand_in(address(tmp_path), monkeypatch) as manager:
        trioserver.run(on_visit(end))
        assert manager.heard[:2] == [
            {"READY": "1", "STATUS": "serves memory:1"},
            {"STOPPING": "1", "STATUS": "drains"},
        ]


NAME = str(os.getpid()).encode()


async def nobody(request, client_address, server):
    """Is never called."""
    raise AssertionError


class Slow(MemoryServer):
    """Takes three seconds to bind."""

    async def server_bind(self):
        await trio.sleep(3)
        return await super().server_bind()


def test_ready_when_all_listen(manager, virtual_clock):
    """Not before the last of them does; and not at all if it ends before."""
    seen = []

    async def look(server):
        seen.append(manager.values("READY"))
        await trio.sleep(4)
        seen.append(manager.values("READY"))
        order("SIGTERM")

    trioserver.run(on_visit(look), Slow(("memory", 2), nobody))
    assert seen == [[], ["1"]]
    assert manager.values("STATUS")[0] == "serves memory:1, memory:2"


def test_end_before_it_is_ready(manager, virtual_clock):
    """Then it was never ready, and says that it stops."""

    async def end(server):
        order("SIGTERM")

    trioserver.run(on_visit(end), Slow(("memory", 2), nobody))
    assert (manager.values("READY"), manager.values("STOPPING")) == ([], ["1"])


@table(
    ("grace", "cleanup", "lasts"),
    {
        "as long as a request lasts": (60, 5, 12),
        "until the grace is over": (11, 5, 11),
        "and never longer than the clean-up": (0, 6, 6),
    },
)
def test_end_is_put_off(grace, cleanup, lasts, manager, virtual_clock):
    """By a few seconds at a time, never beyond what the program itself allows."""

    async def take_long(server):
        order("SIGTERM")
        with trio.CancelScope(shield=grace == 0):
            await trio.sleep(12)

    timeouts = Timeouts(shutdown=grace, cleanup=cleanup, linger=0)
    trioserver.run(on_visit(take_long, timeouts=timeouts))
    put_off = [int(usec) / 1e6 for usec in manager.values("EXTEND_TIMEOUT_USEC")]
    at = [2.5 * number for number in range(len(put_off))]
    assert put_off == [min(5, grace + cleanup - began) for began in at]
    assert at[-1] <= lasts < at[-1] + 2.5
    assert "drains: 1 requests are left" in manager.values("STATUS")


def test_reload(manager):
    """It hears that the program reloads, when that began, and that it is ready again."""

    async def reload(server):
        order("SIGHUP")
        await trio.testing.wait_all_tasks_blocked()
        order("SIGTERM")

    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    trioserver.run(on_visit(reload))
    reloads, ready = manager.heard[1:3]
    assert (reloads["RELOADING"], ready["READY"]) == ("1", "1")
    assert before <= int(reloads["MONOTONIC_USEC"])
    assert (reloads["STATUS"], ready["STATUS"]) == ("reloads", "serves memory:1")


def test_pause(manager, virtual_clock):
    """While it is only unready, it does not stop yet."""
    seen = []

    async def look(server):
        order("SIGTERM")
        await trio.sleep(2)
        seen.extend([manager.values("STATUS")[-1], manager.values("STOPPING")])
        await trio.sleep(2)

    trioserver.run(on_visit(look), ready_off=3)
    assert seen == ["says that it is not ready, and drains in 3 s", []]
    assert manager.values("STOPPING") == ["1"]


# Signs of life ----------------------------------------------------------------------


def test_signs_of_life(manager, monkeypatch, virtual_clock):
    """Twice as often as the service manager wants them, from the start to the end."""
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

    async def stay(server):
        await trio.sleep(9)
        order("SIGTERM")
        await trio.sleep(3)

    trioserver.run(on_visit(stay))
    assert len(manager.values("WATCHDOG")) == 7  # at 0, 2, ..., 12


def test_no_sign_of_life_while_a_handler_blocks(manager, monkeypatch):
    """A loop that does not turn has no life: nobody vouches for it from a thread."""
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    counts = []

    async def block(server):
        await until(lambda: len(manager.values("WATCHDOG")) > 2)
        time.sleep(0.01)  # noqa: ASYNC251  (what was sent before is there)
        counts.append(len(manager.values("WATCHDOG")))
        time.sleep(0.5)  # noqa: ASYNC251  (that is the fault)
        counts.append(len(manager.values("WATCHDOG")))
        await until(lambda: len(manager.values("WATCHDOG")) > counts[0])
        order("SIGTERM")

    trioserver.run(on_visit(block))
    assert counts[0] == counts[1]


def test_nobody_wants_signs_of_life(manager, monkeypatch, virtual_clock):
    """Or it wants those of another process."""
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")

    async def stay(server):
        await trio.sleep(9)
        order("SIGTERM")

    trioserver.run(on_visit(stay))
    assert manager.values("WATCHDOG") == []


# Whose variables they are -----------------------------------------------------------


def test_variables_are_for_the_program_alone(manager, monkeypatch):
    """Whatever it starts does not find them; when it has ended, they are as they were."""
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    shown = "import os; print([it for it in os.environ if it[:6] in ('NOTIFY', 'WATCHD')])"
    seen = []

    async def start(server):
        done = await trio.run_process([sys.executable, "-c", shown], capture_stdout=True)
        seen.append(done.stdout)
        order("SIGTERM")

    before = dict(os.environ)
    trioserver.run(on_visit(start))
    assert seen == [b"[]\n"]
    assert dict(os.environ) == before


@table(
    ("variables", "message"),
    {
        "a socket that is none": ({"NOTIFY_SOCKET": "vsock:2:1"}, "NOTIFY_SOCKET is 'vsock:2:1'"),
        "nobody is there": ({"NOTIFY_SOCKET": "/none"}, r"cannot tell the service manager"),
        "no number": ({"WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC is 'soon'; a number of micro"),
        "no time at all": ({"WATCHDOG_USEC": "0"}, "WATCHDOG_USEC is '0'; a number of micro"),
    },
)
def test_variables_that_make_no_sense(variables, message, monkeypatch, caplog):
    """They are told of once, and the program serves."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    async def end(server):
        order("SIGHUP")
        await trio.testing.wait_all_tasks_blocked()
        order("SIGTERM")

    assert trioserver.run(on_visit(end))[0].clean
    (warning,) = [it for it in caplog.records if it.name == "trioserver.error"]
    assert re.match(message, warning.getMessage())


def test_full_queue(tmp_path, monkeypatch, caplog):
    """Somebody who does not listen costs a second, and neither the end nor a client."""
    monkeypatch.setattr("trioserver._program.service_manager.PATIENCE", 0.05)
    with stand_in(str(tmp_path / "n"), monkeypatch, listens=False) as manager:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
            flood.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    flood.sendto(b"x=y", str(tmp_path / "n"))

        async def end(server):
            order("SIGTERM")

        assert trioserver.run(on_visit(end))[0].clean
        assert "cannot tell the service manager (NOTIFY_SOCKET): timed out" in caplog.text
        assert manager.values("READY") == []


def test_text_of_an_address_cannot_speak(manager):
    """What is in a sentence stays one: a name with a line break adds no variable."""

    async def end(server):
        order("SIGTERM")

    server = on_visit(end)
    server.server_address = ("x\nMAINPID=1", 1)
    trioserver.run(server)
    assert manager.values("MAINPID") == []
    assert manager.values("STATUS")[0] == r"serves x\nMAINPID=1:1"
