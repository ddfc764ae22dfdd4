"""`trioserver.testing.sweep` itself: it finds what is planted for it to find."""

import gc
import re
import signal
import socket
from contextlib import suppress

import attrs
import pytest
import trio
from support import Upper, hold

from trioserver.testing import (
    Cancel,
    CtrlC,
    Finding,
    MemoryServer,
    ResetClient,
    ShutDown,
    fire_at,
    open_descriptors,
    open_test_server,
    run_trial,
    sweep,
)
from trioserver.testing._sweeping import schedule as _schedule


async def three_steps(trial):
    """A program that is cancelled in peace."""
    trial.arm()
    for _ in range(3):
        await trio.lowlevel.checkpoint()


def finding(scenario, **options):
    """What the sweep says."""
    with pytest.raises(Finding) as found:
        sweep(scenario, **options)
    return str(found.value)


def breaks(trial):
    """A fault that fails."""
    raise ZeroDivisionError


# What is run ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fault_after_every_step():
    """As many runs as steps, for each seed and fault, each with its fault."""
    came = []

    def note(trial):
        came.append((trial.seed, trial.steps))

    steps = [run_trial(three_steps, seed=seed).steps for seed in (0, 1)]
    swept = sweep(three_steps, faults=[note], seeds=(0, 1))
    assert min(steps) >= 3
    assert came == [(seed, k) for seed in (0, 1) for k in range(1, steps[seed] + 1)]
    assert (swept.steps, swept.runs, swept.is_repeatable) == (sum(steps), sum(steps), True)
    both = sweep(three_steps, faults=[note, Cancel()], seeds=(0, 1))
    assert (both.steps, both.runs) == (sum(steps), 2 * sum(steps))


def test_a_chain_of_faults():
    """The second comes after each step that is left after the first."""
    came = []

    def first(trial):
        came.append(("first", trial.steps))

    def second(trial):
        came.append(("second", trial.steps))

    steps = run_trial(three_steps).steps
    pairs = [(a, b) for a in range(1, steps + 1) for b in range(a + 1, steps + 1)]
    assert sweep(three_steps, faults=[(first, second)], seeds=(0,)).runs == len(pairs)
    seconds = [at for at, (name, _) in enumerate(came) if name == "second"]
    assert [(came[at - 1][1], came[at][1]) for at in seconds] == pairs


def test_a_part_of_the_steps():
    """Every second step is half of them, other ones for another seed."""
    came = []
    steps = run_trial(three_steps).steps
    for seed in (0, 1):
        sweep(three_steps, faults=[lambda trial: came.append(trial.steps)], seeds=[seed], every=2)
    assert sorted(came) == list(range(1, steps + 1))


def test_what_faults_do():
    """Each does it to what the scenario has armed."""
    ends = []

    async def scenario(trial):
        server = MemoryServer(("memory", 1), Upper)
        with trio.CancelScope() as scope:
            async with server.serving():
                client = await server.connect()
                trial.arm(server=server, scope=scope, client=client)
                await trio.lowlevel.checkpoint()
                ends.append((server.draining, scope.cancel_called, client.state))
                server.shutdown()

    assert run_trial(scenario).error is None
    for fault in (ShutDown(), Cancel(), ResetClient()):
        run_trial(scenario, fault, at=[1]).check()
    # Cancelled in the checkpoint, so that nothing comes after it.
    assert ends == [(False, False, "working"), (True, False, "working"), (False, False, "closed")]


def test_a_grace_of_its_own():
    """`ShutDown` gives as much as it is told to."""
    ended = []

    async def scenario(trial):
        async with open_test_server(hold, strict=False) as running:
            trial.arm(server=running.server)
            await running.connect()
            report = await running.server.wait_closed()
            ended.append((trio.current_time(), len(report.cancelled)))

    run_trial(scenario, ShutDown(7), at=[5]).check()
    assert ended == [(7, 1)]


@pytest.mark.slow
def test_ctrl_c_has_to_come_out():
    """`KeyboardInterrupt` is what the scenario raises, and not anything else."""

    async def swallows(trial):
        trial.arm()
        with suppress(KeyboardInterrupt):
            await trio.lowlevel.checkpoint()

    assert sweep(three_steps, faults=[CtrlC()]).runs > 3
    assert "it raised None instead of KeyboardInterrupt" in finding(swallows, faults=[CtrlC()])


