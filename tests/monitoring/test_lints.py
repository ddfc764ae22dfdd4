"""The lints, told by data: trees and snapshots in, findings out."""

import json
import math

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import table

from trioserver import (
    ListenerSnapshot,
    RequestInfo,
    RequestSnapshot,
    ServerSnapshot,
    Statistics,
    Timeouts,
    WorkerSnapshot,
)
from trioserver.monitoring import (
    Blocked,
    Cancellation,
    Finding,
    Linter,
    ScopeView,
    TaskTree,
    TaskView,
    as_text,
    task_tree,
)
from trioserver.monitoring._lints.linter import LINTS

HERE = ("127.0.0.1", 80)
WHY = Cancellation("no need for it", "explicit")
CANCELLED = ScopeView(cancelled=WHY)
SHIELD = ScopeView(shield=True)


def info(number=1, *, started=0.0, started_at=1000.0, listener=HERE):
    """The facts of a request."""
    return RequestInfo(
        id=number,
        client_address=("10.0.0.1", 5),
        server_address=listener,
        started=started,
        started_at=started_at,
    )


def task(number, parent=0, nursery=0, *scopes, request=None, stack=()):
    """One task, with its scopes, outermost first."""
    depth = 0 if parent is None else parent + 1
    return TaskView(number, parent, nursery, depth, f"t{number}", scopes, request, stack)


ROOT = task(0, None, None, ScopeView(nursery=0))


def snapshot(*requests, queued=0, free=1, workers=(), state="serving", **counts):
    """A server with these requests, and counts."""
    return ServerSnapshot(
        name="S",
        state=state,
        uptime=1.0,
        listeners=(ListenerSnapshot(address=HERE, accepting=True, queued=queued),),
        requests=requests,
        statistics=Statistics(**counts),
        workers=workers,
        slots=2,
        free_slots=free,
    )


def served(it, at, *, state="working", left=10.0, sent=0, number=None):
    """A request as it is at an instant."""
    return RequestSnapshot(
        info=it,
        state=state,
        age=at - it.started,
        time_left=left,
        bytes_received=0,
        bytes_sent=sent,
        task=number,
    )


def looks(linter, *tasks, servers=lambda at: [], times=(0.0, 100.0)):
    """What the last of some looks finds, at which all is still as it was."""
    for at in times:
        found = linter.look(TaskTree(at, (ROOT, *tasks)), servers(at))
    return found


def kinds(found):
    """The lints, and the tasks they are about."""
    return [(it.lint, it.task) for it in found]


SWALLOWED = "swallowed-cancellation"
NURSERY, NURSERY_1 = ScopeView(nursery=0), ScopeView(nursery=1)
DEAD = ScopeView(nursery=0, cancelled=WHY)
DEAD_1 = ScopeView(nursery=1, cancelled=WHY)
LATE = ScopeView(1.0, cancelled=Cancellation(source="deadline"))


@table(
    "tasks, found",
    {
        "A task that nothing cancels is fine": ([task(1)], []),
        "One that is still there after its cancellation is not": (
            [task(1, 0, 0, CANCELLED)],
            [(SWALLOWED, 1)],
        ),
        "be it by a deadline": ([task(1, 0, 0, LATE)], [(SWALLOWED, 1)]),
        "be it inside of a scope that lives": (
            [task(1, 0, 0, CANCELLED, ScopeView())],
            [(SWALLOWED, 1)],
        ),
        "A parent has to wait for its children, so it is theirs": (
            [task(1, 0, 0, DEAD), task(2, 1, 0)],
            [(SWALLOWED, 2)],
        ),
        "but for those in a nursery that lives on, it does not wait": (
            [task(1, 0, 0, NURSERY, CANCELLED), task(2, 1, 0)],
            [(SWALLOWED, 1)],
        ),
        "Of two nurseries, a child is in the scopes up to its own's": (
            [task(1, 0, 0, NURSERY, DEAD_1), task(2, 1, 0), task(3, 1, 1)],
            [(SWALLOWED, 3)],
        ),
        "and the inner one is in the outer one's": (
            [task(1, 0, 0, DEAD, NURSERY_1), task(2, 1, 0), task(3, 1, 1)],
            [(SWALLOWED, 2), (SWALLOWED, 3)],
        ),
        "A child's own shield keeps it off, and is another finding": (
            [task(1, 0, 0, DEAD), task(2, 1, 0, SHIELD)],
            [("long-shield", 2)],
        ),
        "so does its nursery's, and what is in there is fine": (
            [task(1, 0, 0, CANCELLED, ScopeView(shield=True, nursery=0)), task(2, 1, 0)],
            [("long-shield", 1)],
        ),
        "A shield with nothing to keep off is fine": ([task(1, 0, 0, SHIELD)], []),
        "and so is one that is outside of what is cancelled": (
            [task(1, 0, 0, SHIELD, CANCELLED)],
            [(SWALLOWED, 1)],
        ),
        "A shield that is cancelled itself keeps nothing off": (
            [task(1, 0, 0, CANCELLED, ScopeView(shield=True, cancelled=WHY))],
            [(SWALLOWED, 1)],
        ),
    },
)
def test_cancellations(tasks, found):
    """A cancellation reaches a task from its scopes, and those around, up to a shield."""
    assert kinds(looks(Linter(), *tasks)) == found


