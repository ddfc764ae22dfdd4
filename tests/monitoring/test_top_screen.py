"""The screen of `top`: what it looks like, whatever its size and whatever names there are."""

import time
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_monitor import FakeMonitor
from support.scenes import table
from support.seen import HOSTILE, a_request, a_server, a_worker

from trioserver import Outcome
from trioserver.monitoring._top.cells import cut, left, right, width_of
from trioserver.monitoring._top.lines import bar, columns, short_time
from trioserver.monitoring._top.parts import Row
from trioserver.monitoring._top.screen import picture
from trioserver.monitoring._top.state import state_of
from trioserver.monitoring._top.view import View

HUNDRED = [a_request(number, age=200.0 - number) for number in range(1, 101)]


def a_view(*servers, press="", log=None, **more):
    """What is seen of these servers, after these keys."""
    monitor = FakeMonitor(list(servers), more={"pid": 4242, **more})
    view = View(log=log)
    view.update(state_of(monitor.state()))
    for key in press.split():
        view.press(key)
    return view


def drawn(view, width=100, height=12):
    """The lines of it, without what is blank at their ends."""
    lines = picture(view, width, height, "unix:/run/monitor")
    assert len(lines) == height
    assert all(width_of(text) == width for text, _ in lines)
    return [text.rstrip() for text, _ in lines]


BUSY = a_server(
    a_request(1, age=75.0, time_left=75.0, state="idle", bytes_received=1200, bytes_sent=15),
    a_request(2, ("::1", 50_002, 0, 0), time_left=0.25, age=60.0),
    workers=(a_worker(77, a_request(1, age=10.0)), a_worker(78, state="draining")),
)
PICTURE = """\
TCPServer  serving  up 00:03:12  active 2/100  total 2  on 127.0.0.1:9999
  worker 77  serving  generation 1  active 1  total 1
  worker 78  draining  generation 1  active 0  total 0
    ID CLIENT                 WHERE                MODE STATE       AGEv LEFT             IN     OUT
     1 127.0.0.1:50001        127.0.0.1:9999       task idle       75.0s ==--  75.0s   1.2kB     15B
     2 [::1]:50002            127.0.0.1:9999       task reading    60.0s =---   0.2s      0B      0B
     1 127.0.0.1:50001        worker 77            task reading    10.0s ....      -      0B      0B


q quit  s/S sort  / filter  enter detail  p pause  c cancel  ? help  1 of 3"""


def test_picture():
    """All of it, to the character, but for the clock in its first line."""
    title, *lines = drawn(a_view(BUSY), height=11)
    assert title.startswith("trioserver top  unix:/run/monitor  process 4242  ")
    assert lines == PICTURE.split("\n")


def test_styles():
    """What is not as usual stands out: the selected row, and who does not serve."""
    styles = [style for _, style in picture(a_view(BUSY), 100, 11)]
    assert styles[:6] == ["title", "plain", "plain", "warning", "head", "selected"]


def test_rates():
    """They are differences of two states, by the program's own clock."""
    monitor, view = FakeMonitor([a_server()]), View()
    view.update(state_of(monitor.state()))
    assert "/s" not in drawn(view)[1]
    counts = attrs.evolve(
        monitor.servers[0].statistics, accepted=30, outcomes={"completed": 10, "failed": 2}
    )
    as_json = {**a_server().as_json(), "statistics": attrs.asdict(counts), "hidden": 7}
    monitor.at += 1  # so it is two seconds later
    view.update(state_of({**monitor.state(), "servers": [as_json]}))
    assert "+15.0/s -6.0/s" in drawn(view)[1]
    assert drawn(view)[-1].endswith("and 7 not told of")
    view.update(state_of({**monitor.state(), "pid": 1}))  # a new start of it
    assert "/s" not in drawn(view)[1]


@table(
    ("press", "ids"),
    {
        "the oldest first": ("", [1, 2, 3]),
        "the selected one is seen": ("down down down", [2, 3, 4]),
        "as it is after the way back": ("down down down up", [2, 3, 4]),
        "a page": ("page_down", [2, 3, 4]),
        "the end": ("end", [98, 99, 100]),
        "and no further": ("end down j page_down", [98, 99, 100]),
        "the beginning": ("end home", [1, 2, 3]),
        "the other way round": ("S", [100, 99, 98]),
    },
)
def test_rows_that_are_seen(press, ids):
    """Only those that have room are drawn, the selected one among them."""
    view = a_view(a_server(*HUNDRED))
    drawn(view, height=7)
    for key in press.split():
        view.press(key.replace("_", " "))
    assert [int(line.split()[0]) for line in drawn(view, height=7)[3:6]] == ids


def test_findings_and_log_have_their_room():
    """There is some for each, and what has none is counted."""
    findings = [{"lint": "old", "message": f"request {it} is old"} for it in range(20)]
    view = a_view(a_server(*HUNDRED), findings=findings, log=[f"line {it}" for it in range(50)])
    lines = drawn(view, height=24)
    assert lines[-7:-1] == [
        *[f"! old: request {it} is old" for it in range(5)],
        "! 15 more findings",
    ]
    assert lines[-13:-7] == [f"line {it}" for it in range(44, 50)]


@table(
    ("height", "lines"),
    {
        "with room, over lines": (
            20,
            [
                "! long: a task has kept it off for 5.0",
                "  s; give it a deadline",
                "! old: it is old",
            ],
        ),
        "without, cut": (8, ["! long: a task has kept it off for 5.~", "! old: it is old"]),
    },
)
def test_long_findings(height, lines):
    """They are told whole, if there is room for all of them."""
    message = "a task has kept it off for 5.0 s; give it a deadline"
    told = {"long": message, "old": "it is old"}
    findings = [{"lint": lint, "message": text} for lint, text in told.items()]
    shown = drawn(a_view(a_server(), findings=findings), width=38, height=height)
    assert shown[-1 - len(lines) : -1] == lines


