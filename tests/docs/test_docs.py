"""The documentation: what it shows and says is true, and its tables leave nothing out.

The tests of the snippets, one by one, stand beside them in ``docs/snippets``.
"""

import errno
import importlib
import inspect
import itertools
import logging
import math
import os
import re
import socketserver
from functools import partial

import attrs
import pytest
import trio
from support.pages import DOCS, MEMORY, assert_shown, page
from support.programs import failures, pytest_says

import trioserver
import trioserver.monitoring
import trioserver.testing
from trioserver._engine.accept_errors import Tier, tier_of
from trioserver._facts.verdict import _PEER_OUTCOMES
from trioserver.testing import MemoryServer


async def test_shown_endings(autojump_clock, caplog):
    """The three endings in the explanation of errors are real records."""
    caplog.set_level(logging.INFO)

    async def listen(request, client_address, server):
        request.idle_timeout = {51022: 300, 51024: math.inf, 51026: math.inf}[client_address[1]]
        if client_address[1] == 51024:
            request.cancel_scope.deadline = 400
        await request.recv()
        await request.recv()

    async with MemoryServer(MEMORY, listen).serving() as server:
        for port in (51022, 51024, 51026):
            client = await server.connect(("192.0.2.1", port))
            if port != 51022:
                await client.send_all(b"x")
        await trio.sleep(400)
        server.shutdown()
    records = [message for message in caplog.messages if message.startswith("request")]
    assert len(records) == 3
    assert_shown("\n".join(record.partition(", ")[0] for record in records), "explanation/errors")


async def test_shown_log(autojump_clock, caplog):
    """The lines on the page about logging are real ones."""
    caplog.set_level(logging.INFO)

    async def answer(request, client_address, server):
        await trio.sleep(0.013)
        await request.sendall(await request.recv(6))

    limits = trioserver.Limits(requests=1, when_full="refuse")
    async with MemoryServer(("127.0.0.1", 9999), answer, limits=limits).serving() as server:
        client = await server.connect(("127.0.0.1", 51022))
        await client.send_all(b"hello\n")
        await server.connect(("127.0.0.1", 51024))
        await client.receive_some()
    shown = [f"{it.levelname}:{it.name}:{it.getMessage()}" for it in caplog.records]
    assert len(shown[:-2]) == 3  # and one for the drain, one for the end
    assert_shown("\n".join(shown[:-2]), "how-to/log")


def plain(text):
    """A text without the frames of groups, folders, and breaks between lines."""
    lines = [re.sub(r"^(E  )?[\s|+-]*", "", line) for line in text.splitlines()]
    bare = " ".join(lines).replace(f"{DOCS / 'snippets'}{os.sep}", "")
    return " ".join(re.sub(r"trioserver\.testing\._\w+\.", "", bare).split())


def assert_quoted(quoted, told):
    """What is quoted on a page has come; lines with three dots stand for what is left out."""
    for part in re.split(r"^ *\.\.\.$", quoted, flags=re.MULTILINE):
        assert part.strip()
        assert plain(part) in plain(told)


WRONG = {
    "wrong_tests": "how-to/testing/failures",
    "wrong_thread": "how-to/testing/thread",
    "dictionary_wrong": "tutorial-testing",
}


@pytest.mark.slow
def test_wrong_tests():
    """Each test on these pages that is shown with a message fails with it, as a reader runs it."""
    files = [str(DOCS / "snippets" / f"{name}.py") for name in WRONG]
    told = failures(pytest_says("-p", "no:cacheprovider", *files))
    block = r"\.\. code-block:: text\n((?:\n   .*|\n(?=\n))+)"
    quoted = {}
    for name, shown_on in WRONG.items():
        below = rf"{name}\.py\n   :pyobject: (test_\w+)\n(?:(?!:pyobject:)[\s\S])*?{block}"
        quoted.update(re.findall(below, page(shown_on)))
    assert sorted(quoted) == sorted(told)
    for test, message in quoted.items():
        assert_quoted(message, told[test])


@pytest.fixture
def snippet(monkeypatch):
    """Imports a file of ``docs/snippets``, as the others there do."""
    monkeypatch.syspath_prepend(DOCS / "snippets")
    return importlib.import_module