def test_bounds():
    """It is found when it has been so for longer than its bound, not before; anew when it was not.

    By default a shield has what a clean-up has.
    """
    linter, here = Linter(swallowed_cancellation=3), task(1, 0, 0, CANCELLED)
    assert looks(linter, here, times=(5.0, 8.0)) == ()
    [found] = looks(linter, here, times=(8.5,))
    assert found.since == 3.5
    assert "'t1' is still there 3.5 s after it was cancelled (no need for it)" in found.message
    assert looks(linter, task(1), times=(9.0,)) == ()
    assert looks(linter, here, times=(9.5, 12.5)) == ()
    assert Linter().long_shield == Timeouts().cleanup == 5
    assert looks(Linter(swallowed_cancellation=math.inf), here) == ()


def to_thread_run_sync():
    """Has the name of Trio's function."""


def test_thread_cannot_hear_it():
    """Where a task waits for a thread, the message says that it cannot hear; and where it is."""
    stack = ((test_bounds.__code__, 7), (to_thread_run_sync.__code__, 3))
    [found] = looks(Linter(), task(1, 0, 0, CANCELLED, stack=stack))
    assert "waits for a thread, which cannot hear of it" in found.message
    [found] = looks(Linter(), task(1, 0, 0, CANCELLED, stack=stack[:1]))
    assert "let trio.Cancelled pass" in found.message
    assert f"{__file__}:7 in test_bounds" in found.message


ONE = info()
OTHERS = info(started=1.0)
OUTLIVES = "child-outlives-request"


def no_worker(at):
    """A worker that serves nobody."""
    return WorkerSnapshot(
        pid=1, generation=1, state="serving", age=0.0, requests=(), statistics=Statistics()
    )


@table(
    "servers, found",
    {
        "While its request is here, a task is fine": (lambda at: [snapshot(served(ONE, at))], []),
        "when it has ended, no task of it is": (lambda at: [snapshot()], [5, 6]),
        "A request that is closing has no other task than its own": (
            lambda at: [snapshot(served(ONE, at, state="closing", number=5))],
            [6],
        ),
        "One of another run with the same id is another one": (
            lambda at: [snapshot(served(OTHERS, at))],
            [5, 6],
        ),
        "and so is one that was accepted at another time of the day": (
            lambda at: [snapshot(served(info(started_at=7.0), at))],
            [5, 6],
        ),
        "Among several servers it is looked for in all": (
            lambda at: [snapshot(), snapshot(served(ONE, at))],
            [],
        ),
        "Nobody knows of requests of servers that are not looked at": (lambda at: [], []),
        "nor of those of other listeners": (
            lambda at: [attrs.evolve(snapshot(), listeners=())],
            [],
        ),
        "nor of those that workers have": (
            lambda at: [snapshot(workers=(no_worker(at),), free=None)],
            [],
        ),
        "A snapshot of another process, with its own clock, tells nothing": (
            lambda at: [snapshot(served(info(2, started=-9e4), at + 1000))],
            [],
        ),
    },
)
def test_child_outlives_request(servers, found):
    """A task of a request that has ended is found; if the tree and the snapshots belong together.

    With the request's own id and task.
    """
    tasks = [task(5, request=ONE), task(6, request=ONE)]
    said = looks(Linter(), *tasks, servers=servers)
    assert kinds(said) == [(OUTLIVES, number) for number in found]
    assert {it.request for it in said} <= {1}