def test_a_schedule_is_repeated():
    """The same seed is the same order of the same tasks; another seed is not."""
    ran = []

    async def three_checkpoints(who):
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            ran.append(who)

    async def race(trial):
        trial.arm()
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(three_checkpoints, number)

    def order(seed):
        ran.clear()
        run_trial(race, seed=seed)
        return list(ran)

    assert order(1) == order(1)
    assert order(1) != order(2)


# What is found -------------------------------------------------------------------------


async def unarmed(trial):
    """A scenario that is never hurt proves nothing."""


def when_cancelled(does):
    """A scenario that does something when it is cancelled."""

    async def scenario(trial):
        with trio.CancelScope() as scope:
            trial.arm(scope=scope)
            await trio.lowlevel.checkpoint()
            return
        await does(trial)

    return scenario


async def raises(trial):
    """A scenario that raises is at fault."""
    raise KeyError("mine")


async def litters(trial):
    """What only a garbage collection brings to light is traced to its step."""
    cycle = [three_steps(trial)]
    cycle.append(cycle)


async def hangs(trial):
    """A program that waits for ever ends all the same, and it is said where it waits."""
    await trio.sleep_forever()


async def circles(trial):
    """A program that runs in circles never lets the clock jump; its steps are counted."""
    while True:
        await trio.lowlevel.checkpoint()


async def hangs_shielded(trial):
    """The classic bug in a cleanup; it ends all the same, and is said to be that."""
    trial.arm()
    try:
        await trio.lowlevel.checkpoint()
    finally:
        if trial.is_harmed:
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()


def erratic():
    """A scenario that takes other steps each time cannot be swept, and it is said where."""
    lengths = iter(range(1, 100))

    async def scenario(trial):
        trial.arm()
        for _ in range(next(lengths)):
            await trio.lowlevel.checkpoint()

    return scenario


NEVER_AWAITED = "RuntimeWarning: coroutine 'three_steps' was never awaited"
IT_HANGS = "it hangs; the tasks are here:"
STEP_3 = "Step 3 was one of Runner.init, and then of Trial._scenario"


@pytest.mark.parametrize(
    ("scenario", "messages"),
    [
        (unarmed, ["has never called arm()"]),
        (when_cancelled(raises), ["it raised KeyError('mine')"]),
        (when_cancelled(litters), ["Cancel() after step ", NEVER_AWAITED]),
        (when_cancelled(hangs), [IT_HANGS, "in hangs: await trio.sleep_forever()"]),
        (when_cancelled(circles), ["it runs in circles: 1000 steps"]),
        (hangs_shielded, [IT_HANGS, "it could not even be cancelled, as it is shielded"]),
        (erratic(), ["the scenario is not deterministic", STEP_3]),
    ],
)
def test_what_is_found(scenario, messages, monkeypatch):
    """Each scenario says what is wrong with it, and the finding does, too."""
    monkeypatch.setattr("trioserver.testing._sweeping.trial.MOST_STEPS", 1000)
    found = finding(scenario)
    for message in messages:
        assert message in found


def test_a_fault_that_does_not_come():
    """Nothing is proved by one that comes too late."""
    with pytest.raises(Finding, match="only 0 of 1 faults came"):
        run_trial(three_steps, Cancel(), at=[1000]).check()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (breaks, "breaks itself failed: ZeroDivisionError()"),
        (ShutDown(), "there is no server to shut down: trial.arm(server=...)"),
        (ResetClient(), "there is no client to reset: trial.arm(client=...)"),
    ],
)
def test_a_fault_that_fails(fault, message):
    """What a fault raises is not swallowed, as Trio would."""
    assert message in finding(three_steps, faults=[fault])


def test_a_scenario_that_is_wrong_without_faults():
    """That is said first."""

    async def wrong(trial):
        trial.arm()
        await trio.lowlevel.checkpoint()
        trial.complain("it is Monday")
        trial.afterwards(lambda: ["and it rains"])

    message = finding(wrong)
    assert message.startswith("without any fault, seed 0:\n  it is Monday\n  and it rains\n")