def test_many_servers_leave_room_for_requests():
    """They have a third of the screen; the rest is counted."""
    lines = drawn(a_view(*[a_server(name=f"S{it}") for it in range(30)]), height=12)
    assert lines[3].startswith("S2 ")
    assert lines[4] == "and 27 more servers and workers"


@pytest.mark.parametrize("press", ["", "?", "/", "enter", "p", "/ x"])
@pytest.mark.parametrize("size", [(1, 1), (5, 2), (20, 3), (40, 5), (80, 24), (300, 100)])
def test_any_size(size, press):
    """There is a picture that fits, whatever the size."""
    drawn(a_view(BUSY, press=press, log=["a line"]), *size)


@given(st.integers(1, 400))
def test_columns_fit(width):
    """They are as wide as the terminal at most, and who it is is always there."""
    found = dict(columns(width))
    assert {"id", "client"} <= set(found)
    assert sum(found.values()) + len(found) - 1 <= max(width, 22)


@given(st.text(max_size=80), st.integers(10, 120))
def test_names_are_inert(name, width):
    """Whatever a name is, the screen has nothing but what can be printed, in its columns."""
    hostile = a_server(a_request(1, name), a_request(2, (name, 1), state=name), name=name)
    workers = (a_worker(1, a_request(1, name), state=name),)
    view = a_view(
        attrs.evolve(hostile, workers=workers, state=name),
        findings=[{"lint": name, "message": name}],
    )
    view.press("enter")
    for _ in range(2):
        assert all(line.isprintable() for line in drawn(view, width))
        view.take_detail({"server": 0, "request": {name: name}, "text": name})
    view.press("esc")
    assert all(line.isprintable() for line in drawn(view, width))


def test_hostile_name():
    """Escape sequences and characters that turn text around are told as what they are."""
    [line] = [it for it in drawn(a_view(a_server(name=HOSTILE)), 300) if "gone" in it]
    assert r"\x1b]0;gone\x07\x1b[2J\n\x9b5m\u202egnp.exe\u2066" in line


WIDE = "\u6f22\u5b57"
"""Two characters of two columns each."""


@table(
    ("text", "width", "at_the_left"),
    {
        "it fits": ("abc", 5, "abc  "),
        "it is cut": ("abcdef", 4, "abc~"),
        "wide ones": (WIDE, 5, f"{WIDE} "),
        "a wide one is not cut in two": (WIDE, 3, f"{WIDE[0]}~"),
        "a combining one takes nothing": ("e\u0301x", 3, "e\u0301x "),
        "no room": ("abc", 0, ""),
    },
)
def test_cells(text, width, at_the_left):
    """A text takes exactly its columns."""
    assert left(text, width) == at_the_left
    assert width_of(right(text, width)) == width
    assert width_of(cut(text, width)) <= width


@table(
    ("seconds", "text"),
    {
        "none": (0, "0.0s"),
        "some": (99.94, "99.9s"),
        "minutes": (99.96, "1m39s"),
        "many": (5999, "99m59s"),
        "hours": (6000, "1h40m"),
        "days": (360_000, "4d"),
        "never": (float("inf"), "-"),
        "too late": (-3, "-3.0s"),
    },
)
def test_short_time(seconds, text):
    """A time has six columns at most."""
    assert short_time(seconds) == text
    assert len(text) <= 6


@table(
    ("age", "rest", "shown"),
    {
        "no deadline": (5, float("inf"), "...."),
        "just begun": (0, 60, "===="),
        "half": (30, 30, "==--"),
        "nearly over": (59, 1, "=---"),
        "over": (60, 0, "----"),
        "late": (60, -5, "----"),
    },
)
def test_bar(age, rest, shown):
    """The part of its time that a request has left."""
    assert bar(Row((0, None, 1), "", "", "task", "idle", age, rest, 0, 0)) == shown


def test_page_shows_it(monkeypatch):
    """The picture in the documentation is one that this code draws."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    requests = (
        a_request(3, age=312.4, state="idle", bytes_received=5210, bytes_sent=81_400),
        a_request(9, age=41.0, time_left=19.0, bytes_received=120, state="writing"),
        a_request(12, ("::1", 50_012, 0, 0), age=2.5, time_left=57.5),
    )
    counts = a_server(*requests).statistics
    counts = attrs.evolve(counts, accepted=12, outcomes={Outcome.COMPLETED: 9})
    server = a_server(*requests, statistics=counts, uptime=3792.0)
    monitor = FakeMonitor([server], more={"pid": 4242})
    finding = {"lint": "no-deadline", "message": "request 3 is 312 s old"}
    view = View()
    view.update(state_of(monitor.state()))
    later = attrs.evolve(counts, accepted=14, outcomes={Outcome.COMPLETED: 11})
    monitor.servers = [attrs.evolve(server, statistics=later)]
    view.update(state_of({**monitor.state(), "findings": [finding]}))
    shown = [text.rstrip() for text, _ in picture(view, 88, 9, "127.0.0.1:9998")]
    page = Path(__file__).parents[2] / "docs" / "how-to" / "top.rst"
    block = "\n".join(f"   {line}".rstrip() for line in shown)
    assert f"\n\n{block}\n\n" in page.read_text("utf-8"), block
