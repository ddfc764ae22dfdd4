"""`JSONLogFormatter`: each record is one line of JSON, whatever was logged."""

import json
import logging
import math
import sys

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import table

import trioserver
from trioserver.monitoring import JSONLogFormatter
from trioserver.testing import MemoryServer


def record(message="said", *arguments, level=logging.INFO, **more):
    """A record, with more on it than usual."""
    made = logging.LogRecord("a.logger", level, "file.py", 1, message, arguments, None)
    made.created = 1_700_000_000.25
    vars(made).update(more)
    return made


def formatted(made):
    """What a line says, which is one line, and JSON as everybody has it."""
    line = JSONLogFormatter().format(made)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    return json.loads(line, parse_constant=pytest.fail)


class Odd:
    """What nobody can show."""

    def __repr__(self):
        raise ZeroDivisionError

    __str__ = __repr__


CIRCLE = []
CIRCLE.append(CIRCLE)
DEEP = [[[[[[[[1]]]]]]]]


@table(
    "made, expected",
    {
        "always": (
            record("%d bytes", 6),
            {
                "time": "2023-11-14T22:13:20.250Z",
                "level": "INFO",
                "logger": "a.logger",
                "message": "6 bytes",
            },
        ),
        "of a request": (
            record(request_id=7, client_address=("::1", 80), outcome="completed"),
            {"request_id": 7, "client_address": "[::1]:80", "outcome": "completed"},
        ),
        "outside of requests": (record(request_id=None, client_address=None), {"message": "said"}),
        "of its own": (record(user="eve", count=3), {"user": "eve", "count": 3}),
        "lines": (record("one\ntwo\x1b[2J"), {"message": "one\ntwo\x1b[2J"}),
        "no number": (record(x=math.nan, y=-math.inf), {"x": "nan", "y": "-inf"}),
        "bytes": (record(x=b"\xff"), {"x": "b'\\xff'"}),
        "half a character": (record("\udcff"), {"message": "\udcff"}),
        "what cannot be shown": (record(x=Odd()), {"x": "<Odd>"}),
        "a message that cannot": (record(Odd()), {"level": "INFO"}),
        "arguments that do not fit": (record("%d", "x"), {"message": "'%d' with ('x',)"}),
        "a circle": (record(x=CIRCLE), {"level": "INFO"}),
        "keys": (record(x={1: {None: 2}}), {"x": {"1": {"None": 2}}}),
        "very long": (record("x" * 50_000), {"level": "INFO"}),
        "a stack": (record(stack_info="here"), {"stack": "here"}),
        "no time": (record(created=1e300), {"time": "1e+300"}),
    },
)
def test_records(made, expected):
    """What is logged is there, under its name, and nothing can break the line."""
    found = formatted(made)
    assert {name: found[name] for name in expected} == expected
    assert len(str(found["message"])) < 21_000


def test_errors():
    """An error is a text, with its traceback, and so is one that cannot be shown."""
    try:
        raise ZeroDivisionError("no\nline")
    except ZeroDivisionError:
        found = formatted(record(exc_info=sys.exc_info()))
    assert found["error"].startswith("Traceback")
    assert found["error"].endswith("ZeroDivisionError: no\nline")


ATOMS = st.none() | st.floats() | st.text() | st.binary() | st.integers()
NAMED = st.dictionaries(st.text(min_size=1), st.recursive(ATOMS, st.lists), max_size=4)


@given(NAMED, st.text())
def test_anything(more, message):
    """Whatever it is, it is one line of JSON."""
    usual = vars(record())
    found = formatted(record(message, **{k: v for k, v in more.items() if k not in usual}))
    assert found["level"] == "INFO"


async def test_access_log(caplog):
    """The record of a request has its id, its client and its outcome."""
    caplog.set_level(logging.INFO, "trioserver.access")

    async def nothing(request, client_address, server):
        pass

    async with MemoryServer(("memory", 1), nothing).serving() as server:
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
    [made] = [it for it in caplog.records if hasattr(it, "outcome")]
    found = formatted(made)
    assert (found["request_id"], found["client_address"], found["outcome"]) == (
        1,
        "memory-client:1",
        "completed",
    )
    assert found["outcome"] == trioserver.Outcome.COMPLETED