def test_request_that_was_seen_is_known():
    """Of a request that was seen, the end is known though the server listens no more."""
    linter, child = Linter(), task(6, request=ONE)
    gone = attrs.evolve(snapshot(), listeners=())
    looks(linter, child, servers=lambda at: [snapshot(served(ONE, at))], times=(0.0,))
    assert looks(linter, child, servers=lambda at: [gone], times=(100.0,)) == ()
    assert kinds(looks(linter, child, servers=lambda at: [gone], times=(200.0,))) == [(OUTLIVES, 6)]
    looks(linter, servers=lambda at: [gone], times=(300.0,))
    assert not linter._known
    assert not linter._since


HOURS = (0.0, 7200.0)


@table(
    "servers, tasks, found",
    {
        "A request with a deadline is fine": (lambda at: [snapshot(served(ONE, at))], [], []),
        "one without is not, when it is old": (
            lambda at: [snapshot(served(ONE, at, left=math.inf))],
            [],
            ["no-deadline"],
        ),
        "nor is a worker's": (
            lambda at: [
                snapshot(
                    free=None,
                    workers=(
                        attrs.evolve(no_worker(at), requests=(served(ONE, at, left=math.inf),)),
                    ),
                )
            ],
            [],
            ["no-deadline"],
        ),
        "A client may be idle for ever, as far as it goes": (
            lambda at: [snapshot(served(ONE, at, left=math.inf, state="idle"))],
            [],
            [],
        ),
        "A deadline around the server is one": (
            lambda at: [snapshot(served(ONE, at, left=math.inf, number=5))],
            [task(1, 0, 0, ScopeView(9e9), NURSERY), task(5, 1, 0, request=ONE)],
            [],
        ),
        "but for one outside of a shield": (
            lambda at: [snapshot(served(ONE, at, left=math.inf, number=5))],
            [task(1, 0, 0, ScopeView(9e9), SHIELD, NURSERY), task(5, 1, 0, request=ONE)],
            ["no-deadline"],
        ),
        "That of a single wait, a sleep say, is none": (
            lambda at: [snapshot(served(ONE, at, left=math.inf, number=5))],
            [task(5, 0, 0, ScopeView(), ScopeView(9e9), request=ONE)],
            ["no-deadline"],
        ),
        "A client that takes something now and then is fine": (
            lambda at: [snapshot(served(ONE, at, state="writing", sent=int(at)))],
            [],
            [],
        ),
        "one that takes nothing is not": (
            lambda at: [snapshot(served(ONE, at, state="writing", sent=7))],
            [],
            ["reader-never-reads"],
        ),
        "Clients that wait while there is room are found": (
            lambda at: [snapshot(queued=3)],
            [],
            ["idle-slots"],
        ),
        "be it at a drain": (
            lambda at: [snapshot(state="draining", waiting=1)],
            [],
            ["idle-slots"],
        ),
        "Without room they have to": (lambda at: [snapshot(queued=3, free=0)], [], []),
        "and while some are accepted, the others will be": (
            lambda at: [snapshot(queued=3, accepted=int(at))],
            [],
            [],
        ),
        "A server that is suspended, or drains, leaves the kernel's queue alone": (
            lambda at: [
                snapshot(queued=3, state="suspended"),
                snapshot(queued=3, state="draining"),
            ],
            [],
            [],
        ),
        "Nobody knows of slots of workers, nor of all queues": (
            lambda at: [snapshot(queued=3, free=None), snapshot(queued=None)],
            [],
            [],
        ),
    },
)
def test_requests_and_servers(servers, tasks, found):
    """What requests and servers wait for in vain is found, with the server whose it is."""
    said = looks(Linter(), *tasks, servers=servers, times=HOURS)
    assert [it.lint for it in said] == found
    assert {it.server for it in said} <= {0}


def test_blocked_loop():
    """What a watchdog has noted is told once; and a look that comes late is a finding itself."""
    linter, tree = Linter(), TaskTree(10.0, (ROOT,))
    assert linter.look(tree, due=9.5) == ()
    [late] = linter.look(tree, due=8.0)
    assert (late.lint, late.since) == ("blocked-loop", 2.0)
    stack = '  File "a\n.py", line 1, in f\n    x\n  File "b.py", line 2, in g\n    y\n'
    linter.note_blocked(Blocked(seconds=3.0, task="one", request=ONE, stack=stack))
    [told] = linter.look(tree, due=8.0)
    assert (told.since, told.request) == (3.0, 1)
    expected = (
        "by task 'one' of request 1 from 10.0.0.1:5 for 3.0 s, at File \"b.py\", line 2, in g;"
    )
    assert expected in told.message
    assert linter.look(tree) == ()


