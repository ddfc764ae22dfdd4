"""Keep-alive connections, drained after every step: no request is lost, none is executed twice."""

import pytest
from support.kept_alive import Idle, KeptAlive, Lines, More
from support.scenes import in_memory, on_tcp

from trioserver.testing import ShutDown, sweep

all_handlers = pytest.mark.parametrize("handler", [Lines, More, Idle])
drained = {"faults": [ShutDown(5)]}


@pytest.mark.slow
@all_handlers
def test_drain_after_every_step(handler):
    """Twelve connections: what had begun in time is executed once and answered, all of it."""
    assert sweep(KeptAlive(in_memory, handler, 12), seeds=(0,), **drained).runs > 100


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_drain_of_fifty_after_some_steps(seed):
    """The same with fifty, and a sample of some 540 steps."""
    assert sweep(KeptAlive(in_memory, Lines, 50), seeds=(seed,), every=47, **drained).runs > 10


@all_handlers
def test_drain_of_fifty_after_some_steps_on_tcp(handler):
    """The same on real sockets."""
    scenario = KeptAlive(on_tcp, handler, 50)
    assert sweep(scenario, seeds=(1,), every=61, jump_after=0.02, **drained).runs > 5


@pytest.mark.slow
@all_handlers
def test_drain_after_every_step_by_tls(handler):
    """Fourteen connections by TLS: half a record is a request that has begun."""
    assert sweep(KeptAlive(in_memory, handler, 14, by_tls=True), seeds=(0,), **drained).runs > 100


@all_handlers
def test_drain_of_fifty_after_some_steps_by_tls(handler):
    """The same with fifty, and a sample of some 700 steps; `tests/soak/tls.py` does them all."""
    scenario = KeptAlive(in_memory, handler, 50, by_tls=True)
    assert sweep(scenario, seeds=(1,), every=61, **drained).runs > 9


@all_handlers
def test_drain_of_fifty_after_some_steps_by_tls_on_tcp(handler):
    """The same on real sockets."""
    scenario = KeptAlive(on_tcp, handler, 50, by_tls=True)
    assert sweep(scenario, seeds=(1,), every=97, jump_after=0.02, **drained).runs > 5
