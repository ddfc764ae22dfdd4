"""`task_tree`: what it tells of tasks, nurseries, scopes and requests, and in which order."""

import itertools
import json
import math
import operator

import attrs
import pytest
import trio
from support.scenes import table
from trio.testing import wait_all_tasks_blocked

from trioserver.monitoring import (
    Cancellation,
    ScopeView,
    TaskTree,
    TaskView,
    task_tree,
    tasks_below,
)
from trioserver.testing import MemoryServer

# Tasks that do one thing ------------------------------------------------------------


class Tree:
    """The tasks below one, as they are when all of them wait."""

    def __init__(self, tree):
        self.tree, self.root = tree, tree.tasks[0]

    def named(self, name):
        """The one task of this name."""
        [found] = [task for task in self.tree.tasks if task.name == name]
        return found

    @property
    def names(self):
        return [task.name for task in self.tree.tasks]


async def tree_of(*tasks, **more):
    """What runs when each of these has been started in one nursery, and waits."""
    async with trio.open_nursery() as nursery:
        for number, task in enumerate(tasks):
            nursery.start_soon(task, name=f"task {number}")
            await wait_all_tasks_blocked()
        found = task_tree(root=trio.lowlevel.current_task(), **more)
        nursery.cancel_scope.cancel(reason="it has been seen")
    return Tree(found)


async def with_two_nurseries():
    """Has a child in each of two nurseries, the older one in the inner."""
    async with trio.open_nursery() as outer, trio.open_nursery() as inner:
        inner.start_soon(trio.sleep_forever, name="older, inner")
        outer.start_soon(trio.sleep_forever, name="younger, outer")
        outer.start_soon(trio.sleep_forever, name="youngest, outer")


async def cancelled_by_itself():
    """Goes on for a while though it has cancelled itself."""
    with trio.CancelScope() as scope:
        scope.cancel(reason="no more")
        await hear_nothing()


async def late():
    """Goes on for a while though its deadline has passed."""
    with trio.CancelScope(deadline=-math.inf):
        await hear_nothing()


async def hear_nothing():
    """Take a minute, whatever is cancelled."""
    with trio.move_on_after(60, shield=True):
        await trio.sleep_forever()


async def with_a_failed_child():
    """A child of its nursery has failed, and another goes on for a while."""
    with pytest.RaisesGroup(ValueError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear_nothing)
            nursery.start_soon(fail)


async def fail():
    """Fail at once."""
    raise ValueError


# What is told -----------------------------------------------------------------------


async def test_places():
    """Each task has its parent, the nursery there, its depth, and a number that no other has."""
    tree = await tree_of(with_two_nurseries, trio.sleep_forever)
    assert tree.names[1:] == [
        "task 0",
        "younger, outer",
        "youngest, outer",
        "older, inner",
        "task 1",
    ]
    parent = tree.named("task 0")
    for name, nursery in (("younger, outer", 0), ("youngest, outer", 0), ("older, inner", 1)):
        child = tree.named(name)
        assert (child.parent, child.nursery, child.depth) == (parent.id, nursery, 2)
    assert (parent.parent, parent.depth) == (tree.root.id, 1)
    assert tree.root.depth == 0
    assert len({task.id for task in tree.tree.tasks}) == 6
    assert tree.root.parent is not None  # it is the test's, which is in a nursery, too


async def test_order():
    """Each task comes before those below it; those of one nursery in the order of their start."""
    tree = (await tree_of(*[trio.sleep_forever] * 20)).tree
    assert [task.name for task in tree.tasks[1:]] == [f"task {number}" for number in range(20)]
    ids = [task.id for task in tree.tasks[1:]]
    assert ids == sorted(ids)
    seen = set()
    for task in task_tree().tasks:
        assert task.parent is None or task.parent in seen
        seen.add(task.id)


@table(
    "program, scopes",
    {
        "No scope": (trio.sleep_forever, ()),
        "An own one, with its deadline": (lambda: sleeps_until(1e9), (ScopeView(1e9),)),
        "A nursery's is known as such": (
            lambda: sleeps_until(1e9, with_two_nurseries),
            (ScopeView(1e9), ScopeView(nursery=0), ScopeView(nursery=1)),
        ),
        "A cancelled one, with why and by whom; and a shield": (
            cancelled_by_itself,
            (
                ScopeView(cancelled=Cancellation("no more", "explicit", "task 0")),
                ScopeView(60.0, shield=True),
            ),
        ),
        "One whose deadline has passed": (
            late,
            (
                ScopeView(-math.inf, cancelled=Cancellation("", "deadline")),
                ScopeView(60.0, shield=True),
            ),
        ),
    },
)
async def test_scopes(program, scopes, autojump_clock):
    """The scopes of a task are there, outermost first, with all that they do."""
    found = (await tree_of(program)).named("task 0").scopes
    for seen, expected in itertools.zip_longest(found, scopes):
        who = seen.cancelled and attrs.evolve(seen.cancelled, by=who_called(seen.cancelled.by))
        assert seen._replace(cancelled=who) == expected


def who_called(task):
    """The name in what Trio shows of a task."""
    return "task 0" if "task 0" in task else task


async def sleeps_until(deadline, below=trio.sleep_forever):
    """Has a scope with a deadline around what it does."""
    with trio.CancelScope(deadline=deadline):
        await below()