@pytest.mark.parametrize(
    ("said", "ends_with"),
    [
        ([b"EHLO me\r\n", b"RCPT TO:<a@b>\r\n"], "got b'RCPT TO:<a@b>\\r\\n'"),
        ([b"EHLO me\r\n", b"MAIL FROM:<a@b>\r\n"], "got nothing, and the test was over"),
        (None, "the first of 7 steps is reply(b'220 mail.example\\r\\n')"),
    ],
)
async def test_script_that_is_not_met(said, ends_with, snippet, autojump_clock):
    """The messages on the page about scripts are those of clients that go other ways."""
    script = snippet("script_test").SCRIPT
    with pytest.RaisesGroup(trioserver.testing.Unmet, allow_unwrapped=True) as caught:
        async with trioserver.testing.open_scripted_server(*script) as server:
            if said is not None:
                client = await server.connect()
                for line in said:
                    await client.send_all(line)
    error = caught.value
    (unmet,) = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
    assert str(unmet).endswith(ends_with)
    assert_shown(f"Unmet: {unmet}", "how-to/testing/script")


def steps(lengths, *, is_armed=True):
    """A scenario that is as long as the next of these lengths says."""

    async def scenario(trial):
        if is_armed:
            trial.arm()
        for _ in range(next(lengths)):
            await trio.lowlevel.checkpoint()

    return scenario


def breaks(trial):
    """A fault that fails."""
    raise ZeroDivisionError


def test_findings(monkeypatch, snippet):
    """The messages on the page about sweeps are what `sweep` says of such scenarios."""
    sweep, run_trial = trioserver.testing.sweep, trioserver.testing.run_trial
    sweeps, cancel = snippet("sweep_test"), trioserver.testing.Cancel()
    three_steps = steps(itertools.repeat(3))
    findings = [
        lambda: sweep(partial(sweeps.visit, handler=sweeps.Guests)),
        lambda: sweep(steps(itertools.count(1))),
        lambda: sweep(steps(itertools.repeat(0), is_armed=False)),
        lambda: run_trial(three_steps, cancel, at=[1000]).check(),
        lambda: sweep(three_steps, faults=[breaks]),
    ]
    quotes = re.findall(r"code-block:: text\n\n((?:   .*\n|\n)+)", page("how-to/testing/sweep"))
    for find, quoted in zip(findings, quotes, strict=True):
        if find is findings[-1]:
            monkeypatch.setattr(
                "trioserver.testing._sweeping.schedule.SWITCHES", ["_of_another_version"]
            )
        with pytest.raises(trioserver.testing.Finding) as found:
            find()
        assert_quoted(quoted, f"Finding: {found.value}")


PUBLIC = (trioserver, trioserver.monitoring, trioserver.testing)
DOCUMENTED = sorted(f"{module.__name__}.{name}" for module in PUBLIC for name in module.__all__)
REFERENCE = [f"reference/{file.stem}" for file in sorted((DOCS / "reference").glob("*.rst"))]


def described(name):
    """The names that a page of the reference describes, with their modules."""
    module, found = "", []
    for kind, target in re.findall(r"^\.\. (\w+):: ([\w.]+)", page(name), re.MULTILINE):
        module = target if kind in {"currentmodule", "module"} else module
        found += [f"{module}.{target}"] * (kind.startswith("auto") or kind == "data")
    return found


def test_reference_describes_every_name_once():
    """Every public name is in the reference, in one place, and so is every member of a server.

    Nothing else is.
    """
    assert sorted(name for each in REFERENCE for name in described(each)) == DOCUMENTED
    member = r"^   \.\. auto(?:method|property|attribute):: (\w+)"
    members = re.findall(member, page("reference/servers"), re.MULTILINE)
    fields = attrs.fields_dict(trioserver.BaseServer)
    public = {name for name in dir(trioserver.BaseServer) if not name.startswith("_")}
    assert sorted(members) == sorted(public - {*fields})