def test_a_descriptor():
    """A socket that is left open, and known to somebody, is a leak."""
    kept = []

    async def keeps(trial):
        kept.append(socket.socket())

    before = open_descriptors()
    assert "1 descriptors are still open" in finding(when_cancelled(keeps))
    assert open_descriptors() - before == {sock.fileno() for sock in kept}
    for sock in kept:
        sock.close()


def test_where_everybody_was():
    """A finding names the fault, the step, the seed, the line each task waited in, and itself."""

    async def waits_here(trial):
        trial.arm()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)

    message = finding(waits_here, faults=[breaks])
    assert message.startswith("breaks after step 1, seed 0:\n  breaks itself failed: ")
    assert "where the tasks were when breaks came:\n<init>\n" in message
    assert "in waits_here: async with trio.open_nursery() as nursery:" in message
    assert message.endswith("to run it again: run_trial(scenario, breaks, at=[1], seed=0)")


# A server of somebody's own -------------------------------------------------------------


@attrs.define
class Books:
    """What a small server has done, to be compared afterwards."""

    accepted: int = 0
    closed: int = 0
    begun: int = 0
    finished: int = 0

    def balance(self):
        """What was left undone."""
        if self.accepted != self.closed:
            yield f"{self.accepted} connections were accepted, and {self.closed} closed"
        if self.begun != self.finished:
            yield f"{self.begun} requests were begun, and {self.finished} finished"


class Server:
    """A small server in Trio alone, with nothing wrong."""

    def __init__(self, books):
        self.books = books

    async def serve(self, clients):
        async with trio.open_nursery() as nursery:
            while True:
                await clients.receive()
                self.books.accepted += 1
                await self.let_in(nursery)

    async def let_in(self, nursery):
        nursery.start_soon(self.own)

    async def own(self):
        try:
            await self.handle()
        finally:
            self.books.closed += 1

    async def handle(self):
        self.books.begun += 1
        try:
            await trio.sleep(1)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.1)
                self.books.finished += 1


class WaitsAfterAccept(Server):
    """A checkpoint comes between the accept and the task."""

    async def let_in(self, nursery):
        await trio.lowlevel.checkpoint()  # the bug
        await super().let_in(nursery)


class CountsAfterAccept(Server):
    """A slot is taken after the accept, and not before it."""

    def __init__(self, books):
        super().__init__(books)
        self.slots = trio.Semaphore(2)

    async def let_in(self, nursery):
        await self.slots.acquire()  # the bug
        await super().let_in(nursery)

    async def own(self):
        try:
            await super().own()
        finally:
            self.slots.release()


class FinishesUnshielded(Server):
    """The cleanup waits, and is cancelled, too."""

    async def handle(self):
        self.books.begun += 1
        try:
            await trio.sleep(1)
        finally:
            await trio.sleep(0.1)  # the bug
            self.books.finished += 1


class FinishesAfterErrors(Server):
    """The cleanup comes after errors and in peace, and a cancellation is neither."""

    async def handle(self):
        self.books.begun += 1
        with suppress(Exception):  # the bug
            await trio.sleep(1)
        self.books.finished += 1


def scenario_of(kind):
    """Three clients of such a server, which ends when they are served."""

    async def scenario(trial):
        books = Books()
        trial.afterwards(books.balance)
        trial.arm()
        connect, clients = trio.open_memory_channel[int](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kind(books).serve, clients)
            for number in range(3):
                await connect.send(number)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()

    return scenario


@pytest.mark.slow
def test_a_server_without_a_bug():
    """Nothing is found where there is nothing."""
    assert sweep(scenario_of(Server), faults=[Cancel(), CtrlC()]).runs > 90


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        *((it, "connections were accepted, and ") for it in (WaitsAfterAccept, CountsAfterAccept)),
        *((it, "requests were begun, and ") for it in (FinishesUnshielded, FinishesAfterErrors)),
    ],
)
def test_a_server_with_a_bug(kind, complaint):
    """Each of the four classic ones is found, and the step can be run again by itself."""
    scenario = scenario_of(kind)
    message = finding(scenario)
    assert complaint in message
    [steps] = re.findall(r"run_trial\(scenario, Cancel\(\), at=\[(\d+)\], seed=0\)", message)
    with pytest.raises(Finding) as again:
        run_trial(scenario, Cancel(), at=[int(steps)]).check()
    assert str(again.value) == message


