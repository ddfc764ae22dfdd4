"""The lints of tasks: those that do not end when they should."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .._text.finding import in_short, task_in_words
from .._tree.text import shown_places
from .._tree.views import Cancellation, TaskView
from .cases import Case
from .seen import Seen


def swallowed_cancellation(seen: Seen) -> Iterator[Case]:
    """A task that a cancellation reaches, and that is still there."""
    for number, standing in seen.tasks.items():
        why = standing.now.cancelled
        if why is None or standing.waits_for:
            continue

        def say(since: float, task: TaskView = standing.task, why: Cancellation = why) -> str:
            return (
                f"{task_in_words(task)} is still there {since:.1f} s after it was cancelled"
                f"{_because(why)}{_where(task)}; {_cure(task)}"
            )

        yield _case(seen, standing.task, number, say)


def _cure(task: TaskView) -> str:
    if any(code.co_name == "to_thread_run_sync" for code, _ in task.stack):
        return (
            "it waits for a thread, which cannot hear of it: call trio.from_thread.check_cancelled"
            " there, or abandon it (abandon_on_cancel=True)"
        )
    return "let trio.Cancelled pass: catch Exception, and raise what else was caught again"


def long_shield(seen: Seen) -> Iterator[Case]:
    """A shielded scope that keeps a cancellation waiting."""
    for number, standing in seen.tasks.items():
        if standing.holding_off is None:
            continue
        which, scope, why = standing.holding_off

        def say(since: float, task: TaskView = standing.task, why: Cancellation = why) -> str:
            return (
                f"{task_in_words(task)} has kept off its cancellation{_because(why)} for"
                f" {since:.1f} s by a shielded scope{_where(task)}; give that a deadline,"
                " or do less in it"
            )

        yield _case(seen, standing.task, (number, which, scope.deadline), say)


def child_outlives_request(seen: Seen) -> Iterator[Case]:
    """A task that works for a request that has ended."""
    for number, standing in seen.tasks.items():
        task = standing.task
        if task.request is None or (key := seen.key_of(task.request)) not in seen.known:
            continue
        served = seen.here.get(key)
        if served is not None and (
            served.request.state != "closing" or served.request.task == number
        ):
            continue

        def say(since: float, task: TaskView = task) -> str:
            return (
                f"{task_in_words(task)} still runs {since:.1f} s after that request has ended"
                f"{_where(task)}; start it in a nursery that the handler opens, or have it"
                " started by a task that works for no request"
            )

        yield _case(seen, task, number, say)


def _case(seen: Seen, task: TaskView, key: object, say: Callable[[float], str]) -> Case:
    served = seen.served(task)
    return Case(
        key=key,
        say=say,
        server=None if served is None else served.server,
        request=None if task.request is None else task.request.id,
        task=task.id,
    )


def _because(why: Cancellation) -> str:
    return f" ({in_short(why.reason or why.source)})" if why.reason or why.source else ""


def _where(task: TaskView) -> str:
    places = shown_places(task.stack, 1)
    return "".join(
        f", at {in_short(code.co_filename)}:{line} in {code.co_name}" for code, line in places
    )
