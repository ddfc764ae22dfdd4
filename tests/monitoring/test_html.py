"""`as_html`: a document that shows the data, and in which names are text, whatever they are."""

from html.parser import HTMLParser

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support import hold
from support.scenes import table

import trioserver
from trioserver import RequestInfo, RequestSnapshot, ServerSnapshot, Statistics
from trioserver.monitoring import (
    Cancellation,
    ScopeView,
    TaskTree,
    TaskView,
    as_html,
    task_tree,
)
from trioserver.testing import MemoryServer

KNOWN = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "ul", "li", "b", "span"}
KNOWN |= {"br", "code", "p", "i", "details", "summary", "div", "table", "thead", "tbody", "tr"}
KNOWN |= {"th", "td", "meter"}
ALONE = {"meta", "br"}
SPACES = {"\t", "\n", "\r", " "}


class Reader(HTMLParser):
    """What is in a document: its elements, which are closed as they were opened, and its text."""

    def __init__(self, document):
        super().__init__()
        self.open, self.seen, self.words = [], set(), []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        assert not [name for name, _ in attributes if name.startswith("on") or name == "src"]
        if tag not in ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(document):
    """The text of a document, which is well-formed and asks for nothing."""
    reader = Reader(document)
    assert reader.open == []
    assert reader.seen <= KNOWN
    assert not reader.seen & {"link", "script", "img", "iframe", "object"}
    return " ".join("".join(reader.words).split())


def tree(*tasks):
    """A tree of tasks, at 10 seconds."""
    return TaskTree(10.0, tasks)


ROOT = TaskView(0, None, None, 0, "<init>")
CANCELLED = ScopeView(12.0, cancelled=Cancellation("the grace is over", "explicit"))


@table(
    "seen, told",
    {
        "an empty tree": (tree(), ["Tasks"]),
        "one task": (tree(ROOT), ["<init>"]),
        "a deep one": (
            tree(ROOT, ROOT._replace(id=1, depth=1), ROOT._replace(id=2, depth=2), ROOT),
            ["<init>"] * 4,
        ),
        "scopes": (
            tree(ROOT._replace(scopes=(CANCELLED, ScopeView(12.5, shield=True)))),
            ["cancelled: the grace is over", "shielded, 2.5 s left"],
        ),
    },
)
def test_trees(seen, told):
    """Each task is there, with what is to be known of its scopes, in the order of the tree."""
    text = read(as_html(seen))
    for words in told:
        assert words in text
    assert text.count("<init>") == len(seen.tasks)


async def test_what_runs():
    """A server and all tasks of a program, as they are, in one document."""
    async with MemoryServer(("memory", 1), hold).serving(grace=0) as server:
        await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        text = read(as_html([server.snapshot(), task_tree()], title="A & B"))
    for words in ("A & B", "MemoryServer serving", "Requests: 1", "memory-client:1", "in hold"):
        assert words in text


SERVER = ServerSnapshot(
    name="S", state="serving", uptime=1.0, listeners=(), requests=(), statistics=Statistics()
)


@given(st.text(), st.text(), st.floats())
def test_hostile_names(name, client, left):
    """No element appears that a name has brought, and no character that does something."""
    info = RequestInfo(id=1, client_address=client, server_address=name, started=0, started_at=0)
    request = RequestSnapshot(
        info=info, state="working", age=1.0, time_left=left, bytes_received=0, bytes_sent=0
    )
    scope = ScopeView(cancelled=Cancellation(client))
    seen = [
        attrs.evolve(SERVER, name=name, requests=(request,)),
        tree(ROOT._replace(name=name, scopes=(scope,))),
    ]
    document = as_html(seen, title=name)
    read(
        document.replace("http://", "").replace("https://", "")
        if "http" in name + client
        else document
    )
    assert all(one.isprintable() or one in SPACES for one in document)


def test_what_cannot_be_shown():
    """Something else is refused, in words."""
    with pytest.raises(TypeError, match="a TaskTree or a ServerSnapshot was expected, not 7"):
        as_html(7)
    assert trioserver.ServerSnapshot is ServerSnapshot
