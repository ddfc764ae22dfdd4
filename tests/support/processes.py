"""What tests of handlers in worker processes share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

import trioserver
from support import process_handlers as handlers
from support import until
from trioserver import WorkerStartError

from .threads import THERE, ask

SOON = 1.0
"""Seconds, generously, for what happens at once: the wrong way takes more."""


def on_tcp(handler: Any, **fields: Any) -> trioserver.ProcessTCPServer:
    """A server with one worker on the loopback interface."""
    return trioserver.ProcessTCPServer(THERE, handler, **{"min_children": 1, **fields})


def both(name: str) -> Any:
    """The handler of that name, and its asynchronous twin, in turn."""
    twin = f"Async{name}" if name[0].isupper() else f"a{name}"
    found = [getattr(handlers, name), getattr(handlers, twin)]
    return pytest.mark.parametrize("handler", found, ids=["sync", "async"])


def is_there(pid: int) -> bool:
    """Whether a process runs, or waits to be reaped."""
    return Path(f"/proc/{pid}").exists()


async def is_served(server: Any) -> int:
    """The next client is; who by."""
    return int((await ask(server, b"nothing")).removeprefix(b"begun."))


async def fails_to_start(server: Any, kind: type[Exception] = WorkerStartError) -> str:
    """The message of the error with which it does, and of nothing around it."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            with pytest.raises(kind) as caught:
                await nursery.start(server.serve_forever)
    assert server.active_children == []
    assert server.socket is None
    return str(caught.value)


def _calls(path: Path) -> list[float]:
    return [float(line) for line in Path(f"{path}.calls").read_text().splitlines()]


def is_running(pid: int) -> bool:
    """Whether a process runs; not, once it waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


async def are_idle(server: Any, number: int) -> None:
    """Wait until so many workers are ready, and have nothing to do."""
    await until(lambda: len(server._run.resources._idle) == number)


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
    ),
}
