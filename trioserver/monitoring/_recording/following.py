"""Following the tasks of a Trio program: who begins and ends, and what each enters and leaves.

Trio tells of tasks that begin and end, and of each step; of scopes it tells nobody. So after each
step `FollowingScopes` looks at those that the task is in itself, which most often are those of
before. Of what that costs, a good part is that Trio calls anybody at all after each step. So
`Following`, which leaves scopes out, is not called then.

What others change of a task that does not run (they cancel a scope in which it waits shielded, or
for its children; they set a deadline of it) is found when it runs, and by a look at all tasks
before the loop waits. That look is taken in small programs each time, and in others when there were
four steps for each task, so that a step costs the same however many tasks there are.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import attrs
import trio

import trioserver

from .._tree.scopes import (
    cancellation_of,
    innermost,
    is_as_before,
    is_cancelled,
    own_scopes,
    request_of,
    task_number,
    values_of,
)
from .._tree.taking import tasks_below
from .events import Facts
from .values import request_as_json, time_as_json

log = logging.getLogger("trioserver.monitoring")

FEW_TASKS = 32
"""A program of so many is looked at as a whole whenever it waits: a few microseconds."""

_ENDED = 64
"""Tasks that are remembered when they have ended: they may just have cancelled another one."""

STEPS_FOR_A_LOOK = 4
"""Steps for each task after which a larger one is, too."""

Note: TypeAlias = Callable[[str, int | None, Facts], None]
"""Takes an event: its kind, the number of its task, and its facts."""


@attrs.define(eq=False)
class _Followed:
    """A task, as it was at the end of its last step."""

    number: int
    task: trio.lowlevel.Task
    nursery: trio.Nursery | None
    request: trioserver.RequestInfo | None
    innermost: object = None
    scopes: list[trio.CancelScope] = attrs.field(factory=list)
    numbers: list[int] = attrs.field(factory=list)
    values: list[tuple[float, bool, bool]] = attrs.field(factory=list)


class Following(trio.abc.Instrument):
    """Notes which tasks begin and end, as an instrument of Trio; never raises.

    Attributes:
      failures: how often it could not note something.
    """

    def __init__(self, note: Note) -> None:
        self._note = note
        self._tasks: dict[int, _Followed] = {}  # by id(), as Trio names tasks in its reasons
        self._ended: deque[tuple[int, str, int]] = deque(maxlen=_ENDED)
        self._last_task = 0
        self._steps = 0
        self.failures = 0

    def number_of(self, task: trio.lowlevel.Task) -> int | None:
        """What the recording calls a task; None if it does not know it."""
        followed = self._tasks.get(id(task))
        return None if followed is None else followed.number

    def begin(self, root: trio.lowlevel.Task | None) -> None:
        """Note all tasks that are there."""
        for task in sorted(tasks_below(root), key=task_number):
            self.task_spawned(task)
        self.look_at_all()

    def end(self) -> None:
        """Note what is new of all tasks, and follow them no more; never raises."""
        try:
            self.look_at_all()
        except Exception as error:  # noqa: BLE001  (it would hide what has ended the block)
            self._fail(error)
        self._tasks.clear()

    def look_at(self, task: trio.lowlevel.Task) -> int | None:
        """Note what is new of a task; its number, or None if it is not known."""
        followed = self._tasks.get(id(task))
        if followed is None:
            return None
        self._look_at(followed)
        return followed.number

    def look_at_all(self) -> None:
        """Note what others have changed of tasks."""
        self._steps = 0
        for followed in list(self._tasks.values()):
            self._look_at(followed)

    # What Trio tells ----------------------------------------------------------------

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """A task is there, and has not taken a step."""
        try:
            self._last_task += 1
            followed = _Followed(
                self._last_task, task, task.parent_nursery, request_of(task.context)
            )
            self._tasks[id(task)] = followed
            request = request_as_json(followed.request)
            facts = {**self._place_of(followed), "name": task.name, "request": request}
            self._note("task_started", followed.number, facts)
        except Exception as error:  # noqa: BLE001  (Trio would drop the instrument)
            self._fail(error)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """A task is over."""
        try:
            if (followed := self._tasks.pop(id(task), None)) is not None:
                self._close(followed, keeping=0)
                self._note("task_ended", followed.number, {})
                self._ended.append((id(task), task.name, followed.number))
        except Exception as error:  # noqa: BLE001  (Trio would drop the instrument)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            message = "an event could not be recorded; more of this kind are only counted"
            with contextlib.suppress(Exception):  # a logging handler's, and nobody is left to tell
                log.error(message, exc_info=error)

    # What has changed ---------------------------------------------------------------

    def _look_at(self, followed: _Followed) -> None:
        task = followed.task
        if task.parent_nursery is not followed.nursery:
            followed.nursery = task.parent_nursery
            self._note("task_moved", followed.number, self._place_of(followed))
        request = request_of(task.context)
        if request is not followed.request:
            followed.request = request
            facts = {"request": request_as_json(request)}
            self._note("task_request", followed.number, facts)

    def _place_of(self, followed: _Followed) -> Facts:
        nursery = followed.nursery
        if nursery is None:
            return {"parent": None, "nursery": None}
        nurseries = nursery.parent_task.child_nurseries
        which = nurseries.index(nursery) if nursery in nurseries else None
        return {"parent": self.number_of(nursery.parent_task), "nursery": which}

    def _close(self, followed: _Followed, keeping: int) -> None:
        """Note that a task has left the scopes that it was in, but for the outermost ones."""


class FollowingScopes(Following):
    """Notes the scopes of tasks, too."""

    def __init__(self, note: Note) -> None:
        super().__init__(note)
        self._last_scope = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task waits again."""
        try:
            self._steps += 1
            followed = self._tasks.get(id(task))
            # Most steps change nothing.
            if followed is not None and not (
                request_of(task.context) is followed.request
                and is_as_before(
                    task, followed.innermost, followed.nursery, followed.scopes, followed.values
                )
            ):
                self._look_at(followed)
        except Exception as error:  # noqa: BLE001  (Trio would drop the instrument)
            self._fail(error)

    def before_io_wait(self, timeout: float) -> None:
        """No task can run."""
        try:
            number = len(self._tasks)
            if number <= FEW_TASKS or self._steps >= STEPS_FOR_A_LOOK * number:
                self.look_at_all()
        except Exception as error:  # noqa: BLE001  (Trio would drop the instrument)
            self._fail(error)

    def _look_at(self, followed: _Followed) -> None:
        super()._look_at(followed)
        now_in = innermost(followed.task)
        if now_in is not followed.innermost:
            followed.innermost = now_in
            self._enter_and_leave(followed)
        else:
            self._change(followed)

    def _enter_and_leave(self, followed: _Followed) -> None:
        scopes = [scope for scope, *_ in own_scopes(followed.task)]
        before = followed.scopes
        same = 0
        while same < min(len(scopes), len(before)) and scopes[same] is before[same]:
            same += 1
        self._close(followed, keeping=same)
        self._change(followed)
        nurseries = [nursery.cancel_scope for nursery in followed.task.child_nurseries]
        for scope in scopes[same:]:
            self._open(followed, scope, nurseries)

    def _open(
        self, followed: _Followed, scope: trio.CancelScope, nurseries: list[trio.CancelScope]
    ) -> None:
        self._last_scope += 1
        followed.scopes.append(scope)
        followed.numbers.append(self._last_scope)
        values = values_of(scope)
        followed.values.append(values)
        facts = {
            **_facts_of(self._last_scope, values),
            "nursery": nurseries.index(scope) if scope in nurseries else None,
        }
        self._note("scope_opened", followed.number, facts)
        if is_cancelled(scope):
            self._note_cancelled(followed, len(followed.scopes) - 1)

    def _change(self, followed: _Followed) -> None:
        """Note what is new of scopes that the task was in before, and still is."""
        values = [*map(values_of, followed.scopes)]
        if values == followed.values:
            return
        before, followed.values = followed.values, values
        for place, (was, now) in enumerate(zip(before, values, strict=True)):
            if was[:2] != now[:2]:
                facts = _facts_of(followed.numbers[place], now)
                self._note("scope_changed", followed.number, facts)
            if was[2] != now[2]:
                self._note_cancelled(followed, place)

    def _close(self, followed: _Followed, keeping: int) -> None:
        while len(followed.scopes) > keeping:
            *_, was_cancelled = followed.values.pop()
            if is_cancelled(followed.scopes[-1]) and not was_cancelled:
                self._note_cancelled(followed, len(followed.scopes) - 1)
            followed.scopes.pop()
            facts = {"scope": followed.numbers.pop()}
            self._note("scope_closed", followed.number, facts)

    def _note_cancelled(self, followed: _Followed, place: int) -> None:
        reason, source, by = cancellation_of(followed.scopes[place])
        canceller, address = self._task_called(by)
        facts = {
            "scope": followed.numbers[place],
            "reason": str(reason),
            "source": str(source),
            "by": by.replace(f" at {address}", "") if address else by,
            "by_task": canceller,
        }
        self._note("scope_cancelled", followed.number, facts)

    def _task_called(self, shown: str) -> tuple[int | None, str]:
        """Whose ``repr`` this is, as ``<Task 'name' at 0x7f...>``; and the address in it.

        An address is another one in each run, so it is no part of a recording.
        """
        text = shown.rpartition(" at ")[2].rstrip(">")
        try:
            address = int(text, 16)
        except ValueError:
            return None, ""
        followed = self._tasks.get(address)
        there = [] if followed is None else [(address, followed.task.name, followed.number)]
        for where, name, number in (*there, *reversed(self._ended)):
            if where == address and shown == f"<Task {name!r} at {text}>":
                return number, text
        return None, text


def _facts_of(number: int, values: tuple[float, bool, bool]) -> Facts:
    deadline, shield, _ = values
    return {"scope": number, "deadline": time_as_json(deadline), "shield": shield}