def table(name, under):
    """The rows of the first list-table after the line ``under``, but for its header."""
    _, found, after = page(name).partition(f"\n{under}\n")
    assert found, under
    rows = []
    for line in after[after.index("   * - ") :].splitlines():
        if line.startswith("   * -"):
            rows.append([line[6:]])
        elif line.startswith("     -"):
            rows[-1].append(line[6:])
        elif not line or line.startswith("       "):
            rows[-1][-1] += " " + line.strip()
        else:
            break
    return [[cell.strip() for cell in row] for row in rows[1:]]


def literals(cell):
    """The literals in a cell."""
    return re.findall(r"``(.+?)``", cell)


def as_shown(default):
    """A field's default, as the tables show it."""
    if isinstance(default, attrs.Factory):
        return f"{default.factory.__name__}()"
    if isinstance(default, int) and default >= 2**16:
        return f"{default >> 20} MiB" if default >= 2**20 else f"{default >> 10} KiB"
    return f'"{default}"' if isinstance(default, str) else repr(default)


WITH_FIELDS = ["BaseServer", "TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer"]
WITH_FIELDS += ["ThreadingMixIn", "ProcessMixIn", "Timeouts", "Limits"]


@pytest.mark.parametrize("name", WITH_FIELDS)
def test_field_table(name):
    """The tables of fields have every field, with its default, in order; so have docstrings."""
    cls = getattr(trioserver, name)
    title = re.search(rf"^\.\. list-table:: `{name}`.*$", page("reference/fields"), re.MULTILINE)
    public = [base for base in cls.__mro__[1:] if base.__name__ in trioserver.__all__]
    shared = {field.name for base in public for field in attrs.fields(base)}
    documented = "".join(inspect.getdoc(base) or "" for base in cls.__mro__)
    rows = table("reference/fields", title[0])
    expected = []
    for field in attrs.fields(cls):
        assert re.search(rf"^ +{field.alias}: ", documented, re.MULTILINE), field.alias
        if field.name not in shared:
            default = [] if field.default is attrs.NOTHING else [as_shown(field.default)]
            expected.append([field.alias, default])
    assert [[literals(name)[0], literals(default)] for name, default, _ in rows] == expected
    assert all(meaning for _, _, meaning in rows)


def test_lints_on_the_page():
    """The page about what is stuck has every lint, with its bound, and a cause and a cure."""
    rows = table("how-to/stuck", "What the lints find")
    linter = trioserver.monitoring.Linter()
    shown = {literals(name)[0]: literals(bound) for name, bound, _, _ in rows}
    bounds = {it.name: getattr(linter, it.name) for it in attrs.fields(type(linter)) if it.init}
    assert shown == {name.replace("_", "-"): [repr(bound)] for name, bound in bounds.items()}
    assert all(cause and cure for *_, cause, cure in rows)


def classic_names(cls):
    """The public names a class of socketserver defines, and those its objects get."""
    names = {*vars(cls), *re.findall(r"\bself\.(\w+)(?=[\w., ]* = )", inspect.getsource(cls))}
    return {it for it in names if not it.startswith("_") or it in {"__enter__", "__exit__"}}


CLASSIC = sorted({"BaseServer", *socketserver.__all__})
TITLES = re.findall(r"^(.+)\n~+$", page("how-to/porting"), re.MULTILINE)
PORTING = {title: table("how-to/porting", title) for title in TITLES}


def test_porting_covers_socketserver():
    """The porting page has every class, and all that it defines, be it of 3.12 and newer.

    It has no other names.
    """
    covered = {
        title: {it for row in rows for it in literals(row[0])} for title, rows in PORTING.items()
    }
    known = {"bind_and_activate", "ForkingUnixStreamServer", "ForkingUnixDatagramServer"}
    for name in CLASSIC:
        names = {name, *classic_names(getattr(socketserver, name))}
        ready_made = "MixIn" not in name and name.startswith(("Threading", "Forking"))
        title = "Ready-made servers" if ready_made else name
        title = "UnixStreamServer, UnixDatagramServer" if name.startswith("Unix") else title
        assert names <= covered[title]
        known |= names
    assert set().union(*covered.values()) <= known


PORTED = {
    "UnixStreamServer, UnixDatagramServer": "UnixStreamServer",
    "ThreadingMixIn": "ThreadingTCPServer",
    "ForkingMixIn": "ForkingTCPServer",
    "Ready-made servers": "TCPServer",
}


