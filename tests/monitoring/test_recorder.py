"""What is recorded of a program, and the tree of tasks of any instant of it, rebuilt."""

import random
import re

import attrs
import pytest
import trio
from trio.testing import MockClock

from trioserver.monitoring import Recorder, task_tree
from trioserver.testing._sweeping import schedule

# Programs that chance writes ---------------------------------------------------------


class Program:
    """A tree of tasks that open nurseries and scopes, wait, fail and cancel, as a seed says."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.scopes = []
        self.tasks = 0

    async def run(self, depth=0, task_status=trio.TASK_STATUS_IGNORED):
        self.tasks += 1
        for _ in range(self.chance.randint(1, 4)):
            await self.do_one_thing(depth)
            if self.chance.random() < 0.3:
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED

    async def do_one_thing(self, depth):
        chance = self.chance
        kind = chance.choice(["wait", "wait", "scope", "nursery", "cancel", "deadline", "shield"])
        if kind == "scope" and depth < 5:
            await self.scope(depth)
        elif kind == "nursery" and depth < 5 and self.tasks < 25:
            await self.nursery(depth)
        elif self.scopes and kind == "cancel":
            chance.choice(self.scopes).cancel(reason=chance.choice(["because", "", "\x1b[31m"]))
        elif self.scopes and kind == "deadline":
            chance.choice(self.scopes).deadline = trio.current_time() + chance.randint(0, 5)
        elif self.scopes and kind == "shield":
            scope = chance.choice(self.scopes)
            scope.shield = not scope.shield
        await trio.sleep(chance.choice([0, 1, 1, 2, 3]))

    async def scope(self, depth):
        chance = self.chance
        deadline = chance.choice([float("inf"), trio.current_time() + chance.randint(0, 4)])
        with trio.CancelScope(deadline=deadline, shield=chance.random() < 0.3) as scope:
            self.scopes.append(scope)
            await self.run(depth + 1)
        self.scopes.remove(scope)

    async def nursery(self, depth):
        async with trio.open_nursery() as nursery:
            self.scopes.append(nursery.cancel_scope)
            for _ in range(self.chance.randint(1, 3)):
                nursery.start_soon(self.run, depth + 1)
            if self.chance.random() < 0.3:
                await nursery.start(self.child_that_starts, depth + 1)
            await self.do_one_thing(depth + 1)
        self.scopes.remove(nursery.cancel_scope)

    async def child_that_starts(self, depth, task_status):
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.call, task_status.started)
            await self.run(depth + 1)

    async def call(self, started):
        await trio.sleep(self.chance.choice([0, 1]))
        started()


class LiveTrees(trio.abc.Instrument):
    """The last tree of tasks of each instant, as it was when all tasks waited."""

    def __init__(self):
        self.trees = {}

    def before_io_wait(self, timeout):
        self.trees[trio.current_time()] = task_tree(stacks=False)


def run_recorded(seed, limit=100_000, schedule_seed=0, trees=None):
    """A program of chance, recorded from its first to its last line; with its live trees."""
    recorder = Recorder(limit)

    async def main():
        with recorder:
            with trio.move_on_after(50):
                await Program(seed).run()
            await trio.sleep(1)

    with schedule.fixed_schedule(schedule_seed):
        instruments = [] if trees is None else [trees]
        trio.run(main, clock=MockClock(autojump_threshold=0), instruments=instruments)
    assert not recorder.failures
    return recorder.recording()


def comparable(tree):
    """A tree without what no recording has: ids are by the order in which tasks were started."""
    numbers = {it: number for number, it in enumerate(sorted(task.id for task in tree.tasks))}
    numbers[None] = None
    return [
        attrs.evolve(
            task,
            id=numbers[task.id],
            parent=numbers[task.parent],
            stack=(),
            scopes=tuple(map(without_address, task.scopes)),
        )
        for task in tree.tasks
    ]


def without_address(scope):
    """A scope, without where in memory the task was that has cancelled it."""
    if scope.cancelled is None:
        return scope
    by = re.sub(r" at 0x\w+>$", ">", scope.cancelled.by)
    return attrs.evolve(scope, cancelled=attrs.evolve(scope.cancelled, by=by))


@pytest.mark.parametrize("limit", [100_000, 40])
def test_trees_are_those_that_were(limit):
    """The tree of each instant is rebuilt exactly: tasks, nurseries, scopes, cancellations.

    Also of a recording that has dropped most of its events.
    """
    compared = 0
    for seed in range(60):
        live = LiveTrees()
        recording = run_recorded(seed, limit, trees=live)
        for at, tree in live.trees.items():
            if recording.exact_from <= at < recording.ended:
                assert comparable(recording.tree(at)) == comparable(tree), (seed, at)
                compared += len(tree.tasks)
    assert compared > 500
