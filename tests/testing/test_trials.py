"""`trioserver.testing.sweep` itself: it finds what is planted for it to find."""

import gc
import re
import signal
import socket
from contextlib import suppress

import pytest
import trio
from support import Upper, Witness, descriptors

from trioserver.testing import (
    Cancel,
    CtrlC,
    Finding,
    MemoryServer,
    ResetClient,
    ShutDown,
    fire_at,
    open_descriptors,
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


@pytest.mark.slow
def test_a_fault_after_every_step():
    """As many runs as steps, for each seed and fault; or half, other ones for another seed."""
    came = []

    def note(trial):
        came.append((trial.seed, trial.steps))

    steps = [run_trial(three_steps, seed=seed).steps for seed in (0, 1)]
    every = [(seed, k) for seed in (0, 1) for k in range(1, steps[seed] + 1)]
    assert min(steps) >= 3
    swept = sweep(three_steps, faults=[note], seeds=(0, 1))
    assert came == every
    assert (swept.steps, swept.runs, swept.is_repeatable) == (sum(steps), sum(steps), True)
    both = sweep(three_steps, faults=[note, Cancel()], seeds=(0, 1))
    assert (both.steps, both.runs) == (sum(steps), 2 * sum(steps))
    came.clear()
    sweep(three_steps, faults=[note], seeds=(0, 1), every=2)
    assert came == [(seed, k) for seed, k in every if k % 2 != seed]


def test_a_chain_of_faults():
    """The second comes after each step that is left after the first."""
    came = []

    def first(trial):
        came.append([trial.steps])

    def second(trial):
        came[-1].append(trial.steps)

    steps = run_trial(three_steps).steps
    pairs = [[a, b] for a in range(1, steps + 1) for b in range(a + 1, steps + 1)]
    assert sweep(three_steps, faults=[(first, second)], seeds=(0,)).runs == len(pairs)
    assert [pair for pair in came if len(pair) == 2] == pairs


def test_what_faults_do():
    """Each does it to what the scenario has armed; `ShutDown` gives as much time as it says."""
    ends, witness = [], Witness()

    async def scenario(trial):
        server = MemoryServer(("memory", 1), Upper, observers=[witness])
        with trio.CancelScope() as scope:
            async with server.serving():
                client = await server.connect()
                trial.arm(server=server, scope=scope, client=client)
                await trio.lowlevel.checkpoint()
                ends.append((server.draining, scope.cancel_called, client.state))
                server.shutdown(5)

    assert run_trial(scenario).error is None
    for fault in (ShutDown(7), Cancel(), ResetClient()):
        run_trial(scenario, fault, at=[1]).check()
    # Cancelled in the checkpoint, so that nothing comes after it.
    assert ends == [(False, False, "working"), (True, False, "working"), (False, False, "closed")]
    graces = [event[1] for event in witness.events if event[0] == "draining"]
    assert graces == [5, 7, 0, 5]


@pytest.mark.slow
def test_ctrl_c_has_to_come_out():
    """`KeyboardInterrupt`, bare or in groups, is what the scenario raises, and nothing else.

    The first of two, too, of which the second comes too late in a scenario that varies.
    """

    async def swallows(trial):
        trial.arm()
        with suppress(KeyboardInterrupt):
            await trio.lowlevel.checkpoint()

    async def in_nursery(trial):
        trial.arm()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)

    async def varies(trial):
        trial.varies = True
        await three_steps(trial)

    assert sweep(in_nursery, faults=[CtrlC(), Cancel()]).runs > 3
    run_trial(varies, CtrlC(), CtrlC(), at=[2, 1000]).check()
    assert "it raised None instead of KeyboardInterrupt" in finding(swallows, faults=[CtrlC()])


# What is found -------------------------------------------------------------------------


def when_cancelled(does):
    """A scenario that does something when it is cancelled."""

    async def scenario(trial):
        with trio.CancelScope() as scope:
            trial.arm(scope=scope)
            await trio.lowlevel.checkpoint()
            return
        assert trial.is_harmed
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
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def wrong(trial):
    """That it is wrong without faults is said first."""
    trial.arm()
    await trio.lowlevel.checkpoint()
    trial.complain("it is Monday")
    trial.afterwards(lambda: ["and it rains"])


NEVER_AWAITED = "RuntimeWarning: coroutine 'three_steps' was never awaited"
IT_HANGS = "it hangs; the tasks are here:"


@pytest.mark.parametrize(
    ("scenario", "messages"),
    [
        (when_cancelled(raises), ["it raised KeyError('mine')"]),
        (when_cancelled(litters), ["Cancel() after step ", NEVER_AWAITED]),
        (when_cancelled(hangs), [IT_HANGS, "in hangs: await trio.sleep_forever()"]),
        (when_cancelled(circles), ["it runs in circles: 1000 steps"]),
        (
            when_cancelled(hangs_shielded),
            [IT_HANGS, "it could not even be cancelled, as it is shielded"],
        ),
        (wrong, ["without any fault, seed 0:\n  it is Monday\n  and it rains\n"]),
    ],
)
def test_what_is_found(scenario, messages, monkeypatch):
    """Each scenario says what is wrong with it, and the finding does, too."""
    monkeypatch.setattr("trioserver.testing._sweeping.trial.MOST_STEPS", 1000)
    found = finding(scenario)
    for message in messages:
        assert message in found


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (breaks, "breaks itself failed: ZeroDivisionError()"),
        (ShutDown(), "there is no server to shut down: trial.arm(server=...)"),
        (ResetClient(), "there is no client to reset: trial.arm(client=...)"),
    ],
)
def test_a_fault_that_fails(fault, message):
    """Nothing is proved by one that does not come, or comes too late."""
    assert message in finding(three_steps, faults=[fault])
    with pytest.raises(Finding, match="only 0 of 1 faults came"):
        run_trial(three_steps, fault, at=[1000]).check()