@pytest.mark.parametrize("title", PORTING)
def test_porting_says_what_is_there(title):
    """What a table calls the same is there, of the same colour; what is gone or to come is not."""
    cls = getattr(trioserver, PORTED.get(title, title))
    there = {"request", "client_address", "server", "connection", "packet", *dir(cls)}
    there.update(trioserver.__all__)
    there.update(field.alias for field in (attrs.fields(cls) if attrs.has(cls) else ()))
    for names, here, _ in PORTING[title]:
        for name in literals(names):
            if "the same" in here:
                assert name in there, name
                is_async = inspect.iscoroutinefunction(getattr(cls, name, None))
                assert is_async == here.startswith(("``async``", "``await``")), name
            elif here == "gone":
                assert name not in there, name
            elif here.startswith("later"):
                assert name not in trioserver.__all__, name


def test_errnos_of_the_accept_tiers():
    """The tiers on the page about accept errors are those of the code."""
    rows = table(
        "explanation/accept-errors",
        "Accepting a client can fail, and the errors mean three different things.",
    )
    shown = {row[0]: {getattr(errno, it) for it in literals(row[1])} for row in rows}
    for number in errno.errorcode:
        tier = tier_of(OSError(number, ""))
        assert (number in shown["one client"]) == (tier is Tier.CONNECTION), errno.errorcode[number]
        assert (number in shown["capacity"]) == (tier is Tier.CAPACITY), errno.errorcode[number]
        nobody = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR}
        assert (number in nobody) == (tier is Tier.NOBODY), errno.errorcode[number]


def test_outcomes_of_the_errors():
    """The outcomes in the table of a client's errors are what handlers that raise them end with."""
    rows = table(
        "explanation/errors",
        "program. A read or send raises one of these, and a handler may catch it:",
    )
    shown = {row[0].strip("`"): literals(row[2])[0] for row in rows}
    real = {kind.__name__: outcome.value for kind, outcome in _PEER_OUTCOMES}
    assert shown == real


def test_files_that_pages_name_are_there():
    """A reader who follows a page into the source finds the file."""
    for path in DOCS.rglob("*.rst"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"``((?:trioserver|tests|examples)/[\w/.-]+)``", text):
            assert (DOCS.parent / name).exists(), (path.name, name)


def test_promises_are_held_by_tests():
    """There are ten, by their numbers; each names tests, and all of them are there."""
    titled = r"^(\S.*)\n-{3,}$"
    _, *parts = re.split(titled, page("explanation/promises"), flags=re.MULTILINE)
    promises = dict(zip(parts[::2], parts[1::2], strict=True))
    numbered = [title for title in promises if title[0].isdigit()]
    assert [int(title.partition(".")[0]) for title in numbered] == list(range(1, 11))
    for title in numbered:
        named = re.findall(r"^- ``tests/(\S+\.py)::(test_\w+)``$", promises[title], re.MULTILINE)
        assert named
        assert len(named) == len(set(named)) == promises[title].count("``tests/")
        for file, name in named:
            text = (DOCS.parent / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), name


def test_glossary_has_only_words_that_are_used():
    """Each term of the glossary is in order, and on some other page."""
    terms = re.findall(r"^   (\w.*)$", page("glossary").partition(".. glossary::")[2], re.MULTILINE)
    assert len(terms) > 20
    assert terms == sorted(terms)
    files = [file for file in DOCS.rglob("*.rst") if file.stem != "glossary"]
    prose = " ".join(file.read_text(encoding="utf-8") for file in files)
    words = " ".join(prose.split()).lower().replace("back-pressure*", "back-pressure")
    assert [term for term in terms if term not in words] == []


def test_every_snippet_is_shown():
    """A snippet that no page includes is dead, unless it is the test of others."""
    shown = set()
    for file in DOCS.rglob("*.rst"):
        shown.update(re.findall(r"snippets/(\S+)", file.read_text(encoding="utf-8")))
    files = {file.name for file in (DOCS / "snippets").glob("*.py")}
    tests = {name for name in files if name.endswith("_test.py")}
    assert files - tests <= shown <= files
