"""A fault after every step of a Trio program: the places where one could do harm, all of them.

A *step* is one task running from its resumption to its next wait. Between two
steps every task is parked at a checkpoint, so a fault after step 1, after step
2, and so on to the last one meets every state that one schedule can reach. The
schedule is fixed by a seed, and other seeds give other schedules.

What it costs: 2 to 5 ms a run. Collecting garbage after each would cost more
than that, so it is done after every 50th, and only when it brings something to
light are those 50 repeated one by one to find whose it is.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import attrs
import trio

from . import schedule as _schedule
from .harm import Cancel
from .surroundings import warnings_into
from .trial import Fault, Finding, Scenario, Trial

RUNS_PER_COLLECTION = 50


@attrs.frozen
class Swept:
    """How a sweep went that has found nothing.

    Attributes:
      steps: of the scenario without a fault, in all its schedules.
      runs: how often it was run, and all faults came.
      is_repeatable: whether schedules were fixed, which this version of Trio may not
        let anybody do: then steps vary, and what is found may not come again.
    """

    steps: int
    runs: int
    is_repeatable: bool


def sweep(
    scenario: Scenario,
    *,
    faults: Sequence[Fault | tuple[Fault, ...]] = (Cancel(),),
    seeds: Iterable[int] = (0, 1, 2),
    every: int = 1,
    jump_after: float = 0.0,
) -> Swept:
    """Run a scenario again and again, with a fault after each of its steps.

    It is run once without a fault to learn how many steps it has, and then once for
    each step, fault and seed. After every run nothing may be left: no task, no
    descriptor, no warning, no exception but the one that a fault has to raise; and it
    must have ended within 10 000 seconds by its clock, a `trio.testing.MockClock`
    that jumps. What else must hold is for the scenario to say,
    by `Trial.complain` and `Trial.afterwards`.

    Args:
      scenario: an async function of a `Trial`, which calls `Trial.arm`: steps count
        from there.
      faults: what to do: `Cancel`, `ShutDown`, `CtrlC`, `ResetClient`, or plain
        functions of the `Trial`. A pair of them comes after every pair of steps: a
        second Ctrl-C in the middle of a shutdown, say.
      seeds: which schedules.
      every: 1 for all steps; 7, say, for a seventh of them.
      jump_after: real seconds without a task that can run after which the clock
        jumps. More than 0 where the kernel carries bytes, which may take a moment; then
        it is not asked whether the scenario is deterministic, and a fault may come too late.

    Raises:
      Finding: a fault did harm; or the scenario is wrong without any, or unfit: it was
        never armed, two runs on one schedule took different steps, or each run was over
        before a fault came.
      RuntimeError: called in a Trio program.
      TypeError: a fault is none.
      ValueError: by these arguments, no fault would ever come.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every!r}")
    if not isinstance(faults, Sequence):
        raise TypeError(f"faults must be a list of faults, [...], not {faults!r}")
    steps = runs = 0
    for seed in seeds:
        steps += (least := _steps_of(scenario, seed, jump_after))
        for fault in faults:
            chain = fault if isinstance(fault, tuple) else (fault,)
            trials = _places_for(chain, scenario, least, seed, every, jump_after)
            runs += _run_all(scenario, chain, trials, seed=seed, jump_after=jump_after)
    if not runs:
        raise ValueError("nothing was swept: no fault, no seed, or no step for them")
    return Swept(steps, runs, is_repeatable=_schedule.is_there())


def run_trial(
    scenario: Scenario,
    *faults: Fault,
    at: Sequence[int] = (),
    seed: int = 0,
    jump_after: float = 0.0,
) -> Trial:
    """Run a scenario once, to look at what `sweep` has found.

    Args:
      scenario: as `sweep` has it.
      faults: what to do.
      at: after which steps; one for each fault.
      seed: which schedule.
      jump_after: as `sweep` has it.

    Returns:
      How it went; `Trial.check` raises what is wrong with it.
    """
    _check(faults, at)
    trial = Trial(faults=faults, at=at, seed=seed, jump_after=jump_after)
    trial.run(scenario)
    return trial


