"""What each key of `top` does, and which key it is that was pressed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_monitor import FakeMonitor
from support.scenes import table
from support.seen import a_request, a_server, a_worker

from trioserver.monitoring import MonitorError
from trioserver.monitoring._top.keys import Keys
from trioserver.monitoring._top.screen import picture
from trioserver.monitoring._top.state import state_of
from trioserver.monitoring._top.view import View

FIVE = [a_request(number, age=10.0 - number, bytes_sent=number % 3) for number in range(1, 6)]


def looking(*requests, control=False, **more):
    """A view of a server with these requests, and its monitor."""
    monitor = FakeMonitor([a_server(*requests, **more)], control=control)
    view = View()
    view.update(state_of(monitor.state()))
    return view, monitor


def pressed(view, keys):
    """What the monitor is told when these are pressed."""
    return [message for key in keys.split() for message in view.press(key)]


def ids(view):
    """The requests in the order in which they are shown."""
    return [row.key[2] for row in view.table.rows]


@table(
    ("keys", "order"),
    {
        "the oldest first": ("", [1, 2, 3, 4, 5]),
        "the youngest": ("S", [5, 4, 3, 2, 1]),
        "those that sent most": ("s s s", [2, 5, 1, 4, 3]),
        "those that sent least": ("s s s S", [3, 1, 4, 2, 5]),
        "round": ("s s s s s s s", [1, 2, 3, 4, 5]),
        "those with a 4": ("/ 5 0 0 0 4 enter", [4]),
        "all again": ("/ 5 0 0 0 4 enter esc", [1, 2, 3, 4, 5]),
        "in words that are typed": ("/ T a S k", [1, 2, 3, 4, 5]),
        "those with nothing": ("/ n o n e", []),
        "and less of it": ("/ 5 0 0 0 4 x backspace", [4]),
        "q is a letter there": ("/ q", []),
    },
)
def test_order(keys, order):
    """Sorted and filtered, as the keys say."""
    view, _ = looking(*FIVE)
    pressed(view, keys)
    assert ids(view) == order
    assert not view.ended


def test_what_the_monitor_is_told():
    """It knows what is wanted: many requests are not told of, so it must choose the right ones."""
    view, _ = looking(*FIVE)
    assert len(pressed(view, "S / a b")) == 3
    wanted = {"interval": 2.0, "most": 5, "sort": "-age", "filter": "ab"}
    assert view.watch(2.0, 5) == {"watch": wanted}


def test_selection_stays_with_its_request():
    """Others come and go, and are sorted anew; the same one stays selected."""
    view, monitor = looking(*FIVE)
    pressed(view, "down down")
    assert view.table.row.key[2] == 3
    monitor.servers = [a_server(*FIVE[2:], a_request(9, age=99.0))]
    view.update(state_of(monitor.state()))
    assert (view.table.row.key[2], view.table.index) == (3, 1)
    pressed(view, "S")
    assert view.table.row.key[2] == 3
    monitor.servers = [a_server(*FIVE[:2])]
    view.update(state_of(monitor.state()))
    assert view.table.row.key[2] in {1, 2}
    monitor.servers = [a_server(*FIVE)]
    view.update(state_of(monitor.state()))
    assert view.table.row.key[2] == 3


def test_nobody_has_moved():
    """Until somebody moves, it is the first row that is selected, whichever that is."""
    view, monitor = looking(*FIVE)
    monitor.servers = [a_server(*FIVE, a_request(9, age=99.0))]
    view.update(state_of(monitor.state()))
    assert view.table.row.key[2] == 9


def test_pause():
    """What is new is kept back, and there at once when it goes on."""
    view, monitor = looking(*FIVE)
    pressed(view, "p")
    monitor.servers = [a_server(*FIVE[:1])]
    view.update(state_of(monitor.state()))
    assert ids(view) == [1, 2, 3, 4, 5]
    pressed(view, "p")
    assert ids(view) == [1]


def test_detail():
    """It is asked for at once and with each state, until somebody goes back."""
    view, monitor = looking(*FIVE)
    show = [{"show": {"server": 0, "request": 2}}]
    assert pressed(view, "down enter") == show
    assert view.update(state_of(monitor.state())) == show
    view.take_detail({"server": 0, "request": FIVE[1].as_json(), "text": "serve\n  \x1b[2J"})
    assert view.detail[-2:] == ["serve", r"  \x1b[2J"]
    assert "          client  127.0.0.1:50002" in view.detail
    view.take_detail({"server": 0, "request": None})
    assert view.detail == ["It has ended."]
    assert pressed(view, "esc") == []
    assert view.update(state_of(monitor.state())) == []


def test_detail_of_a_worker():
    """Workers count their requests themselves, so the monitor is told whose it is."""
    view, _ = looking(workers=(a_worker(77, a_request(1)),))
    assert pressed(view, "enter") == [{"show": {"server": 0, "request": 1, "worker": 77}}]
    view.take_detail({"server": 0, "request": a_request(1).as_json(), "text": ""})
    assert view.detail[-1] == "Where it waits is not known: it is served in another process."


@table(
    ("control", "keys", "told", "message"),
    {
        "not allowed": (False, "c y", [], ""),
        "yes": (True, "c y", [{"control": {"do": "cancel", "server": 0, "request": 1}}], ""),
        "no": (True, "c n", [], "nothing was done"),
        "another key": (True, "c enter", [], "nothing was done"),
    },
)
def test_cancel(control, keys, told, message):
    """Only if it is allowed, and somebody says yes."""
    view, _ = looking(*FIVE, control=control)
    assert pressed(view, keys) == told
    assert view.message == message


def test_cancel_that_is_not_allowed():
    """It says why nothing happens."""
    view, _ = looking(*FIVE)
    pressed(view, "c")
    assert view.message == "the monitor lets nobody cancel: it was started without control"
    assert view.mode == "table"


def test_question_is_about_what_was_selected():
    """The one that was asked about is cancelled, even if rows have moved in between."""
    view, monitor = looking(*FIVE, control=True)
    pressed(view, "c")
    monitor.servers = [a_server(*FIVE[2:])]
    view.update(state_of(monitor.state()))
    assert pressed(view, "y") == [{"control": {"do": "cancel", "server": 0, "request": 1}}]


@pytest.mark.parametrize("keys", ["enter", "c", "down", "S", "q", "? q"])
def test_nothing_there(keys):
    """Keys do no harm where there is no request, nor before anything is known."""
    for view in (View(), looking(control=True)[0]):
        pressed(view, keys)
        assert view.ended == (keys == "q")


@given(st.lists(st.sampled_from(["up", "down", "enter", "esc", "y", *"sSpc?/qjk"]), max_size=30))
def test_any_keys(keys):
    """Whatever is pressed in whatever order, there is a view."""
    view, monitor = looking(*FIVE, control=True)
    for key in keys:
        view.press(key)
        view.update(state_of(monitor.state()))
    assert view.mode in {"table", "filter", "detail", "ask", "help"}


# Bytes ----------------------------------------------------------------------------------


@table(
    ("data", "keys"),
    {
        "letters": (b"qS/", ["q", "S", "/"]),
        "arrows": (b"\x1b[A\x1b[B", ["up", "down"]),
        "arrows of an application": (b"\x1bOA\x1bOB", ["up", "down"]),
        "pages": (b"\x1b[5~\x1b[6~", ["page up", "page down"]),
        "the ends": (b"\x1b[H\x1b[F\x1b[1~\x1b[4~", ["home", "end", "home", "end"]),
        "keys that mean nothing": (b"\x1b[15~\x1b[C\x00\x01", []),
        "enter, backspace": (b"\r\n\x7f", ["enter", "enter", "backspace"]),
        "a character of two bytes": ("\u00e9".encode(), ["\u00e9"]),
        "bytes that are none": (b"\xffa", ["\ufffd", "a"]),
        "esc, and then a letter": (b"\x1bq", ["esc", "q"]),
        "esc alone": (b"\x1b", ["esc"]),
        "esc twice": (b"\x1b\x1b", ["esc", "esc"]),
        "a sequence without an end": (b"\x1b[1;1;1;1;1;1;1;1;1", ["esc", *"[1;1;1;1;1;1;1;1;1"]),
    },
)
def test_keys(data, keys):
    """Bytes are keys, and the same ones when they come one by one."""
    whole, parts = Keys(), Keys()
    assert whole.feed(data) + whole.flush() == keys
    assert [key for byte in data for key in parts.feed(bytes([byte]))] + parts.flush() == keys


# States -----------------------------------------------------------------------------------


@table(
    ("more", "message"),
    {
        "no state": ({"type": "hello\x1b"}, r"a state was expected, not hello\\x1b"),
        "another version": ({"version": 2}, "speaks version 2, and this trioserver only 1"),
        "no servers": ({"servers": 5}, "makes no sense: TypeError"),
        "servers that are none": ({"servers": [{}]}, "makes no sense: KeyError: 'statistics'"),
        "no number": ({"pid": "me"}, "makes no sense: ValueError: invalid literal"),
    },
)
def test_state_that_makes_no_sense(more, message):
    """It says so in a line."""
    with pytest.raises(MonitorError, match=message):
        state_of({**FakeMonitor().state(), **more})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


def places(value, path=()):
    """Where something is in a value of JSON."""
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for name, it in inner:
        yield from places(it, (*path, name))


def with_another(value, path, other):
    """The value with something else in that place."""
    if not path:
        return other
    inner = dict(value) if isinstance(value, dict) else list(value)
    inner[path[0]] = with_another(inner[path[0]], path[1:], other)
    return inner


STATE = FakeMonitor(
    [a_server(a_request(1), workers=(a_worker(77, a_request(1)),))],
    more={"findings": [{"lint": "old", "message": "it is old"}]},
).state()


@given(st.sampled_from([it for it in places(STATE) if it]), JSON)
def test_any_state(path, other):
    """Whatever a monitor tells, it is a state that can be shown, or an error that says so."""
    message = ""
    view = View()
    try:
        view.update(state_of(with_another(STATE, path, other)))
    except MonitorError as error:
        message = str(error)
    assert message.isprintable()
    picture(view, 100, 24)
    assert view.shown is None or str(view.shown)
