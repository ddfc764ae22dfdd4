"""The phases of a worker: a table of what may follow what, and a pool that keeps to it."""

import pytest
from support import process_handlers as handlers
from support import running, until
from support.processes import on_tcp
from support.threads import ask

from trioserver._modes.processes.server.phase import Phase

MAY = {
    ("STARTING", "IDLE"),
    *(("IDLE", "BUSY"), ("BUSY", "IDLE")),
    *(("IDLE", "LEAVING"), ("LEAVING", "IDLE")),
    *((name, "ENDING") for name in ("STARTING", "IDLE", "BUSY", "LEAVING")),
    ("ENDING", "GONE"),
}


@pytest.mark.parametrize("following", Phase, ids=lambda phase: phase.name)
@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
def test_only_these_transitions(phase, following):
    """A worker that is busy is given no second request, and one that is gone never comes back."""
    if (phase.name, following.name) in MAY:
        assert phase.to(following) is following
    else:
        with pytest.raises(RuntimeError, match=f"from {phase.name} to {following.name}"):
            phase.to(following)


async def test_phases_of_a_workers_life():
    """It is idle, busy and idle again; the last request is its leave, and then it is gone."""
    server = on_tcp(handlers.does, max_requests=2)
    async with running(server):
        [first] = server._run.resources._workers.values()
        assert first.phase is Phase.IDLE
        await ask(server, b"nothing")
        await until(lambda: first.phase is Phase.IDLE)
        await ask(server, b"nothing")
        await until(lambda: first.phase is Phase.GONE)
        assert server.active_children != [first.pid]
