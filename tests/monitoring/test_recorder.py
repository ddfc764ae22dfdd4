"""What is recorded of a program, and the tree of tasks of any instant of it, rebuilt."""

import json
import math
import random
import re
from collections import Counter

import attrs
import pytest
import trio
from support import Upper
from support.scenes import table
from trio.testing import MockClock

import trioserver
from trioserver.monitoring import Recorder, Recording, task_tree
from trioserver.monitoring._recording.following import Following
from trioserver.monitoring._recording.recording import json_of
from trioserver.monitoring._recording.ring import Ring
from trioserver.testing import MemoryServer
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


def run_recorded(seed, limit=100_000, schedule_seed=0, trees=None, scopes=True):
    """A program of chance, recorded from its first to its last line; with its live trees."""
    recorder = Recorder(limit, scopes=scopes)

    async def main():
        with recorder:
            with trio.move_on_after(50):
                await Program(seed).nursery(0)
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
        task._replace(
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
    return scope._replace(cancelled=attrs.evolve(scope.cancelled, by=by))


@pytest.mark.parametrize("limit", [100_000, 40])
def test_trees_are_those_that_were(limit):
    """The tree of each instant is rebuilt exactly: tasks, nurseries, scopes, cancellations.

    Also of a recording that has dropped most of its events.
    """
    compared, kinds = 0, set()
    for seed in range(60):
        live = LiveTrees()
        recording = run_recorded(seed, limit, trees=live)
        kinds.update(event.kind for event in recording.events)
        for at, tree in live.trees.items():
            if recording.exact_from <= at < recording.ended:
                assert comparable(recording.tree(at)) == comparable(tree), (seed, at)
                compared += len(tree.tasks)
    assert compared > 500
    changes = {"task_moved", "scope_changed", "scope_cancelled", "scope_closed", "task_ended"}
    assert changes <= kinds


async def test_tree_of_requests(autojump_clock):
    """The tree tells which request a task works for, who is the client, and its scopes."""
    recorder = Recorder(scopes=True)

    async def handle(request, client_address, server):
        with trio.move_on_after(7):
            await request.recv(1)

    with recorder:
        async with MemoryServer(("memory", 1), handle, observers=(recorder,)).serving() as server:
            await server.connect()
            await trio.sleep(3)
            live, tree = task_tree(stacks=False), recorder.recording().tree()
    tasks = comparable(tree)
    for replayed, task in zip(tasks, comparable(live), strict=True):
        request = task.request and attrs.evolve(task.request, started_at=0.0)
        assert replayed == task._replace(request=request)
    assert [task.request.id for task in tasks if task.request is not None] == [1]


@pytest.mark.parametrize("scopes", [True, False])
def test_same_to_the_byte(scopes):
    """Under a virtual clock and one schedule, a hundred recordings of a program are the same."""
    told = {
        json.dumps(run_recorded(7, scopes=scopes).as_json(), ensure_ascii=False) for _ in range(100)
    }
    assert len(told) == 1
    assert ("scope_opened" in told.pop()) is scopes


def test_another_schedule_is_another_recording():
    """What is recorded is what has happened: in another order where tasks took other turns."""
    recordings = [run_recorded(7, schedule_seed=seed) for seed in range(8)]
    assert any(recording != recordings[0] for recording in recordings)


ROOTS = ["<init>", "run_sync_soon task>", "main"]
"""The tasks around a program: Trio's own, and the one that the recorder's block is in."""


def test_all_that_began_has_ended():
    """Each task and scope that began within the recording ended in it, once, at its own time."""
    for seed in range(20):
        recording = run_recorded(seed)
        tasks = Counter()
        for event in recording.events:
            tasks[event.task] += {"task_started": 1, "task_ended": -1}.get(event.kind, 0)
        left = recording.tree()
        assert [task.name.rpartition(".")[2] for task in left.tasks] == ROOTS
        assert {task for task, is_there in tasks.items() if is_there} == {1, 2, 3}
        begun = [event.facts["scope"] for event in recording.events if event.kind == "scope_opened"]
        ended = [event.facts["scope"] for event in recording.events if event.kind == "scope_closed"]
        assert len(begun) == len(set(begun))
        assert len(ended) == len(set(ended))
        assert len(set(begun) - set(ended)) == sum(len(task.scopes) for task in left.tasks)
        times = [event.at for event in recording.events]
        assert times == sorted(times)


def test_json_there_and_back():
    """A recording is the same when it has been JSON, and its trees are."""
    for seed in range(10):
        recording = run_recorded(seed, limit=60)
        again = Recording.from_json(json.loads(json.dumps(recording.as_json(), allow_nan=False)))
        assert again == recording
        assert again.tree() == recording.tree()
        assert json.loads("".join(json_of(recording))) == recording.as_json()


GOOD = Recording(events=(), started=0.0, exact_from=0.0, ended=1.0).as_json()


@table(
    "value, says",
    {
        "no object": (7, "is expected, not 7"),
        "nothing": ({}, "'trioserver.recording' of version 1 is expected, not (None, None)"),
        "another version": ({**GOOD, "version": 2}, "is expected, not ('trioserver.recording', 2)"),
        "no end": ({**GOOD, "ended": None}, "a recording lacks something"),
        "an unknown kind": ({**GOOD, "events": [[0, "x", 1, {}]]}, "'x' is no kind of event"),
        "no event": ({**GOOD, "base": [["x"]]}, "an event is [time, kind, task, facts], not ['x']"),
    },
)
def test_wrong_json(value, says):
    """What is no recording is refused with words that say why."""
    with pytest.raises(ValueError, match=re.escape(says)):
        Recording.from_json(value)


def test_a_million_events():
    """The ring holds as many events as were asked for, and counts the others."""
    ring = Ring(limit=1000)
    for number in range(1_000_000):
        if number % 4 == 0:
            ring.note(number, "task_started", number, {"parent": None, "nursery": None})
        elif number % 4 == 1:
            ring.note(number, "mark", None, {"text": "x"})
        elif number % 4 == 2:
            facts = {"scope": number, "deadline": None, "shield": False, "nursery": None}
            ring.note(number, "scope_opened", number - 2, facts)
        else:
            ring.note(number, "task_ended", number - 3, {})
    assert len(ring.events()) == 1000
    assert ring.dropped == 999_000
    assert list(ring.base.events()) == []


async def test_beyond_the_recording(autojump_clock):
    """An instant whose tree nobody knows is refused: before the first event, after the end."""
    with (recorder := Recorder(limit=1, scopes=True)):
        await trio.sleep(2)
        recorder.mark("one")
        await trio.sleep(2)
        recorder.mark("two")
    recording = recorder.recording()
    assert recording.exact_from == recording.started + 4
    for at in (recording.started, recording.ended + 1):
        with pytest.raises(ValueError, match=r"are known from 4\.0 to 4\.0, not at"):
            recording.tree(at)


async def test_who_cancels(autojump_clock):
    """A cancellation tells its reason and who has called, be it over by then."""

    async def boss(scope):
        scope.cancel(reason="enough")

    with (recorder := Recorder(scopes=True)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(boss, nursery.cancel_scope)
            await trio.sleep(9)
    events = recorder.recording().events
    [boss] = [event for event in events if event.facts.get("name", "").endswith("boss")]
    [cancelled] = [event for event in events if event.kind == "scope_cancelled"]
    assert cancelled.facts["by_task"] == boss.task != cancelled.task
    assert (cancelled.facts["reason"], cancelled.facts["source"]) == ("enough", "explicit")
    assert " at 0x" not in cancelled.facts["by"]


async def test_what_observers_hear(autojump_clock):
    """Requests, refusals, drains and closes are noted of several servers, in the order of time."""
    recorder = Recorder(scopes=True)

    async def fails(request, client_address, server):
        raise KeyError("x")

    limits = trioserver.Limits(requests=1, when_full="refuse")
    options = {"observers": (recorder,), "limits": limits}
    with recorder:
        async with MemoryServer(("memory", 1), Upper, **options).serving() as server:
            first = await server.connect()
            await trio.sleep(1)
            await server.connect()
            await trio.sleep(1)
            async with MemoryServer(("memory", 2), fails, **options).serving() as other:
                await other.connect()
                await trio.sleep(1)
            await first.send_eof()
            await trio.sleep(1)
    events = recorder.recording().events
    servers = [event for event in events if not event.kind.startswith(("task_", "scope_"))]
    assert [event.kind for event in servers] == [
        *("listening", "request_started", "request_refused"),
        *("listening", "request_started", "request_finished", "draining", "closed"),
        *("request_finished", "draining", "closed"),
    ]
    ends = [event.facts["outcome"] for event in events if event.kind == "request_finished"]
    assert ends == ["failed", "completed"]


async def test_observer_without_a_block(autojump_clock):
    """A recorder that only observes records requests, and no tasks."""
    recorder = Recorder(scopes=True)
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        recorder.recording()
    async with MemoryServer(("memory", 1), Upper, observers=(recorder,)).serving() as server:
        await (await server.connect()).send_eof()
        await trio.sleep(1)
    kinds = {event.kind for event in recorder.recording().events}
    assert kinds == {"listening", "request_started", "request_finished", "draining", "closed"}
    assert recorder.recording().tree().tasks == ()


class Broken(trioserver.Observer):
    def request_started(self, info):
        raise ZeroDivisionError


class BrokenInstrument(trio.abc.Instrument):
    def after_task_step(self, task):
        raise ZeroDivisionError


async def test_broken_neighbours(autojump_clock, caplog):
    """An observer or an instrument beside it that raises takes nothing from a recording."""
    recorder = Recorder(scopes=True)
    trio.lowlevel.add_instrument(BrokenInstrument())
    with recorder:
        observers = (Broken(), recorder)
        async with MemoryServer(("memory", 1), Upper, observers=observers).serving() as server:
            await (await server.connect()).send_eof()
            await trio.sleep(1)
    kinds = [event.kind for event in recorder.recording().events]
    assert kinds.count("request_started") == kinds.count("request_finished") == 1
    assert not recorder.failures


async def test_what_cannot_be_noted(monkeypatch, caplog):
    """A failure of its own is logged once and counted, and Trio does not drop the recorder."""
    recorder = Recorder(scopes=True)
    with recorder:
        with monkeypatch.context() as patch:
            patch.setattr(Following, "_place_of", lambda self, followed: 1 / 0)
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(trio.lowlevel.checkpoint)
        recorder.mark("still there")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint, name="a later one")
    assert recorder.failures == 3
    messages = [record.message for record in caplog.records]
    assert messages == ["an event could not be recorded; more of this kind are only counted"]
    names = [event.facts.get("name") for event in recorder.recording().events]
    assert "a later one" in names


async def test_one_block(autojump_clock):
    """A recorder has one block, in a Trio program; afterwards nothing of the program is held."""
    recorder = Recorder(scopes=True)
    with recorder:
        with pytest.raises(RuntimeError, match="records one block"):
            recorder.__enter__()
    with pytest.raises(RuntimeError, match="records one block"):
        recorder.__enter__()
    before = recorder.recording()
    await trio.sleep(1)
    assert recorder.recording() == before
    assert not recorder._following._tasks


def test_wrong_arguments():
    """A limit that is no number from 1 on, and a mark that is no text, are refused."""
    for limit in (0, -1, 2.5, math.inf, "9", True, None):
        expected = re.escape(f"limit must be a number of events, at least 1, not {limit!r}")
        with pytest.raises(ValueError, match=expected):
            Recorder(limit=limit)
    with pytest.raises(TypeError, match="a mark is a text, not 3"):
        Recorder().mark(3)
    with pytest.raises(RuntimeError):
        Recorder().__enter__()


async def test_blocked_from_a_thread():
    """A watchdog's thread notes that the loop was blocked; it is noted when the loop turns."""
    with (recorder := Recorder(scopes=True)):
        await trio.to_thread.run_sync(recorder.note_blocked, 1.5, "in handle")
        with trio.fail_after(5):
            while not (found := [e for e in recorder.recording().events if e.kind == "blocked"]):
                await trio.lowlevel.checkpoint()
    assert [event.facts for event in found] == [{"seconds": 1.5, "where": "in handle"}]
    recorder.note_blocked(1.0, "too late")
    assert len([e for e in recorder.recording().events if e.kind == "blocked"]) == 1


def test_chrome_trace():
    """Perfetto's form: each task is a lane, what begins ends, and arrows have both ends."""
    for seed in range(20):
        recording = run_recorded(seed)
        trace = json.loads(json.dumps(recording.as_chrome_trace(), allow_nan=False))["traceEvents"]
        lanes = {event["tid"] for event in trace if event["ph"] == "M"}
        assert {event["tid"] for event in trace} <= lanes
        spans = [event for event in trace if event["ph"] == "X"]
        kinds = [event.kind for event in recording.events]
        assert len(spans) == kinds.count("task_started") + kinds.count("scope_opened")
        assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)
        ends = {ph: [event["id"] for event in trace if event["ph"] == ph] for ph in "sf"}
        assert ends["s"] == ends["f"]
