"""The phases of a run, and a shutdown that comes before anything serves: values and a table."""

import math
import threading
from itertools import product

import pytest
import trio
from support import Upper, hold
from support.memory import ask, memory, noting

from trioserver._engine.phase import CurrentPhase, Phase
from trioserver._engine.stop_request import StopRequest
from trioserver.testing import MemoryServer

MAY = {
    "BINDING": ["BOUND", "CLOSED"],
    "BOUND": ["ACQUIRING", "DRAINING", "CLOSED"],
    "ACQUIRING": ["SERVING", "BOUND"],
    "SERVING": ["DRAINING", "CUTTING", "BOUND"],
    "DRAINING": ["CUTTING", "CLOSED"],
    "CUTTING": ["BOUND", "CLOSED"],
    "CLOSED": [],
}


def test_only_these_transitions():
    """A drain is never taken back, and what is closed stays so; to stay is no step."""
    for phase, following in product(Phase, repeat=2):
        current = CurrentPhase(phase)
        if phase is following or following.name in MAY[phase.name]:
            current.enter(following)
            assert current.now is following
        else:
            with pytest.raises(RuntimeError, match=f"from {phase.name} to {following.name}"):
                current.enter(following)


def test_stop_request_is_counted_once():
    """The grace is counted from the first wait on; of two, whatever ends earlier holds."""
    stop = StopRequest(5).counted_from(100)
    assert stop.left(now=102) == 3
    assert stop.counted_from(103).left(now=103) == 2
    assert stop.left(now=200) == 0
    assert StopRequest(5).left(now=1e9) == 5
    assert StopRequest(9).and_earlier(stop) == StopRequest(5, 105)
    assert StopRequest(2).and_earlier(stop) == StopRequest(2, 105)
    assert StopRequest(2).and_earlier(None) == StopRequest(2, math.inf)


def note(server, hook, *arguments):
    """Write down the phase in which a hook is called."""
    vars(server).setdefault("noted", []).append((hook, server._run.phase.now.name))


class Noting(MemoryServer):
    def get_request(self, listener):
        note(self, "get_request")
        return super().get_request(listener)


async def test_phases_of_a_run(autojump_clock):
    """Each hook is called in the phase that it belongs to; the drain and the cut come last."""
    kind = noting(Noting, ["server_bind", "shutdown_request", "server_close"], note)
    server = memory(hold, kind)
    async with server.serving(grace=5):
        await server.connect()
        await trio.sleep(1)
    assert list(dict.fromkeys(server.noted)) == [
        ("server_bind", "BINDING"),
        ("get_request", "SERVING"),
        ("get_request", "DRAINING"),
        ("shutdown_request", "CUTTING"),
        ("server_close", "CLOSED"),
    ]


@pytest.mark.parametrize("serve", ["serve_forever", "handle_request"])
async def test_shutdown_before_it_serves(serve, autojump_clock):
    """It is kept until something serves, which then ends at once, and just that run.

    Here it comes from a thread that knows of no Trio.
    """
    server = memory(Upper)
    thread = threading.Thread(target=server.shutdown, args=(5,))
    thread.start()
    thread.join()
    async with server:
        with trio.fail_after(1):
            await getattr(server, serve)()
        assert server.draining
    assert (await server.wait_closed()).reason == "shutdown() was called"
    async with server.serving():
        assert await ask(server) == b"HELLO\n"
