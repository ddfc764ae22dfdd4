"""`as_text`: the very lines that trees and servers are shown as, and that each stays one line."""

import math
import sys

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import table

from trioserver import (
    ListenerSnapshot,
    Outcome,
    RequestInfo,
    RequestSnapshot,
    ServerSnapshot,
    Statistics,
    WorkerSnapshot,
)
from trioserver.monitoring import Cancellation, ScopeView, TaskTree, TaskView, as_text
from trioserver.monitoring._text.words import duration, size

# Trees ------------------------------------------------------------------------------


def place(name="wait", file="/app/work.py"):
    """Code that is in no file: its line is told by its number alone."""
    return compile("0", "", "exec").replace(co_filename=file, co_name=name, co_qualname=name)


HERE, THERE = ((place(), 3),), ((place("read"), 7),)
IN_TRIO = (place("park", sys.modules["trio"].__file__), 1)
IN_OURS = (place("turn", sys.modules["trioserver"].__file__), 2)

ROOT = TaskView(0, None, None, 0, "<init>")


def children(count, stack=HERE, *, start=1, **more):
    """So many tasks in one nursery of the root."""
    numbers = range(start, start + count)
    return [TaskView(it, 0, 0, 1, f"task {it}", stack=stack, **more) for it in numbers]


def scoped(*scopes):
    """A task with these scopes."""
    return [ROOT._replace(scopes=scopes)]


AT_HERE = "/app/work.py:3 in wait: "
BY_MAIN = Cancellation("no more", "explicit", "main")
BY_CLOCK, BY_NOBODY = Cancellation("", "deadline"), Cancellation()
DEEP = tuple((place(name), 1) for name in "abcde")


@table(
    "tasks, lines",
    {
        "No task is no line": ([], []),
        "A task without a stack is its name": ([ROOT], ["<init>"]),
        "with one it is told where it waits": (
            children(1),
            ["task 1", f"    {AT_HERE}"],
        ),
        "A task below is indented, as far as the first one is not": (
            [
                TaskView(5, 4, 0, 7, "one"),
                TaskView(6, 5, 0, 8, "two", stack=HERE),
                TaskView(7, 5, 1, 8, "three"),
            ],
            ["one", "  two", f"      {AT_HERE}", "  three"],
        ),
        "The last three calls are shown": (
            [ROOT._replace(stack=DEEP)],
            ["<init>", *(f"    /app/work.py:1 in {name}: " for name in "cde")],
        ),
        "those of Trio and of this library are not": (
            [ROOT._replace(stack=(*HERE, IN_OURS, IN_TRIO))],
            ["<init>", f"    {AT_HERE}"],
        ),
        "but for the last of this library, where there is no other": (
            [ROOT._replace(stack=(IN_OURS, IN_OURS, IN_TRIO))],
            ["<init>", f"    {IN_OURS[0].co_filename}:2 in turn: "],
        ),
        "of Trio alone there is nothing to tell": ([ROOT._replace(stack=(IN_TRIO,))], ["<init>"]),
        "A scope that does nothing is not told": (scoped(ScopeView()), ["<init>"]),
        "A deadline is told as what is left": (
            scoped(ScopeView(12.5)),
            ["<init>  [2.5 s left]"],
        ),
        "also one that has passed": (scoped(ScopeView(9.0)), ["<init>  [-1.0 s left]"]),
        "A shield is told, with its deadline": (
            scoped(ScopeView(shield=True), ScopeView(11.0, shield=True)),
            ["<init>  [shielded; shielded, 1.0 s left]"],
        ),
        "A cancellation is told by its reason": (
            scoped(ScopeView(12.5, cancelled=BY_MAIN)),
            ["<init>  [cancelled: no more]"],
        ),
        "or by its source": (
            scoped(ScopeView(9.0, shield=True, cancelled=BY_CLOCK)),
            ["<init>  [shielded, cancelled: deadline]"],
        ),
        "or by nothing": (scoped(ScopeView(cancelled=BY_NOBODY)), ["<init>  [cancelled]"]),
        "Four that wait at one place are shown": (
            [ROOT, *children(4)],
            ["<init>"]
            + [one for it in range(1, 5) for one in (f"  task {it}", f"      {AT_HERE}")],
        ),
        "of five there are three, and a count": (
            [ROOT, *children(5)],
            ["<init>"]
            + [one for it in range(1, 4) for one in (f"  task {it}", f"      {AT_HERE}")]
            + ["  (2 more like these, the last one is task 5)"],
        ),
        "Who waits elsewhere is shown, and so is who comes after": (
            [ROOT, *children(5), *children(1, THERE, start=6), *children(1, start=7)],
            ["<init>"]
            + [one for it in range(1, 4) for one in (f"  task {it}", f"      {AT_HERE}")]
            + ["  (2 more like these, the last one is task 5)"]
            + ["  task 6", "      /app/work.py:7 in read: ", "  task 7", f"      {AT_HERE}"],
        ),
        "Who is cancelled is not like the others": (
            [
                *children(5, scopes=(ScopeView(12.0),)),
                *children(1, start=6, scopes=(ScopeView(12.0, cancelled=BY_MAIN),)),
            ],
            [one for it in range(1, 4) for one in (f"task {it}  [2.0 s left]", f"    {AT_HERE}")]
            + ["(2 more like these, the last one is task 5)"]
            + ["task 6  [cancelled: no more]", f"    {AT_HERE}"],
        ),
        "nor is who is in another nursery": (
            [
                it._replace(nursery=number, stack=())
                for number in (0, 1)
                for it in children(2, start=1 + 2 * number)
            ],
            ["task 1", "task 2", "task 3", "task 4"],
        ),
    },
)
def test_tree(tasks, lines):
    """A tree of tasks at 10 s is these lines, and no other."""
    tree = TaskTree(10.0, tuple(tasks))
    assert as_text(tree).split("\n") == (lines or [""])
    assert str(tree) == as_text(tree)


