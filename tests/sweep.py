"""A fault after every step of a Trio program: the places where one could do harm, all of them.

A *step* is one task running from its resumption to its next wait. Between two
steps every task is parked at a checkpoint, so a fault after step 1, after step
2, and so on to the last one meets every state that one schedule can reach. The
schedule is fixed by a seed, and other seeds give other schedules::

    async def scenario(trial):
        with trio.CancelScope() as scope:
            trial.arm(scope.cancel)        # steps count from here
            ...                            # the program

    sweep(scenario)

`sweep` runs the scenario once without a fault to learn how many steps it has,
and then once for each step. After every run nothing may be left: no task, no
descriptor, no warning, no exception that was not expected. What else must hold
is for the scenario to say, by `Trial.complain` or `Trial.afterwards`.

What it costs: 2 to 5 ms a run. Collecting garbage after each would cost more
than that, so it is done after every 50th, and only when it brings something to
light are those 50 repeated one by one to find whose it is.

Traps, for whoever writes a scenario:

* The clock jumps when nobody can run. A wait without an end then shows as a
  hang, `PATIENCE` virtual seconds later; give clients a deadline of their own.
* An action must not close a Trio socket: that may raise in whatever task is
  current. Use a plain one.
* `trio.Cancelled` cannot be thrown; inject it by cancelling a scope.
"""

from __future__ import annotations

import gc
import signal
import types
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import attrs
import trio
from support import descriptors
from trio.testing import MockClock

# Private, and the only way to a schedule that can be repeated; Trio's plugin
# for Hypothesis flips the same switch.
_scheduler: Any = trio._core._run

PATIENCE = 1000.0
"""Virtual seconds after which a scenario hangs."""

MOST_STEPS = 200_000
"""Steps after which a scenario runs in circles."""

RUNS_PER_COLLECTION = 50

Action: TypeAlias = Callable[[], object]
T = TypeVar("T")


class Found(AssertionError):
    """A fault did harm: the schedule, the step, who was where, and what is wrong."""