async def test_scopes_of_a_failed_nursery(autojump_clock):
    """That a child has failed is told of the nursery's scope."""
    [scope] = (await tree_of(with_a_failed_child)).named("task 0").scopes
    assert (scope.nursery, scope.cancelled.source) == (0, "nursery")


async def test_requests():
    """The tasks of a request and those that it starts have its info; no other task has it."""

    async def handle(request, client_address, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever, name="child")

    async with MemoryServer(("memory", 1), handle).serving(grace=0) as server:
        await server.connect(("192.0.2.1", 51022))
        await wait_all_tasks_blocked()
        tree = task_tree()
        [request] = server.snapshot().requests
    whose = [task for task in tree.tasks if task.request is not None]
    assert [task.request for task in whose] == [request.info] * 2
    assert (whose[0].id, whose[1].name) == (request.task, "child")


async def test_stacks():
    """Where a task waits is told from the outside in, unless nobody wants to know."""
    task = (await tree_of(lambda: sleeps_until(1e9))).named("task 0")
    names = [code.co_name for code, _ in task.stack]
    assert names[:2] == ["sleeps_until", "sleep_forever"]
    assert all(line > 0 for _, line in task.stack)
    bare = await tree_of(lambda: sleeps_until(1e9), stacks=False)
    assert {task.stack for task in bare.tree.tasks} == {()}


# Whole trees ------------------------------------------------------------------------


async def descend(levels, bottom, seen):
    """Be so many tasks, each in a nursery of the one above."""
    if not levels:
        bottom.set()
        await seen.wait()
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(descend, levels - 1, bottom, seen)


async def test_deep_trees():
    """A tree may be 3000 tasks deep, which is more than Python's stack; also its text and JSON."""
    bottom, seen = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(descend, 2999, bottom, seen)
        await bottom.wait()
        tree = task_tree(root=trio.lowlevel.current_task())
        below = list(tasks_below(trio.lowlevel.current_task()))
        seen.set()  # and no cancellation, in which Trio would call itself as many times
    deepest = tree.tasks[-1]
    assert (deepest.depth, len(tree.tasks)) == (3000, len(below))
    assert len(str(tree).split("\n")) > 3000
    assert len(json.loads(json.dumps(tree.as_json()))["tasks"]) == len(below)
    assert tree.below(tree.tasks[1000].id) == tree.tasks[1000:]


def test_below():
    """The tasks below one are those after it that are deeper, up to the first that is not."""
    depths = [0, 1, 2, 2, 1, 2]
    tasks = tuple(TaskView(it, None, None, depth, "") for it, depth in enumerate(depths))
    tree = TaskTree(0.0, tasks)
    below = {it: [task.id for task in tree.below(it)] for it in (0, 1, 3, 4, 9)}
    assert below == {0: [*range(6)], 1: [1, 2, 3], 3: [3], 4: [4, 5], 9: []}


async def test_no_task():
    """What is no task has no tree."""
    with pytest.raises(TypeError, match="root must be a task of Trio, or None, not 5"):
        task_tree(root=5)


def test_outside():
    """Outside of Trio there is no tree, and no task is below none."""
    with pytest.raises(RuntimeError):
        task_tree()
    assert list(tasks_below(None)) == []


async def test_values():
    """A tree of now equals one that is taken in the same step, and nothing changes it later."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await wait_all_tasks_blocked()
        one, other = task_tree(), task_tree()
        assert one == attrs.evolve(other, at=one.at)
        text = str(one)
        nursery.cancel_scope.cancel(reason="it has been seen")
    assert str(one) == text


# Another Trio -----------------------------------------------------------------------


class Public:
    """What Trio tells publicly of a task, a nursery or a scope; a private name is not there."""

    def __init__(self, it, known):
        self.it, self.known = it, known

    @property
    def __class__(self):
        return type(self.it)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return public(getattr(self.it, name), self.known)


def public(value, known):
    """The same, and of what is Trio's only what is public; of each thing one, as it is of Trio."""
    if isinstance(value, (list, set, frozenset)):
        return [public(one, known) for one in value]
    if isinstance(value, (trio.lowlevel.Task, trio.Nursery, trio.CancelScope)):
        return known.setdefault(value, Public(value, known))
    return value


async def two_nurseries_within_a_scope():
    """Has children, and a scope of its own that is not told where Trio keeps it to itself."""
    with trio.CancelScope(deadline=1e9):
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = 2e9
            nursery.start_soon(with_two_nurseries, name="child")


async def test_public_names_alone(autojump_clock):
    """In a Trio without its private names less is told of scopes, and nothing fails."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two_nurseries_within_a_scope, name="parent")
        nursery.start_soon(with_a_failed_child, name="failed")
        await wait_all_tasks_blocked()
        task = trio.lowlevel.current_task()
        whole, less = Tree(task_tree(root=task)), Tree(task_tree(root=public(task, {})))
        nursery.cancel_scope.cancel(reason="it has been seen")
    facts = operator.attrgetter("name", "depth", "nursery", "stack")
    assert sorted(map(facts, less.tree.tasks)) == sorted(map(facts, whole.tree.tasks))
    assert len({it.id for it in less.tree.tasks}) == len(whole.tree.tasks)
    assert whole.named("parent").scopes == (ScopeView(1e9), ScopeView(2e9, nursery=0))
    assert less.named("parent").scopes == (ScopeView(2e9, nursery=0),)
    assert less.named("failed").scopes == (ScopeView(nursery=0, cancelled=Cancellation()),)
    assert json.dumps(less.tree.as_json())
    assert "[cancelled]" in str(less.tree)