def test_ctrl_c_that_is_no_fault():
    """Somebody wants the sweep to end: that is no finding, also in a nursery."""
    runs = 0

    async def interrupted(trial):
        nonlocal runs
        runs += 1
        trial.arm()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            await trio.lowlevel.checkpoint()
            if runs == 5:
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        sweep(interrupted, faults=[Cancel()])
    assert runs == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert gc.get_freeze_count() == 0


def test_two_ctrl_c_of_which_one_comes_too_late():
    """In a scenario that varies, the first one still has to come out, and does."""

    async def varies(trial):
        trial.varies = True
        await three_steps(trial)

    run_trial(varies, CtrlC(), CtrlC(), at=[2, 1000]).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faults": []}, "nothing was swept: no fault, no seed, or no step for them"),
        ({"seeds": []}, "nothing was swept"),
        ({"every": 100, "seeds": [50]}, "nothing was swept"),
        ({"every": 0}, "every must be at least 1, not 0"),
        ({"faults": [()]}, "0 faults cannot come after 1 steps: one for each"),
        ({"faults": [ShutDown]}, "a fault is a function, or made of a class: Cancel(); not <class"),
        ({"faults": Cancel()}, r"faults must be a list of faults, [...], not Cancel()"),
    ],
)
def test_a_sweep_without_harm_is_refused(options, message):
    """One that would pass whatever the scenario does."""
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        sweep(three_steps, **options)


@pytest.mark.parametrize(
    ("faults", "at", "message"),
    [
        ([Cancel()], [], "1 faults cannot come after 0 steps"),
        ([Cancel(), Cancel()], [3, 2], "faults come in their order: not after [3, 2]"),
        ([Cancel()], [0], "steps count from 1"),
    ],
)
def test_a_trial_that_is_not_what_was_meant(faults, at, message):
    """Faults and steps that do not fit are refused in words."""
    with pytest.raises(ValueError, match=re.escape(message)):
        run_trial(three_steps, *faults, at=at)


def test_how_to_run_it_again_on_a_socket():
    """With the same patience for the kernel, or it would be another run."""
    message = finding(three_steps, faults=[breaks], jump_after=0.01)
    assert message.endswith("run_trial(scenario, breaks, at=[1], seed=0, jump_after=0.01)")


# Where it is used ----------------------------------------------------------------------


async def test_inside_of_trio():
    """A sweep cannot be run in a task, and says so."""
    with pytest.raises(RuntimeError, match="a sweep runs Trio itself"):
        sweep(three_steps)


@pytest.mark.slow
def test_a_trio_without_the_switch(monkeypatch):
    """Where schedules cannot be fixed it runs all the same, and says what that means."""
    monkeypatch.setattr("trioserver.testing._sweeping.schedule.SWITCHES", ["_of_another"])
    swept = sweep(three_steps)
    assert swept.runs >= 9
    assert not swept.is_repeatable
    message = finding(three_steps, faults=[breaks])
    assert message.endswith("cannot be fixed with this version, so it may not come again.")


@pytest.mark.parametrize("name", _schedule.SWITCHES)
def test_the_switches_are_named(name, monkeypatch):
    """When Trio changes, what is missing is said by its name."""
    with _schedule.fixed_schedule(1):
        pass
    monkeypatch.delattr(f"trio._core._run.{name}")
    with pytest.raises(_schedule.TrioHasChanged, match=rf"has no trio\._core\._run\.{name}"):
        with _schedule.fixed_schedule(1):
            pass


# A step of one task ----------------------------------------------------------------------


async def test_fire_at():
    """Once, at its step; the coroutine gets what it waits for, and its result comes out."""
    steps = []
    fired_after = []

    async def counts():
        for number in range(5):
            steps.append(number)
            await trio.lowlevel.checkpoint()
        return "done"

    assert await fire_at(counts(), 3, lambda: fired_after.append(list(steps))) == "done"
    assert fired_after == [[0, 1, 2]]
    with trio.CancelScope() as scope:
        await fire_at(trio.Event().wait(), 1, scope.cancel)  # ends in that step's wait
    assert scope.cancelled_caught