@attrs.define(eq=False)
class Trial(trio.abc.Instrument):
    """One run of a scenario: counts its steps, and fires its faults.

    Attributes:
      at: after which steps to fire; the first action after the first of them.
      seed: which schedule.
      varies: whether threads take turns, too, so that a run may have fewer steps
        than the one before it. For the scenario to set.
      steps: how many steps there were since `arm`.
      trace: whose steps they were.
      fired: for each fault that was fired, where every task was at that time.
      error: what the scenario raised.
    """

    at: Sequence[int] = ()
    seed: int = 0
    varies: bool = False
    steps: int = 0
    trace: list[str] = attrs.field(factory=list)
    fired: list[str] = attrs.field(factory=list)
    error: BaseException | None = None
    _actions: Sequence[Action] | None = None
    _alive: set[trio.lowlevel.Task] = attrs.field(factory=set)
    _complaints: list[str] = attrs.field(factory=list)
    _checks: list[Callable[[], Iterable[str]]] = attrs.field(factory=list)
    _watchdog: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    # For the scenario ----------------------------------------------------------

    def arm(self, *actions: Action) -> None:
        """Begin to count, and to fire these: plain functions, called between two steps."""
        self._actions = actions

    def complain(self, about: str) -> None:
        """Something that must not be is."""
        self._complaints.append(about)

    def afterwards(self, check: Callable[[], Iterable[str]]) -> None:
        """Have ``check`` called when the run is over; what it yields are complaints."""
        self._checks.append(check)

    # For Trio ------------------------------------------------------------------

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Remember the task."""
        self._alive.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Forget the task."""
        self._alive.discard(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count the step, and fire if it is time."""
        if self._actions is None:
            return
        self.steps += 1
        self.trace.append(_name(task))
        if self.steps in self.at:
            self._fire()
        if self.steps == MOST_STEPS:
            self.complain(f"it runs in circles: {MOST_STEPS} steps")
            self._watchdog.cancel()

    def _fire(self) -> None:
        assert self._actions is not None
        action = self._actions[len(self.fired)]
        self.fired.append("\n".join(sorted(map(_whereabouts, self._alive))))
        try:
            action()
        except BaseException as error:  # noqa: BLE001  (Trio would drop the instrument, and go on)
            self.complain(f"the fault itself failed: {error!r}")

    # For the sweep -------------------------------------------------------------

    def run(self, scenario: Scenario, *, jump_after: float) -> None:
        """Run the scenario; it is all here afterwards."""
        self._watchdog = trio.CancelScope(deadline=PATIENCE)
        before = descriptors()
        clock = MockClock(autojump_threshold=jump_after)
        with _fixed_schedule(self.seed), _warnings_into(self._complaints), _ctrl_c_heeded():
            try:
                trio.run(self._watched, scenario, instruments=[self], clock=clock)
            except BaseException as error:  # noqa: BLE001  (judged below)
                self.error = error
        left = descriptors() - before
        if left:
            self.complain(f"{len(left)} descriptors are still open")
        if self._alive:
            self.complain(f"{len(self._alive)} tasks are still there")

    async def _watched(self, scenario: Scenario) -> None:
        with self._watchdog:
            await scenario(self)
        if self._watchdog.cancelled_caught:
            self.complain("it hangs")

    def complaints(self, expected: type[BaseException] | None) -> list[str]:
        """All that is wrong with the run.

        Args:
          expected: what the scenario must raise if faults were fired.
        """
        found = list(self._complaints)
        for check in self._checks:
            found += check()
        all_fired = len(self.fired) == len(self.at)
        if not all_fired and not self.varies:
            found.append(f"only {len(self.fired)} of the faults were fired")
        if expected is None or not self.at or not all_fired:
            if self.error is not None:
                found.append(f"it raised {_in_short(self.error)}")
        elif not _is_only(self.error, expected):
            found.append(f"it raised {_in_short(self.error)} instead of {expected.__name__}")
        return found


Scenario: TypeAlias = Callable[[Trial], Awaitable[None]]


def one(
    scenario: Scenario, at: Sequence[int] = (), *, seed: int = 0, jump_after: float = 0
) -> Trial:
    """Run a scenario once.

    Args:
      scenario: the program; it must call `Trial.arm`.
      at: after which steps to fire; none without any.
      seed: which schedule.
      jump_after: real seconds without a task that can run after which the
        virtual clock jumps. More than 0 where the kernel carries bytes: it may
        take a moment.
    """
    trial = Trial(at=at, seed=seed)
    trial.run(scenario, jump_after=jump_after)
    return trial


def sweep(
    scenario: Scenario,
    *,
    seeds: Iterable[int] = (0, 1, 2),
    every: int = 1,
    expected: type[BaseException] | None = None,
    jump_after: float = 0,
) -> int:
    """Run a scenario with a fault after each of its steps.

    Args:
      scenario: the program.
      seeds: which schedules.
      every: 1 for all steps; 7, say, for a seventh of them.
      expected: the exception that the fault makes the scenario raise, bare or
        in groups.
      jump_after: as for `one`.

    Returns:
      How many faults were fired.

    Raises:
      Found: one of them did harm, or the scenario is wrong without any.
    """
    runs = 0
    for seed in seeds:
        steps = _steps_of(scenario, seed, jump_after)
        trials = [(k,) for k in range(1 + seed % every, steps + 1, every)]
        _run_all(scenario, trials, seed=seed, expected=expected, jump_after=jump_after)
        runs += len(trials)
    return runs


def sweep_pairs(
    scenario: Scenario,
    *,
    seeds: Iterable[int] = (0,),
    every: int = 1,
    expected: type[BaseException] | None = None,
    jump_after: float = 0,
) -> int:
    """Run a scenario with two faults, after each pair of its steps.

    The second is fired at some step of what is left after the first: a second
    Ctrl-C in the middle of a shutdown, say. The arguments are `sweep`'s.
    """
    runs = 0
    for seed in seeds:
        trials = []
        for first in range(1, _steps_of(scenario, seed, jump_after) + 1, every):
            alone = one(scenario, (first,), seed=seed, jump_after=jump_after)
            trials += [(first, second) for second in range(first + 1, alone.steps + 1, every)]
        _run_all(scenario, trials, seed=seed, expected=expected, jump_after=jump_after)
        runs += len(trials)
    return runs


def check(trial: Trial) -> None:
    """Raise `Found` if anything is wrong with a trial, but for its garbage."""
    _judge(trial, trial.complaints(None))


def _steps_of(scenario: Scenario, seed: int, jump_after: float) -> int:
    """How many steps the scenario has without a fault, when it is fit to be swept."""
    trial = one(scenario, seed=seed, jump_after=jump_after)
    check(trial)
    if not trial.steps:
        raise Found("the scenario never called arm()")
    if not jump_after and trial.trace != one(scenario, seed=seed).trace:
        raise Found("the scenario is not deterministic: two runs took different steps")
    return trial.steps


def _run_all(
    scenario: Scenario,
    trials: Sequence[Sequence[int]],
    *,
    seed: int,
    expected: type[BaseException] | None,
    jump_after: float,
) -> None:
    with _all_else_kept():
        for start in range(0, len(trials), RUNS_PER_COLLECTION):
            batch = trials[start : start + RUNS_PER_COLLECTION]
            with _collection_of_garbage() as brought_to_light:
                for at in batch:
                    trial = one(scenario, at, seed=seed, jump_after=jump_after)
                    _judge(trial, trial.complaints(expected))
            if brought_to_light:
                for at in batch:
                    with _collection_of_garbage() as found:
                        trial = one(scenario, at, seed=seed, jump_after=jump_after)
                    _judge(trial, found)
                raise Found(f"somewhere in {batch}, with seed {seed}: {brought_to_light}")


def _judge(trial: Trial, complaints: Sequence[str]) -> None:
    if complaints:
        steps = " and ".join(map(str, trial.at))
        lines = [f"{f'a fault after step {steps}' if steps else 'no fault'}, seed {trial.seed}:"]
        lines += (f"  {complaint}" for complaint in complaints)
        for where in trial.fired:
            lines += ["fired when the tasks were here:", where]
        raise Found("\n".join(lines)) from trial.error


@contextmanager
def _fixed_schedule(seed: int) -> Iterator[None]:
    allowed, state = _scheduler._ALLOW_DETERMINISTIC_SCHEDULING, _scheduler._r.getstate()
    _scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    _scheduler._r.seed(seed)
    try:
        yield
    finally:
        _scheduler._ALLOW_DETERMINISTIC_SCHEDULING = allowed
        _scheduler._r.setstate(state)


@contextmanager
def _ctrl_c_heeded() -> Iterator[None]:
    """Have SIGINT raise `KeyboardInterrupt`, also where it is ignored, as in a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _warnings_into(complaints: list[str]) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    complaints += (f"{warning.category.__name__}: {warning.message}" for warning in caught)


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
        with _warnings_into(complaints):
            gc.collect()
    finally:
        if was_enabled:
            gc.enable()


def _name(task: trio.lowlevel.Task) -> str:
    """What the task runs, without the facts of this run that its own name may have."""
    return getattr(task.coro, "__qualname__", task.name)


def _whereabouts(task: trio.lowlevel.Task) -> str:
    frames = [f"{frame.f_code.co_name}:{line}" for frame, line in task.iter_await_frames()]
    return f"  {task.name}: {' > '.join(frames)}"


def _is_only(error: BaseException | None, kind: type[BaseException]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_only(child, kind) for child in error.exceptions)
    return isinstance(error, kind)


def _in_short(error: BaseException | None) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"a group of {', '.join(map(_in_short, error.exceptions))}"
    return repr(error)


def cancel_at(steps_of: Coroutine[Any, Any, T], j: int, fire: Action) -> Awaitable[T]:
    """Await a coroutine, and call ``fire`` after its ``j``-th own step.

    The second tool, for one task instead of a whole program; it needs no
    instrument. What it wraps notices nothing.
    """

    @types.coroutine
    def drive() -> Generator[Any, Any, T]:
        done, resume, value = 0, steps_of.send, None
        while True:
            try:
                trap = resume(value)
            except StopIteration as end:
                return end.value
            done += 1
            if done == j:
                fire()
            try:
                resume, value = steps_of.send, (yield trap)
            except BaseException as error:  # noqa: BLE001  (handed on to whom it was for)
                resume, value = steps_of.throw, error

    return drive()
