"""The schemas: what snapshots and trees are as JSON, of every kind of server, and no other."""

import json
import math
import re
import socket
import subprocess
import sys

import attrs
import jsonschema
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support import connect, hold, until
from support import process_handlers as handlers
from support.pages import page
from support.scenes import table
from support.threads import THERE
from support.workers import a_program, clients_of
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver import (
    Limits,
    ListenerSnapshot,
    Outcome,
    RequestInfo,
    RequestSnapshot,
    ServerSnapshot,
    Statistics,
    WorkerSnapshot,
)
from trioserver.monitoring import (
    SNAPSHOT_SCHEMA,
    TASK_TREE_SCHEMA,
    Cancellation,
    ScopeView,
    TaskTree,
    TaskView,
    task_tree,
)
from trioserver.testing import MemoryServer

LONG_AGO = -1e12
"""Where minus infinity would be."""

SCHEMAS = [SNAPSHOT_SCHEMA, TASK_TREE_SCHEMA]
VALIDATORS = [jsonschema.Draft202012Validator(schema) for schema in SCHEMAS]


def strict(text):
    """JSON as others read it, which know no NaN and no Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is not in JSON")

    return json.loads(text, parse_constant=refuse)


def check(it):
    """What it is as JSON, which is as its schema says."""
    told = strict(json.dumps(it.as_json()))
    VALIDATORS[isinstance(it, TaskTree)].validate(told)
    return told


# Real servers -----------------------------------------------------------------------


@table(
    "make",
    {
        "tasks": lambda _: trioserver.TCPServer(THERE, handlers.AsyncUpper),
        "threads": lambda _: trioserver.ThreadingTCPServer(THERE, handlers.Upper),
        "processes": lambda _: trioserver.ProcessTCPServer(THERE, handlers.Upper, min_children=1),
        "on Unix": lambda folder: trioserver.UnixStreamServer(str(folder / "s"), hold),
    },
)
async def test_servers_of_streams(make, tmp_path):
    """Such a server is as the schema says: unbound, bound, serving a client, and draining."""
    server = make(tmp_path)
    assert check(server.snapshot())["state"] == "unbound"
    async with server.serving(grace=0.1):
        async with await connect(server) as client:
            await client.send_all(b"hello\n")
            await until(lambda: server.snapshot().requests)
            told = check(server.snapshot())
            [request] = told["requests"]
            assert (told["state"], told["statistics"]["active"]) == ("serving", 1)
            assert request["listener"] == told["listeners"][0]["address"]
            check(task_tree())
            server.suspend()
            assert check(server.snapshot())["state"] == "suspended"
        server.shutdown()
        assert check(server.snapshot())["state"] == "draining"
    assert check(server.snapshot())


@table(
    "kind, family",
    {"UDP": ("UDPServer", "AF_INET"), "Unix": ("UnixDatagramServer", "AF_UNIX")},
)
async def test_servers_of_datagrams(kind, family, tmp_path):
    """A request that is a datagram is as the schema says, too."""
    address = THERE if family == "AF_INET" else str(tmp_path / "s")
    server = getattr(trioserver, kind)(address, hold)
    async with server.serving(grace=0):
        with trio.socket.socket(getattr(socket, family), socket.SOCK_DGRAM) as client:
            await client.connect(server.server_address)
            await client.send(b"hello")
            await until(lambda: server.snapshot().requests)
        [request] = check(server.snapshot())["requests"]
        assert (request["mode"], request["time_left"]) == ("task", None)


WATCH = """
import json

async def watch(servers):
    while sum(len(it.requests) for it in servers[0].snapshot().workers) < 4:
        await trio.sleep(0.01)
    logging.info("SNAPSHOT %s", json.dumps(servers[0].snapshot().as_json()))
