"""The phases of a run, and a shutdown that comes before anything serves: values and a table."""

import math

import pytest
import trio
from support import Upper, hold, read_to_end

from trioserver._engine.phase import CurrentPhase, Phase
from trioserver._engine.stop_request import StopRequest
from trioserver.testing import MemoryServer

MAY = {
    *(("BINDING", "BOUND"), ("BINDING", "CLOSED")),
    *(("BOUND", "ACQUIRING"), ("BOUND", "DRAINING"), ("BOUND", "CLOSED")),
    *(("ACQUIRING", "SERVING"), ("ACQUIRING", "BOUND")),
    *(("SERVING", "DRAINING"), ("SERVING", "CUTTING"), ("SERVING", "BOUND")),
    *(("DRAINING", "CUTTING"), ("DRAINING", "CLOSED")),
    *(("CUTTING", "BOUND"), ("CUTTING", "CLOSED")),
}


@pytest.mark.parametrize("following", Phase, ids=lambda phase: phase.name)
@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
def test_only_these_transitions(phase, following):
    """A drain is never taken back, and what is closed stays so; to stay is no step."""
    current = CurrentPhase(phase)
    if phase is following or (phase.name, following.name) in MAY:
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


class Watched(MemoryServer):
    """Writes down the phases in which its hooks are called."""

    def note(self, hook):
        assert self._run is not None
        vars(self).setdefault("noted", []).append((hook, self._run.phase.now.name))

    async def server_bind(self):
        self.note("bind")
        return await super().server_bind()

    def get_request(self, listener):
        self.note("get_request")
        return super().get_request(listener)

    async def shutdown_request(self, request):
        self.note("shutdown_request")
        await super().shutdown_request(request)

    async def server_close(self):
        if self._run is not None:
            self.note("close")
        await super().server_close()


async def test_phases_of_a_run(autojump_clock):
    """Each hook is called in the phase that it belongs to; the drain and the cut come last."""
    server = Watched(("memory", 1), hold)
    async with server.serving(grace=5):
        await server.connect()
        await trio.sleep(1)
    assert list(dict.fromkeys(server.noted)) == [
        ("bind", "BINDING"),
        ("get_request", "SERVING"),
        ("get_request", "DRAINING"),
        ("shutdown_request", "CUTTING"),
        ("close", "CLOSED"),
    ]


async def test_phases_of_single_requests(autojump_clock):
    """handle_request goes round; what is cancelled is cut, and the listeners stay open."""
    server = MemoryServer(("memory", 1), Upper)
    async with server:
        run = server._run
        assert run is not None
        for _ in range(2):
            assert run.phase.now is Phase.BOUND
            client = await server.connect()
            await client.send_all(b"a\n")
            await client.send_eof()
            await server.handle_request()
            assert await read_to_end(client) == b"A\n"
        await server.connect()
        with trio.move_on_after(1):
            await server.handle_request()
        assert run.phase.now is Phase.BOUND
        server.shutdown()
        await server.handle_request()
        assert run.phase.now is Phase.DRAINING
    assert run.phase.now is Phase.CLOSED


@pytest.mark.parametrize("serve", ["serve_forever", "handle_request"])
async def test_shutdown_before_it_serves(serve, autojump_clock):
    """It is kept until something serves, which then ends at once; its clients are turned away."""
    server = MemoryServer(("memory", 1), Upper)
    server.shutdown(5)
    async with server:
        with trio.fail_after(1):
            await getattr(server, serve)()
        assert server.draining
    assert (await server.wait_closed()).reason == "shutdown() was called"