# Servers ----------------------------------------------------------------------------


def request(number=1, client=("192.0.2.1", 51022), listener=("127.0.0.1", 80), **more):
    """A request; working, for 2 seconds, without a deadline."""
    info = RequestInfo(
        id=number, client_address=client, server_address=listener, started=0, started_at=0
    )
    facts = {"state": "working", "age": 2.0, "time_left": math.inf}
    return RequestSnapshot(info=info, **{**facts, "bytes_received": 0, "bytes_sent": 0, **more})


def server(**more):
    """A server that has served nobody for three minutes."""
    facts = {"name": "S", "state": "serving", "uptime": 192.9, "statistics": Statistics()}
    return ServerSnapshot(**{**facts, "listeners": (), "requests": (), **more})


def worker(**more):
    """A worker that has told of itself just now."""
    facts = {"pid": 7, "generation": 1, "state": "serving", "age": 0.5, "requests": ()}
    return WorkerSnapshot(**{**facts, "statistics": Statistics(), **more})


LISTENER = ListenerSnapshot(address=("127.0.0.1", 80), accepting=True)
UNIX = ListenerSnapshot(address="/run/x", accepting=False, queued=0)
QUEUE = attrs.evolve(LISTENER, queued=3)
COUNTS = Statistics(
    accepted=9,
    active=2,
    waiting=1,
    lingering=3,
    refused=4,
    outcomes={Outcome.COMPLETED: 5, Outcome.FAILED: 0, Outcome.DRAINED: 1},
)
HEAD = "S  serving  up 00:03:12  total 0  active 0"
COUNTED = "total 9  active 2  waiting 1  lingering 3  completed 5  drained 1  turned away 4"
WAITS = "192.0.2.1:51022  task  working  age 2.0 s  no deadline  in 0 B  out 0 B"
TOLD = {"state": "reading", "time_left": 1.25, "bytes_received": 999, "bytes_sent": 4000}
READS = "unix:(unnamed)  task  reading  age 2.0 s  left 1.2 s  in 999 B  out 4.0 kB"
TWO = (request(1), request(2))


@table(
    "snapshot, most, lines",
    {
        "A server is a line": (server(), math.inf, [HEAD]),
        "with the counts that are not 0": (
            server(statistics=COUNTS),
            math.inf,
            [f"{HEAD[:25]}{COUNTED}"],
        ),
        "its slots": (server(slots=8), math.inf, [f"{HEAD}  slots 8"]),
        "and how many of them nobody has": (
            server(slots=8, free_slots=0),
            math.inf,
            [f"{HEAD}  slots 0 of 8 free"],
        ),
        "Below are its listeners": (
            server(listeners=(LISTENER, UNIX)),
            math.inf,
            [HEAD, "├─ 127.0.0.1:80  accepting", "└─ unix:/run/x  not accepting"],
        ),
        "each with who waits for an accept": (
            server(listeners=(QUEUE,)),
            math.inf,
            [HEAD, "└─ 127.0.0.1:80  accepting  3 in the queue"],
        ),
        "and with its requests": (
            server(listeners=(LISTENER, UNIX), requests=(*TWO, request(3, "", "/run/x", **TOLD))),
            math.inf,
            [
                HEAD,
                "├─ 127.0.0.1:80  accepting",
                f"│  ├─ #1 {WAITS}",
                f"│  └─ #2 {WAITS}",
                "└─ unix:/run/x  not accepting",
                f"   └─ #3 {READS}",
            ],
        ),
        "those of a wildcard by the address that they have met": (
            server(listeners=(attrs.evolve(LISTENER, address=("0.0.0.0", 80)),), requests=TWO),
            math.inf,
            [
                HEAD,
                "├─ 0.0.0.0:80  accepting",
                "└─ 127.0.0.1:80",
                f"   ├─ #1 {WAITS}",
                f"   └─ #2 {WAITS}",
            ],
        ),
        "of too many the oldest, and a count": (
            server(listeners=(LISTENER,), requests=(*TWO, request(3))),
            1,
            [HEAD, "└─ 127.0.0.1:80  accepting", f"   ├─ #1 {WAITS}", "   └─ and 2 more"],
        ),
        "or the count alone": (
            server(listeners=(LISTENER,), requests=TWO),
            0,
            [HEAD, "└─ 127.0.0.1:80  accepting", "   └─ and 2 more"],
        ),
        "Its workers are below, with theirs": (
            server(
                listeners=(LISTENER,),
                workers=(
                    worker(requests=TWO, statistics=Statistics(accepted=2, active=2)),
                    worker(pid=8, generation=2, state="draining", age=2.5),
                ),
            ),
            1,
            [
                HEAD,
                "├─ 127.0.0.1:80  accepting",
                "├─ worker 7  serving  generation 1  total 2  active 2",
                f"│  ├─ #1 {WAITS}",
                "│  └─ and 1 more",
                "└─ worker 8  draining  generation 2  total 0  active 0  told 2.5 s ago",
            ],
        ),
    },
)
def test_server(snapshot, most, lines):
    """A server is these lines, and no other."""
    assert as_text(snapshot, most=most).split("\n") == lines