"""


def test_workers(tmp_path):
    """So are the workers of a server, with what each of them serves."""
    run = "server, workers=2, beside=[watch]"
    with a_program(tmp_path, run, definitions=WATCH) as program:
        with clients_of(program.address(), 4):
            (text,) = program.says(r"SNAPSHOT (.*)")
        program.stops()
    told = strict(text)
    VALIDATORS[0].validate(told)
    assert [it["state"] for it in told["workers"]] == ["serving"] * 2
    assert (told["free_slots"], told["statistics"]["active"]) == (None, 4)


async def test_trees():
    """A tree with all that it can tell is as the schema says: scopes, requests, stacks."""
    async with MemoryServer(("memory", 1), hold).serving(grace=0) as server:
        await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            # Nothing in it waits: it is only looked at.
            with trio.CancelScope(deadline=-math.inf, shield=True) as scope:  # noqa: ASYNC100
                scope.cancel(reason="it is to be seen")
                told = check(task_tree())
            nursery.cancel_scope.cancel(reason="it has been seen")
    whose = [task for task in told["tasks"] if task["request"] is not None]
    assert [task["request"] for task in whose] == [1]
    assert "hold" in [place["function"] for place in whose[0]["stack"]]
    scopes = [scope for task in told["tasks"] for scope in task["scopes"]]
    assert [it["deadline"] for it in scopes if it["cancelled"]] == [LONG_AGO]
    assert not any(task["stack"] for task in check(task_tree(stacks=False))["tasks"])


# Whatever there is ------------------------------------------------------------------

SECONDS = st.floats(allow_nan=False)
COUNT = st.integers(0, 2**63)
NAME = st.text(st.characters(exclude_categories=()))
ADDRESS = st.tuples(NAME, COUNT) | NAME | st.binary()
COUNTS = st.builds(Statistics, accepted=COUNT, outcomes=st.just(dict.fromkeys(Outcome, 0)))
INFO = st.builds(
    RequestInfo,
    id=st.integers(1),
    client_address=ADDRESS,
    server_address=ADDRESS,
    mode=st.sampled_from(["task", "thread", "process"]),
    started=st.just(0.0),
    started_at=st.just(0.0),
    proxy=st.none(),
)
REQUEST = st.builds(
    RequestSnapshot,
    info=INFO,
    state=st.sampled_from(["arriving", "working", "reading", "writing", "idle", "closing"]),
    age=st.floats(0, 1e9),
    time_left=SECONDS,
    bytes_received=COUNT,
    bytes_sent=COUNT,
    task=st.none() | COUNT,
)
WORKER = st.builds(
    WorkerSnapshot,
    pid=st.integers(1),
    generation=st.integers(1),
    state=st.sampled_from(["starting", "serving", "suspended", "draining"]),
    age=st.floats(0, 1e9),
    requests=st.tuples(REQUEST),
    statistics=COUNTS,
)
SERVER = st.builds(
    ServerSnapshot,
    name=NAME,
    state=st.sampled_from(["unbound", "bound", "serving", "suspended", "draining"]),
    uptime=st.floats(0, 1e9),
    listeners=st.tuples(st.builds(ListenerSnapshot, address=ADDRESS, queued=st.none() | COUNT)),
    requests=st.tuples(REQUEST),
    statistics=COUNTS,
    workers=st.tuples(WORKER),
    slots=st.none() | st.integers(1),
    free_slots=st.none() | COUNT,
)
SCOPE = st.builds(
    ScopeView,
    SECONDS,
    st.booleans(),
    st.none() | COUNT,
    st.none() | st.builds(Cancellation, NAME, NAME, NAME),
)
TASK = st.builds(
    TaskView,
    COUNT,
    st.none() | COUNT,
    st.none() | COUNT,
    COUNT,
    NAME,
    st.tuples(SCOPE),
    st.none() | INFO,
    st.just(((check.__code__, 1), (check.__code__, None))),
)


@given(SERVER | st.builds(TaskTree, st.floats(0, 1e9), st.tuples(TASK)))
def test_anything(it):
    """Whatever the values are, infinite deadlines and hostile names too, it is as is said."""
    check(it)


# The schemas themselves -------------------------------------------------------------


def objects(schema):
    """The objects of a schema, by their names."""
    return {schema["properties"]["schema"]["const"]: schema, **schema["$defs"]}


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda it: it["$id"])
def test_schema(schema):
    """It is a schema; each field is required and described, and no other is allowed."""
    jsonschema.Draft202012Validator.check_schema(schema)
    version = schema["properties"]["version"]["const"]
    assert schema["$id"].endswith(f"{schema['properties']['schema']['const'][11:]}:{version}")
    for name, it in objects(schema).items():
        assert it["additionalProperties"] is False, name
        assert it["required"] == list(it["properties"]), name
        assert it["description"], name
        assert all(field["description"] for field in it["properties"].values()), name


@table(
    "change",
    {
        "A new field": lambda told: told.update(new=1),
        "one that is gone": lambda told: told.pop("uptime"),
        "in a request": lambda told: told["requests"][0].update(new=1),
        "in the counts": lambda told: told["statistics"].pop("refused"),
        "of another type": lambda told: told.update(slots="many"),
        "another version": lambda told: told.update(version=2),
    },
)
async def test_other_things(change):
    """What is not as the schema says is refused, so no field can be forgotten in it."""
    async with MemoryServer(("memory", 1), hold, limits=Limits(requests=2)).serving(grace=0) as it:
        await it.connect()
        await wait_all_tasks_blocked()
        told = check(it.snapshot())
    change(told)
    assert not VALIDATORS[0].is_valid(told)


def test_fields():
    """The schemas have the fields of the values, and every outcome."""
    described = {**objects(SNAPSHOT_SCHEMA), **objects(TASK_TREE_SCHEMA)}
    for name, kind, unlike in (
        ("trioserver.snapshot", ServerSnapshot, {"schema", "version"}),
        ("listener", ListenerSnapshot, set()),
        ("worker", WorkerSnapshot, set()),
        ("statistics", Statistics, set()),
        ("trioserver.task_tree", TaskTree, {"schema", "version"}),
        ("cancellation", Cancellation, set()),
    ):
        fields = {field.name for field in attrs.fields(kind)}
        assert described[name]["properties"].keys() == fields | unlike, name
    assert described["task"]["properties"].keys() == {*TaskView._fields}
    assert described["scope"]["properties"].keys() == {*ScopeView._fields}
    assert list(described["outcomes"]["properties"]) == [str(outcome) for outcome in Outcome]


def test_loaded_when_asked_for():
    """The files are not read before somebody asks for them."""
    code = (
        "import sys, trioserver.monitoring as it;"
        "name = 'trioserver.monitoring._schemas.schemas';"
        "print(name in sys.modules, it.SNAPSHOT_SCHEMA['$id'], name in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["False", "urn:trioserver:snapshot:1", "True"]


# The page ---------------------------------------------------------------------------


def in_words(field):
    """What a field holds, as the page says it."""
    match field:
        case {"const": value}:
            return f"``{json.dumps(value)}``"
        case {"enum": values}:
            return ", ".join(f"``{json.dumps(value)}``" for value in values)
        case {"$ref": target}:
            return target.rpartition("/")[2]
        case {"items": items}:
            return f"list of {in_words(items)}"
        case {"anyOf": kinds}:
            return " or ".join(map(in_words, kinds))
        case {"type": [*kinds]}:
            return " or ".join(kinds)
    return field["type"]


def table_of(name, it):
    """The table of an object, as it has to be on the page."""
    yield f".. list-table:: {name}"
    yield from ("   :header-rows: 1", "   :widths: 20 25 55", "")
    for row in (
        ("field", "value", "meaning"),
        *(
            (f"``{key}``", in_words(field), field["description"])
            for key, field in it["properties"].items()
        ),
    ):
        yield from (f"   {'*' if cell is row[0] else ' '} - {cell}" for cell in row)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda it: it["$id"])
def test_page(schema):
    """The page has each object with all its fields, in order, and what each of them means."""
    shown = page("reference/json")
    for name, it in objects(schema).items():
        expected = "\n".join(table_of(name, it))
        assert f"{expected}\n\n" in f"{shown}\n", expected
    names = {name for each in SCHEMAS for name in objects(each)}
    assert set(re.findall(r"list-table:: (\S+)", shown)) == names
