"""One run of a scenario on a fixed schedule, in which faults come after some of its steps."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio

import trioserver

from ...monitoring import Recorder, TaskTree, task_tree
from .._looking.descriptors import open_descriptors
from .._looking.shields import lift_shields
from . import schedule
from .surroundings import ctrl_c_heeded, warnings_into
from .timelines import note_timeline

PATIENCE = 10_000.0
"""Virtual seconds after which a scenario hangs."""

LAST_ROUNDS = 100
"""Turns of Trio's loop that a scenario which hangs has to end when it is cancelled."""

MOST_STEPS = 200_000
"""Steps after which a scenario runs in circles."""


class Finding(AssertionError):
    """A fault does harm: after which step, where every task was then, and what is wrong."""


@attrs.define(eq=False)
class Trial:
    """One run of a scenario; made by `sweep` and `run_trial`.

    Attributes:
      faults: what is to be done in it, in this order.
      at: after which of its steps.
      seed: which schedule it has.
      jump_after: real seconds without a task that can run, after which its clock jumps.
      server: what `ShutDown` shuts down; set by `arm`, as are the next two.
      scope: what `Cancel` cancels.
      client: whom `ResetClient` resets.
      varies: to be set by a scenario that does not take the same steps in every run,
        because threads or processes take part: then a fault may come too late. So it
        may where the kernel takes part, which ``jump_after`` says.
      steps: how many there were since `arm`.
      trace: whose steps they were.
      error: what the scenario has raised.
    """

    faults: Sequence[Fault] = ()
    at: Sequence[int] = ()
    seed: int = 0
    jump_after: float = 0.0
    server: trioserver.BaseServer | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    client: Any = None
    varies: bool = False
    steps: int = 0
    trace: list[str] = attrs.field(factory=list)
    error: BaseException | None = None
    _fired: list[TaskTree] = attrs.field(factory=list)
    _is_armed: bool = False
    _alive: set[trio.lowlevel.Task] = attrs.field(factory=set)
    _complaints: list[str] = attrs.field(factory=list)
    _checks: list[Callable[[], Iterable[str]]] = attrs.field(factory=list)
    _watchdog: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _rounds_since: int = 0
    _recorder: Recorder | None = None
    _again: Callable[[Recorder], None] | None = None

    # For the scenario ----------------------------------------------------------

    def arm(
        self,
        *,
        server: trioserver.BaseServer | None = None,
        scope: trio.CancelScope | None = None,
        client: Any = None,
    ) -> None:
        """Begin to count steps, and to do harm after them.

        Args:
          server: what `ShutDown` shuts down.
          scope: what `Cancel` cancels; None: the whole scenario.
          client: whom `ResetClient` resets: anything with a method ``reset``, such as
            a connection in memory.
        """
        self.server, self.client = server, client
        if scope is not None:
            self.scope = scope
        self._is_armed = True

    @property
    def is_harmed(self) -> bool:
        """Whether a fault has come by now."""
        return bool(self._fired)

    @property
    def is_harmed_by_all(self) -> bool:
        """Whether all faults have come by now."""
        return len(self._fired) == len(self.at)

    def complain(self, about: str) -> None:
        """Something that must not be is."""
        self._complaints.append(about)

    def afterwards(self, check: Callable[[], Iterable[str]]) -> None:
        """Have ``check`` called when the run is over; what it yields are complaints."""
        self._checks.append(check)

    # For the sweep -------------------------------------------------------------

    def run(self, scenario: Scenario) -> None:
        """Run the scenario; all that is known of it is here afterwards."""
        from trio.testing import MockClock  # noqa: PLC0415  (it brings pytest, where that is)

        made = partial(Trial, faults=self.faults, at=self.at, seed=self.seed)
        self._again = lambda recorder: made(recorder=recorder).run(scenario)
        self._watchdog = trio.CancelScope(deadline=PATIENCE)
        before = open_descriptors()
        clock = MockClock(autojump_threshold=self.jump_after)
        with ExitStack() as stack:
            if schedule.is_there():
                stack.enter_context(schedule.fixed_schedule(self.seed))
            stack.enter_context(warnings_into(self._complaints))
            stack.enter_context(ctrl_c_heeded())
            try:
                trio.run(self._scenario, scenario, instruments=[_Steps(self)], clock=clock)
            except BaseException as error:
                if _is_ctrl_c(error) and KeyboardInterrupt not in self._raised_by_faults():
                    raise KeyboardInterrupt from error  # somebody's, who wants the sweep to end
                self.error = error
        left = open_descriptors() - before
        if left:
            self.complain(f"{len(left)} descriptors are still open")
        if self._alive:
            self.complain(f"{len(self._alive)} tasks are still there")

    async def _scenario(self, scenario: Scenario) -> None:
        whole = self.scope
        with self._recorder or nullcontext(), self._watchdog, whole:
            await scenario(self)

    def check(self) -> None:
        """Raise if anything is wrong with the run, but for its garbage.

        Raises:
          Finding: what it is.
        """
        self.judge(self.complaints())

    def complaints(self) -> list[str]:
        """All that is wrong with the run."""
        found = list(self._complaints)
        for check in self._checks:
            found += check()
        if not self.is_harmed_by_all and self._is_repeatable:
            found.append(f"only {len(self._fired)} of {len(self.at)} faults came")
        expected = self._raised_by_faults()
        if not expected:
            if self.error is not None:
                found.append(f"it raised {_in_short(self.error)}")
        elif not _is_only(self.error, tuple(expected)):
            wanted = " or ".join(kind.__name__ for kind in expected)
            found.append(f"it raised {_in_short(self.error)} instead of {wanted}")
        return found

    @property
    def _is_repeatable(self) -> bool:
        """Whether every run takes the same steps."""
        return schedule.is_there() and not self.varies and not self.jump_after

    def _raised_by_faults(self) -> list[type[BaseException]]:
        """What the faults that have come have the scenario raise."""
        came = self.faults[: len(self._fired)]
        return [raises for fault in came if (raises := getattr(fault, "raises", None))]

    def judge(self, complaints: Sequence[str]) -> None:
        """Raise `Finding` if there are any."""
        if not complaints:
            return
        lines = [f"{self._what_came()}, seed {self.seed}:"]
        lines += (f"  {complaint}" for complaint in complaints)
        for fault, tree in zip(self.faults, self._fired, strict=False):
            lines += [f"where the tasks were when {_name_of(fault)} came:", str(tree)]
        lines.append(self._how_to_repeat())
        finding = Finding("\n".join(lines))
        if self._again is not None and self._is_repeatable:
            note_timeline(finding, self._again)
        raise finding from self.error

    def _what_came(self) -> str:
        if not self.at:
            return "without any fault"
        pairs = zip(self.faults, self.at, strict=False)
        return " and ".join(f"{_name_of(fault)} after step {step}" for fault, step in pairs)

    def _how_to_repeat(self) -> str:
        if not schedule.is_there():
            return "Trio's schedule cannot be fixed with this version, so it may not come again."
        faults = "".join(f", {_name_of(fault)}" for fault in self.faults)
        jump_after = f", jump_after={self.jump_after:g}" if self.jump_after else ""
        arguments = f"scenario{faults}, at={[*self.at]}, seed={self.seed}{jump_after}"
        return f"to run it again: run_trial({arguments})"

    # For its steps ---------------------------------------------------------------

    def _after_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        self.trace.append(_task_name(task))
        if self.steps in self.at:
            self._do_harm()
        if self.steps == MOST_STEPS:
            self.complain(f"it runs in circles: {MOST_STEPS} steps")
            self._watchdog.cancel(reason="it runs in circles")

    def _do_harm(self) -> None:
        fault = self.faults[len(self._fired)]
        self._fired.append(task_tree())
        try:
            fault(self)
        except BaseException as error:  # noqa: BLE001  (Trio would drop the instrument, and go on)
            self.complain(f"{_name_of(fault)} itself failed: {error!r}")

    def _look_for_a_hang(self) -> None:
        if self._watchdog.cancel_called:
            self._rounds_since += 1
            if self._rounds_since == LAST_ROUNDS:
                self.complain("it could not even be cancelled, as it is shielded")
                lift_shields(trio.lowlevel.current_root_task(), self._watchdog)
        if trio.current_time() >= PATIENCE and self._watchdog.deadline < math.inf:
            self._watchdog.deadline = math.inf
            self._watchdog.cancel(reason="it hangs")
            self.complain(f"it hangs; the tasks are here:\n{task_tree()}")