# Words ------------------------------------------------------------------------------


@table(
    "seconds, words",
    {
        "none": (0, "00:00:00"),
        "part of one": (0.999, "00:00:00"),
        "a minute": (60, "00:01:00"),
        "almost a day": (86_399.9, "23:59:59"),
        "a day": (86_400, "1 d 00:00:00"),
        "many": (1_000_000, "11 d 13:46:40"),
    },
)
def test_durations(seconds, words):
    """Durations are read off a clock, and nothing is rounded up."""
    assert duration(seconds) == words


@table(
    "number, words",
    {
        "none": (0, "0 B"),
        "the last of bytes": (999, "999 B"),
        "the first of more": (1000, "1.0 kB"),
        "what is rounded": (999_949, "999.9 kB"),
        "to the next unit": (999_950, "1.0 MB"),
        "a million": (10**6, "1.0 MB"),
        "a billion, whose logarithm is not exact": (10**9, "1.0 GB"),
        "the last unit": (10**12, "1.0 TB"),
        "beyond it": (12 * 10**15, "12000.0 TB"),
    },
)
def test_sizes(number, words):
    """Sizes are said with a unit in which they are below 1000."""
    assert size(number) == words


@given(st.integers(0, 9 * 10**14))
def test_sizes_are_short(number):
    """No size below a thousand terabytes has four digits before its point."""
    figures, _, unit = size(number).partition(" ")
    assert float(figures) < 1000
    assert float(figures) * 1000 ** ["B", "kB", "MB", "GB", "TB"].index(unit) == pytest.approx(
        number, rel=0.06
    )


# Hostile names ----------------------------------------------------------------------

ODD = st.text(st.characters() | st.sampled_from("\n\r\x1b\x85\u2028\u202e\ud800"), max_size=30)


def assert_lines(text, count):
    """The text has so many lines, and no character in them does something."""
    assert [it.isprintable() for it in text.split("\n")] == [True] * count


@given(ODD, ODD, ODD)
def test_hostile_trees(name, reason, file):
    """A task is a line, and so is each place: whatever names, reasons, files and functions are."""
    stack = ((place(f"f{name}", f"/{file}"), 1),)
    scope = ScopeView(cancelled=Cancellation(f"r{reason}"))
    tasks = [ROOT, *children(6, stack, scopes=(scope,))]
    assert_lines(as_text(TaskTree(10.0, tuple(it._replace(name=name) for it in tasks))), 8)


@pytest.mark.parametrize("odd", ["\x1b[2J", "\x0c", "\u2028", "\u202e"])
def test_hostile_lines(odd, tmp_path):
    """A line of code does nothing to a terminal either, whatever a string in it has."""
    file = tmp_path / "odd.py"
    file.write_text(f"say('{odd}')\n", "utf-8")
    text = as_text(TaskTree(10.0, (ROOT._replace(stack=((place(file=str(file)), 1),)),)))
    assert_lines(text, 2)
    assert text.endswith(f": say('{repr(odd)[1:-1]}')")


@given(ODD, ODD | st.binary(max_size=20), st.tuples(ODD, ODD | st.integers()))
def test_hostile_servers(name, listener, client):
    """A server, a listener and a request are a line each, whatever their names and addresses."""
    listeners = (attrs.evolve(LISTENER, address=listener),)
    it = server(name=name, listeners=listeners, requests=(request(1, client, listener),))
    assert_lines(as_text(it), 3)
    assert_lines(as_text(attrs.evolve(it, requests=(), workers=(worker(requests=TWO),))), 5)
