"""What runs as renderables of rich: pictures of them, and names that want to be more than names."""

import io
import subprocess
import sys

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.scenes import table
from support.seen import HOSTILE, a_request, a_server, a_tree, a_worker

import trioserver
from trioserver.monitoring import as_rich, as_text, task_tree


def drawn(it, width=100, color_system=None, **options):
    """The picture of it in a console of this width."""
    console = Console(
        file=io.StringIO(),
        width=width,
        color_system=color_system,
        force_terminal=color_system is not None,
        legacy_windows=False,
    )
    console.print(as_rich(it, **options))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


BUSY = a_server(
    a_request(1, age=75.0, state="idle", bytes_received=1200, bytes_sent=15),
    a_request(2, ("::1", 50_002, 0, 0), time_left=3.25),
)
WORKERS = a_server(workers=(a_worker(4242, a_request(1)), a_worker(4243, state="starting")))

A_SERVER = """\
TCPServer  serving  up 00:03:12  total 2  active 2
├── 127.0.0.1:9999  accepting
└── id  client           listener        mode  state       age   left      in   out
     1  127.0.0.1:50001  127.0.0.1:9999  task  idle     75.0 s      -  1.2 kB  15 B
     2  [::1]:50002      127.0.0.1:9999  task  reading   1.0 s  3.2 s     0 B   0 B"""
FEW = """\
TCPServer  serving  up 00:03:12  total 2  active 2
├── 127.0.0.1:9999  accepting
├── id  client           listener        mode  state     age  left      in   out
│    1  127.0.0.1:50001  127.0.0.1:9999  task  idle   75.0 s     -  1.2 kB  15 B
└── and 1 more"""
WITH_WORKERS = """\
TCPServer  serving  up 00:03:12  total 0  active 0
├── 127.0.0.1:9999  accepting
├── worker 4242  serving  generation 1  total 1  active 1
│   └── id  client           listener        mode  state      age  left   in  out
│        1  127.0.0.1:50001  127.0.0.1:9999  task  reading  1.0 s     -  0 B  0 B
└── worker 4243  starting  generation 1  total 0  active 0"""
TASKS = """\
3 tasks
└── main
    └── serve  [shielded, 2.5 s left]
        └── handler  [cancelled: it is too old]  #7"""
FEW_TASKS = """\
3 tasks
├── main
└── and 2 more"""


@table(
    ("it", "options", "picture"),
    {
        "a server, with its requests": (BUSY, {}, A_SERVER),
        "the oldest of them": (BUSY, {"most": 1}, FEW),
        "a server with workers": (WORKERS, {}, WITH_WORKERS),
        "several servers": ([BUSY, WORKERS], {}, f"{A_SERVER}\n{WITH_WORKERS}"),
        "no server": ([], {}, ""),
        "tasks": (a_tree(), {}, TASKS),
        "some of them": (a_tree(), {"most": 1}, FEW_TASKS),
    },
)
def test_picture(it, options, picture):
    """What is shown, to the character."""
    assert drawn(it, **options) == picture


def test_colours():
    """With colours, states can be told apart, and the text is the same."""
    shown = drawn(BUSY, color_system="standard")
    assert "\x1b[1mTCPServer\x1b[0m  \x1b[32mserving\x1b[0m" in shown
    assert "\x1b[31m  [cancelled: it is too old]\x1b[0m" in drawn(a_tree(), color_system="standard")


async def test_live_tasks_have_the_line_where_they_wait():
    """Of a task that waits in code of the program, that line is shown."""

    async def one_that_waits():
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one_that_waits)
        await trio.testing.wait_all_tasks_blocked()
        shown = drawn(task_tree(), width=300)
        nursery.cancel_scope.cancel()
    assert "in one_that_waits: await trio.sleep_forever()" in shown


def unharmed(shown):
    """Whether there is nothing in a picture but what can be printed, and lines."""
    return all(line.isprintable() for line in shown.split("\n"))


HOSTILE_THINGS = st.builds(
    lambda name, kind: {
        "server": a_server(name=name),
        "client": a_server(a_request(1, name)),
        "worker": a_server(workers=(a_worker(1, a_request(1, (name, 1)), state=name),)),
        "task": a_tree(name),
    }[kind],
    st.text(max_size=50),
    st.sampled_from(["server", "client", "worker", "task"]),
)


@given(HOSTILE_THINGS)
def test_names_are_inert(it):
    """Whatever a name is, the picture holds no control character and nothing turns it around."""
    assert unharmed(drawn(it, width=400))


@table(
    "it",
    {
        "a server": a_server(name=HOSTILE),
        "a client": a_server(a_request(1, HOSTILE)),
        "a task": a_tree(HOSTILE),
    },
)
def test_markup_is_text(it):
    """A name that looks like markup, a link, an emoji, or an escape sequence, is shown as it is."""
    shown = drawn(it, width=400)
    assert unharmed(shown)
    assert "[bold red]x[/] " in shown
    assert ":smile: <b>&amp;" in shown
    assert r"\u202egnp.exe\u2066" in shown


@table(
    ("it", "error", "message"),
    {
        "a text": ("TCPServer", TypeError, "a TaskTree, a ServerSnapshot or a sequence of Ser"),
        "a number": (5, TypeError, "was expected, not 5"),
        "a server itself": ([trioserver], TypeError, "was expected, not <module"),
    },
)
def test_something_else(it, error, message):
    """It says what was expected."""
    with pytest.raises(error, match=message):
        as_rich(it)


@pytest.mark.parametrize("most", [-1, float("nan"), "9", None, True])
@pytest.mark.parametrize("render", [as_rich, as_text])
def test_wrong_number(render, most):
    """A number that makes no sense is an error, and not all but one."""
    expected = f"most must be a number of at least 0, not {most!r}"
    with pytest.raises((TypeError, ValueError), match=expected):
        render(BUSY, most=most)


def test_without_rich():
    """The package is there without it, and its first use says what to install."""
    program = (
        "import sys; sys.modules['rich'] = None\n"
        "import trioserver.monitoring as monitoring\n"
        "try: monitoring.as_rich(5)\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "as_rich needs rich: pip install 'trioserver[live]'\n"