Fault: TypeAlias = Callable[[Trial], object]
"""Does harm to a run: a plain function, called between two steps, as if from outside.

If it has an attribute ``raises``, the scenario has to raise that, bare or in groups.
"""

Scenario: TypeAlias = Callable[[Trial], Awaitable[object]]
"""A program; it calls `Trial.arm`."""


class _Steps(trio.abc.Instrument):
    """Tells a trial of the steps of its tasks."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._trial._alive.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._trial._alive.discard(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._trial._is_armed:
            self._trial._after_step(task)

    def after_io_wait(self, timeout: float) -> None:
        self._trial._look_for_a_hang()


def _task_name(task: trio.lowlevel.Task) -> str:
    """What the task runs, without the facts of this run that its own name may have."""
    return getattr(task.coro, "__qualname__", task.name)


def _name_of(fault: Fault) -> str:
    return getattr(fault, "__name__", None) or repr(fault)


def _is_ctrl_c(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)


def _is_only(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_only(child, kinds) for child in error.exceptions)
    return isinstance(error, kinds)


def _in_short(error: BaseException | None) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"a group of {', '.join(map(_in_short, error.exceptions))}"
    name, told = type(error).__name__, repr(error)
    # Of some it is the message alone, of pytest.skip's say.
    return told if error is None or name in told else f"{name}: {told}"