def _check(faults: Sequence[object], at: Sequence[int]) -> None:
    """Refuse what would do no harm, or another one than was meant."""
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("a sweep runs Trio itself, again and again: call it outside of it")
    for fault in faults:
        if isinstance(fault, type) or not callable(fault):
            raise TypeError(f"a fault is a function, or made of a class: Cancel(); not {fault!r}")
    if len(faults) != len(at):
        raise ValueError(f"{len(faults)} faults cannot come after {len(at)} steps: one for each")
    if any(step < 1 for step in at) or list(at) != sorted(set(at)):
        raise ValueError(f"steps count from 1, and faults come in their order: not after {at!r}")


def _steps_of(scenario: Scenario, seed: int, jump_after: float) -> int:
    """How many steps the scenario has without a fault, when it is fit to be swept."""
    trial = run_trial(scenario, seed=seed, jump_after=jump_after)
    trial.check()
    if not trial.steps:
        raise Finding("the scenario has never called arm(), or ended with it")
    if not jump_after and _schedule.is_there():
        _check_same(trial.trace, run_trial(scenario, seed=seed).trace)
    return trial.steps


def _check_same(one: list[str], other: list[str]) -> None:
    if one == other:
        return
    pairs = enumerate(zip([*one, "the end"], [*other, "the end"], strict=False), 1)
    where, (first, second) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
    raise Finding(
        "the scenario is not deterministic: two runs on the same schedule took different"
        f" steps. Step {where} was one of {first}, and then of {second}"
    )


def _places_for(
    chain: tuple[Fault, ...],
    scenario: Scenario,
    steps: int,
    seed: int,
    every: int,
    jump_after: float,
) -> list[tuple[int, ...]]:
    """After which steps the faults of a chain are to come, for all runs."""
    places: list[tuple[int, ...]] = [(k,) for k in range(1 + seed % every, steps + 1, every)]
    for length in range(1, len(chain)):
        shorter, places = places, []
        for at in shorter:
            # The next one comes at some step of what is left after those before it.
            trial = run_trial(scenario, *chain[:length], at=at, seed=seed, jump_after=jump_after)
            places += ((*at, k) for k in range(at[-1] + 1, trial.steps + 1, every))
    return places


def _run_all(
    scenario: Scenario,
    chain: tuple[Fault, ...],
    trials: Sequence[Sequence[int]],
    *,
    seed: int,
    jump_after: float,
) -> int:
    """Have the faults of a chain come at all these places; how many have come in time."""
    came = 0
    with _all_else_kept():
        for start in range(0, len(trials), RUNS_PER_COLLECTION):
            batch = trials[start : start + RUNS_PER_COLLECTION]
            with _collection_of_garbage() as brought_to_light:
                for at in batch:
                    trial = run_trial(scenario, *chain, at=at, seed=seed, jump_after=jump_after)
                    trial.check()
                    came += trial.is_harmed_by_all
            if brought_to_light:
                for at in batch:
                    with _collection_of_garbage() as found:
                        trial = run_trial(scenario, *chain, at=at, seed=seed, jump_after=jump_after)
                    trial.judge(found)
                raise Finding(f"somewhere in {batch}, with seed {seed}: {brought_to_light}")
    if trials and not came:
        raise Finding(f"seed {seed}: each of {len(trials)} runs was over before its faults came")
    return came


@contextmanager
def _all_else_kept() -> Iterator[None]:
    """Have collections in the block look only at what is made in it, which is soon done."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _collection_of_garbage() -> Iterator[list[str]]:
    """Collect garbage at the end of the block, and only there; gives what that complained of."""
    complaints: list[str] = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield complaints
        with warnings_into(complaints):
            gc.collect()
    finally:
        if was_enabled:
            gc.enable()