def test_blocks_are_bounded():
    """Of very many blocks, the first ones are kept until the next look, and the others counted."""
    linter = Linter()
    for _ in range(103):
        linter.note_blocked(Blocked(seconds=3.0))
    *kept, last = linter.look(TaskTree(10.0, ()))
    assert len(kept) == 100
    assert "3 times more" in last.message


def test_finding_as_json_and_text():
    """A finding is values of JSON, and one line of text, with what clients have named escaped."""
    evil = task(1, 0, 0, CANCELLED)._replace(name="a\x1b[2J\nb")
    [found] = looks(Linter(), evil)
    told = json.loads(json.dumps(found.as_json()))
    assert told == attrs.asdict(found)
    assert set(told) == {"lint", "message", "since", "server", "request", "task"}
    assert as_text(found) == str(found) == f"swallowed-cancellation: {found.message}"
    assert found.message.isprintable()
    assert r"a\x1b[2J\nb" in found.message
    odd = Finding(lint="x", message="a\nb", since=1.0)
    assert as_text([odd, odd]) == "x: a\\nb\nx: a\\nb"
    assert as_text(()) == ""
    with pytest.raises(TypeError, match="or Findings were expected, not \\[3\\]"):
        as_text([3])


@table(
    "values, error, words",
    {
        "a text": ({"long_shield": "5"}, TypeError, "Linter.long_shield must be a number of"),
        "a flag": ({"no_deadline": True}, TypeError, "Linter.no_deadline must be a number of"),
        "less than none": ({"idle_slots": -1}, ValueError, "Linter.idle_slots must be at least 0"),
        "no number": ({"blocked_loop": math.nan}, ValueError, "must be at least 0 seconds"),
    },
)
def test_wrong_bounds(values, error, words):
    """A wrong bound is refused at once."""
    with pytest.raises(error, match=words):
        Linter(**values)


def test_each_lint_has_a_bound():
    """The bounds of a linter are those of its lints, and one for a look that is late."""
    public = {field.name for field in attrs.fields(Linter) if field.init}
    assert public == {name.replace("-", "_") for name in (*LINTS, "blocked-loop")}


async def test_real_tree_is_clean(autojump_clock):
    """A program in which nothing is wrong gives no finding, however long it waits."""
    linter = Linter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 10_000)
        for _ in range(3):
            assert linter.look(task_tree()) == ()
            await trio.sleep(2000)


# Odd data -------------------------------------------------------------------------

numbers = st.floats() | st.sampled_from([0.0, 1.0, math.inf])
ids = st.none() | st.integers(-1, 4)
scopes = st.builds(
    ScopeView,
    numbers,
    st.booleans(),
    ids,
    st.none() | st.builds(Cancellation, st.text(), st.text()),
)
addresses = st.sampled_from([HERE, "path", b"\0a", None, ["not", "hashable"]])
infos = st.builds(
    RequestInfo,
    id=st.integers(0, 2),
    client_address=addresses,
    server_address=addresses,
    started=numbers,
    started_at=numbers,
)
tasks_ = st.builds(
    TaskView,
    st.integers(0, 4),
    ids,
    ids,
    st.integers(0, 3),
    st.text(),
    st.lists(scopes, max_size=3).map(tuple),
    st.none() | infos,
    st.just(()),
)
requests_ = st.builds(
    RequestSnapshot,
    info=infos,
    state=st.sampled_from(["working", "writing", "closing", "idle", "?"]),
    age=numbers,
    time_left=numbers,
    bytes_received=st.integers(),
    bytes_sent=st.integers(),
    task=ids,
)
snapshots_ = st.lists(requests_, max_size=3).flatmap(
    lambda some: st.builds(
        snapshot,
        *map(st.just, some),
        queued=st.none() | st.integers(-1, 3),
        free=st.none() | st.integers(-1, 3),
        state=st.sampled_from(["serving", "unbound"]),
    )
)
trees = st.builds(TaskTree, numbers, st.lists(tasks_, max_size=6).map(tuple))


@given(st.lists(st.tuples(trees, st.lists(snapshots_, max_size=2)), max_size=4))
def test_odd_trees(seen):
    """Whatever the data are, it does not raise; and it remembers no more than they have."""
    linter = Linter(swallowed_cancellation=0, long_shield=0, child_outlives_request=0)
    for tree, snapshots in seen:
        for finding in linter.look(tree, snapshots):
            assert finding.message.isprintable()
        size = len(tree.tasks) + sum(len(one.requests) + 1 for one in snapshots)
        assert len(linter._since) <= 3 * size
        assert len(linter._known) <= len(tree.tasks)