@pytest.mark.parametrize("options", [{}, {"jump_after": 0.01}])
def test_faults_that_come_too_late(options):
    """Where threads or the kernel take part, some may; those are not counted, and not all may."""

    async def ends_sooner(trial):
        trial.varies = not options
        trial.arm()
        for _ in range(lengths.pop() if lengths else 0):
            await trio.lowlevel.checkpoint()

    without_fault = 1 if options else 2
    twice = {"faults": [Cancel()], "seeds": (9,), "every": 10, **options}  # after 10 and 20
    lengths = [20] * (without_fault + 1)
    assert sweep(ends_sooner, **twice).runs == 1
    lengths = [20] * without_fault
    assert "seed 9: each of 2 runs was over before its faults" in finding(ends_sooner, **twice)


def test_a_descriptor():
    """A socket that is left open, and known to somebody, is a leak."""
    kept = []

    async def keeps(trial):
        kept.append(socket.socket())

    before = descriptors()
    assert "1 descriptors are still open" in finding(when_cancelled(keeps))
    assert open_descriptors() - before == {sock.fileno() for sock in kept}
    for sock in kept:
        sock.close()


def test_where_everybody_was():
    """A finding names the fault, the step, the seed, the line each task waited in, and itself.

    On a socket with the same patience for the kernel, or it would be another run.
    """

    async def waits_here(trial):
        trial.arm()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)

    message = finding(waits_here, faults=[breaks])
    assert message.startswith("breaks after step 1, seed 0:\n  breaks itself failed: ")
    assert "where the tasks were when breaks came:\n<init>\n" in message
    # The child is under its parent.
    assert "in waits_here: async with trio.open_nursery() as nursery:\n    trio.sleep\n" in message
    assert message.endswith("to run it again: run_trial(scenario, breaks, at=[1], seed=0)")
    message = finding(three_steps, faults=[breaks], jump_after=0.01)
    assert message.endswith("run_trial(scenario, breaks, at=[1], seed=0, jump_after=0.01)")


def test_timeline_of_a_finding(tmp_path, monkeypatch):
    """A finding has a note that names the timeline of its very run, in the folder of one's own."""
    monkeypatch.setenv("TRIOSERVER_TIMELINES", str(tmp_path / "new"))
    with pytest.raises(Finding) as found:
        run_trial(three_steps, breaks, Cancel(), at=[1, 2]).check()
    [page] = (tmp_path / "new").iterdir()
    assert found.value.__notes__ == [f"its timeline: {page}"]
    text = page.read_text("utf-8")
    assert "<title>breaks after step 1 and Cancel() after step 2, seed 0:</title>" in text
    assert '"reason":"a fault of the sweep"' in text
    assert "three_steps" not in text  # it runs in the main task, as it did before


def test_timeline_that_cannot_be_written(tmp_path, monkeypatch):
    """What was found is told all the same; and of what cannot be repeated there is no timeline."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TRIOSERVER_TIMELINES", str(tmp_path / "file"))
    with pytest.raises(Finding) as found:
        run_trial(three_steps, breaks, at=[1]).check()
    [note] = found.value.__notes__
    assert note.startswith("its timeline could not be written: FileExistsError")
    with pytest.raises(Finding) as found:
        run_trial(three_steps, breaks, at=[1], jump_after=0.01).check()
    assert not hasattr(found.value, "__notes__")


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


@pytest.mark.parametrize(
    ("faults", "options", "message"),
    [
        ([], {}, "nothing was swept: no fault, no seed, or no step for them"),
        ([Cancel()], {"seeds": []}, "nothing was swept"),
        ([Cancel()], {"every": 100, "seeds": [50]}, "nothing was swept"),
        ([Cancel()], {"every": 0}, "every must be at least 1, not 0"),
        ([()], {}, "0 faults cannot come after 1 steps: one for each"),
        ([ShutDown], {}, "a fault is a function, or made of a class: Cancel(); not <class"),
        (Cancel(), {}, r"faults must be a list of faults, [...], not Cancel()"),
        ([Cancel()], {"at": []}, "1 faults cannot come after 0 steps"),
        ([Cancel(), Cancel()], {"at": [3, 2]}, "faults come in their order: not after [3, 2]"),
        ([Cancel()], {"at": [0]}, "steps count from 1"),
    ],
)
def test_no_harm_is_refused(faults, options, message):
    """What would pass whatever the scenario does; or, of a trial's steps, is not what was meant."""
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        if "at" in options:
            run_trial(three_steps, *faults, **options)
        else:
            sweep(three_steps, faults=faults, **options)


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
