"""The rooms of the house: a room imports only from those above it, and nothing in circles."""

import ast
import re
from pathlib import Path

from support.scenes import table

import trioserver

PACKAGE = Path(trioserver.__file__).parent

ROOMS = (
    "_published.py",
    "_facts/",
    "monitoring/_tree/",
    "monitoring/_text/",
    "_sockets/",
    "_requests/",
    "_engine/",
    "_servers/",
    "_modes/threads/",
    "_modes/processes/protocol/",
    "_modes/processes/worker/",
    "_modes/processes/server/",
    "_modes/adopted/",
    "_program/",
    "__init__.py",
    "monitoring/",
    "testing/_memory/",
    "testing/_faults/",
    "testing/_looking/",
    "testing/_running/",
    "testing/_script/",
    "testing/_sweeping/",
    "testing/",
    "pytest_plugin.py",
    "_cli/ __main__.py",
)
"""A file imports from its own room, and from rooms that stand above that in this table.

Files of one room may import each other, but not in circles. From ``__init__.py`` on they are
what people use, or use as people do: those import public names alone. What all of ``monitoring/``
begins with, the tree of tasks and the text of what is seen, stands above: servers log with it.
"""

SHARED = "_published.py"
"""The one private file that public packages use, too: it gives their names their home."""

PRIVATE = {
    "_facts/cpython.py": {
        "_BaseServer__is_shut_down": "CPython: the event that their shutdown() waits for",
        "_BaseServer__shutdown_request": "CPython: their shutdown() was called",
        "_forkserver": "CPython: the fork server, which is ended when it does not answer",
        "_forkserver_pid": "CPython: its process",
        "_connected": "CPython: whether a TLS socket tells of its peer",
        "_context": "CPython: the context of a TLS socket",
        "_io_refs": "CPython: a socket closes with its last file",
        "_popen": "CPython: a child whose status somebody else has reaped",
        "_real_close": "CPython: what closes a socket in the end",
        "_sendfile_use_send": "CPython: sendfile() of what is no regular file",
        "_session": "CPython: the session of a TLS socket",
        "_is_owned": "CPython: whether it is the calling thread that has a lock",
        "_sslobj": "CPython: what a TLS socket asks for all that was agreed on",
        "_target": "CPython: what a process that the fork server forks is to do",
    },
    "_facts/trio_tasks.py": {
        "_cancel_called": "Trio: whether a scope is cancelled, without a look at the clock",
        "_cancel_reason": "Trio: why a scope was cancelled",
        "_cancel_status": "Trio: the scopes around a task, and around a nursery",
        "_counter": "Trio: the number of a task",
        "_deadline": "Trio: the deadline of a scope",
        "_parent": "Trio: the next scope outside",
        "_parent_nursery": "Trio: that of a task, read in C",
        "_scope": "Trio: the public scope of a status",
        "_shield": "Trio: whether a scope shields",
    },
    "_modes/processes/protocol/lifeline.py": {"_exit": "documented: os._exit ends a process"},
    "_modes/threads/own_thread.py": {"_threads": "Trio: what from_thread asks for, in any thread"},
    "_modes/threads/thread_call.py": {"_current_frames": "documented: where a thread is"},
    "monitoring/_watchdog/holder.py": {"_current_frames": "documented: sys._current_frames"},
    "pytest_plugin.py": {"_trio_test_runner_wrapped": "pytest-trio: it has made a test plain"},
    "testing/_looking/guard.py": {"_current_frames": "documented: sys._current_frames"},
    "testing/_sweeping/schedule.py": {
        "_core": "Trio: where its scheduler is",
        "_run": "Trio: the module of its scheduler",
        "_r": "Trio: the random numbers that its scheduler draws",
        "_ALLOW_DETERMINISTIC_SCHEDULING": "Trio: tasks in a fixed order before it draws",
    },
    "testing/_looking/shields.py": {
        "_cancel_status": "Trio: the scopes around a task",
        "_parent": "Trio: the next scope outside",
        "_scope": "Trio: the public scope of a status",
    },
    "testing/_running/trio_thread.py": {"_current_frames": "documented: sys._current_frames"},
}
"""Every private name of Trio, CPython and pytest-trio that is used: where, and what for."""

# Looking ------------------------------------------------------------------------


def room_of(file):
    """The number of a file's room; None if it is in none."""
    if file.endswith("/__init__.py") and file.startswith("_"):
        return 0  # it says what a room is for, and imports nothing
    for number, names in enumerate(ROOMS):
        for name in names.split():
            if file == name or (name.endswith("/") and file.startswith(name)):
                return number
    return None


def imports_of(package, file):
    """What a file imports of its own package: other files, and the name taken from each.

    Everywhere in it: in functions and under ``if TYPE_CHECKING``, too.
    """
    here = [package.name, *Path(file).parts[:-1]]
    for node in ast.walk(ast.parse((package / file).read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from resolve(package, alias.name.split("."), "")
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) + 1 - node.level] if node.level else []
            for alias in node.names:
                parts = [*above, *(node.module or "").split(".")]
                yield from resolve(package, list(filter(None, parts)), alias.name)


def resolve(package, parts, name):
    """The file that a dotted name means, if it is one of the package's."""
    if parts[0] != package.name:
        return
    for path, taken in (([*parts[1:], name], ""), (parts[1:], name)):
        for file in (f"{'/'.join(path)}.py", "/".join([*path, "__init__.py"])):
            if (package / file).exists():
                yield file, taken
                return


def problems(package=PACKAGE):
    """What breaks the order of the rooms, a line each."""
    files = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    imports = {file: list(imports_of(package, file)) for file in files}
    found = [problem for file in files for problem in problems_of(file, imports)]
    return found + list(private_problems(package, files))


def problems_of(file, imports):
    """What is wrong with the imports of one file."""
    mine = room_of(file)
    if mine is None:
        yield f"{file} is in no room"
        return
    for other, name in imports[file]:
        theirs = room_of(other)
        is_public = other.endswith("__init__.py") and name[:1] != "_"
        is_ours = other == SHARED or Path(file).parts[0] == Path(other).parts[0]
        if theirs is None or theirs > mine:
            yield f"{file} imports {other}, of a room below its own"
        elif is_tool(file) and theirs != mine and not (is_public or is_ours):
            yield f"{file}, a tool, imports {name or other} of {other}, which is private"
        elif file in reachable(imports, other):
            yield f"{file} and {other} import each other"


def is_tool(file):
    """Whether a file uses the package as people do, with its public names alone."""
    number = room_of(file)
    return number is not None and number > ROOMS.index("__init__.py")


def reachable(imports, file):
    """The files that a file imports, directly or not."""
    found = set()
    ahead = [file]
    while ahead:
        new = {other for other, _ in imports[ahead.pop()]} - found
        ahead += new
        found |= new
    return found


def private_problems(package, files):
    """Private names of others that are used, and are not in the table."""
    trees = {file: ast.parse((package / file).read_bytes()) for file in files}
    ours = {part for file in files for part in Path(file).with_suffix("").parts}
    ours = ours.union(*map(defined_in, trees.values()))
    for file, tree in trees.items():
        known = defined_in(tree) if is_tool(file) else ours
        for name in sorted(private_names(tree) - known - set(PRIVATE.get(file, ()))):
            yield f"{file} uses {name}, which is private to others"


def private_names(tree):
    """The private names that a file uses: of objects, in strings, and of imported modules."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # getattr(task, "_cancel_status")
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            names.update(part for module in modules for part in module.split("."))
        elif isinstance(node, ast.Import):
            names.update(part for alias in node.names for part in alias.name.split("."))
    # They begin with an underscore, and are no names of the language's.
    return set(filter(re.compile(r"_(?!.*__$)\w+").fullmatch, names))


def defined_in(tree):
    """The names that a file gives to its functions, classes, variables and attributes."""
    defined = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            defined.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            defined.add(str(node.slice.value))  # vars(error)["_note"] = ...
    return defined


# The package ---------------------------------------------------------------------


def test_rooms_hold():
    """Every file is in a room, imports only from above, and uses no private name in secret."""
    assert problems() == []


def test_rooms_name_nothing_that_is_gone():
    """The tables are of this package, as it is now."""
    names = " ".join(ROOMS).split()
    assert [name for name in names if not (PACKAGE / name).exists()] == []
    assert len(names) == len(set(names))
    for file, privates in PRIVATE.items():
        tree = ast.parse((PACKAGE / file).read_bytes())
        assert set(privates) <= private_names(tree) | defined_in(tree), file


def test_rooms_say_what_they_are_for():
    """Each says so in the docstring of its folder: what it is, and what it must not know."""
    for folder in {path.parent for path in PACKAGE.glob("_*/**/*.py")}:
        [says] = ast.parse((folder / "__init__.py").read_bytes()).body
        assert isinstance(says, ast.Expr), folder
        assert len(ast.unparse(says).split("\\n")) >= 3, folder


def test_files_have_one_idea():
    """At most 300 lines of it, or the walls are to be moved; but a request's life is told whole."""
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    long = {path.relative_to(PACKAGE).as_posix() for path in lines if lines[path] > 300}
    assert long == {"_engine/request_task.py"}


# The check itself -------------------------------------------------------------------


def uses(*names, by="_engine/run.py"):
    """The complaints about private names of others."""
    return [f"{by} uses {name}, which is private to others" for name in names]


CONFIG, RUN, TOOL = "_facts/config.py", "_engine/run.py", "testing/_a.py"
BELOW = [f"{CONFIG} imports {RUN}, of a room below its own"]
BEHIND = f"{TOOL}, a tool, imports {{}}, which is private"
A_RUN, A_SECRET = BEHIND.format(f"Run of {RUN}"), BEHIND.format("_secret of __init__.py")
CIRCLE = "_requests/{}.py and _requests/{}.py import each other"
CIRCLES = [CIRCLE.format("connection", "sending"), CIRCLE.format("sending", "connection")]
FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .._engine.run import Run"
OTHERS = "from .._facts.config import Limits\nimport trio, os.path\nfrom attrs import define"
PUBLIC = """
import trioserver
from trioserver import TCPServer
from ._b import c
self._x = self._x
from .._published import publish
from ._memory.d import e
"""


@table(
    "file, source, found",
    {
        "An import from a room below": (CONFIG, "from .._engine.run import Run", BELOW),
        "of a module": (CONFIG, "from .._engine import run", BELOW),
        "by its whole name": (CONFIG, "from trioserver._engine.run import Run", BELOW),
        "of a module by its whole name": (CONFIG, "from trioserver._engine import run", BELOW),
        "as a statement": (CONFIG, "import trioserver._engine.run", BELOW),
        "in a function": (CONFIG, "def f():\n    from .._engine.run import Run", BELOW),
        "for types only": (CONFIG, FOR_TYPES, BELOW),
        "of the package": (CONFIG, "import trioserver", [BELOW[0].replace(RUN, "__init__.py")]),
        "From above, or of other packages, it is none of its business": (RUN, OTHERS, []),
        "An order within a room is fine": ("_requests/files.py", "from .sending import x", []),
        "and a circle is not": ("_requests/sending.py", "from .connection import x", CIRCLES),
        "A new file has to be given its place": ("_new.py", "", ["_new.py is in no room"]),
        "A tool may use the package as everybody does, and its own neighbours": (TOOL, PUBLIC, []),
        "It may not look behind the curtain": (TOOL, "from .._engine.run import Run", [A_RUN]),
        "nor at a private name of the package": (
            *(TOOL, "from trioserver import _secret"),
            [A_SECRET, *uses("_secret", by=TOOL)],
        ),
        "nor at an attribute": (TOOL, "server._bound_run()", uses("_bound_run", by=TOOL)),
        "nor by its name": (TOOL, "getattr(server, '_run')", uses("_run", by=TOOL)),
        "The core may use its own private names": (RUN, "class Run: _end = 1\nbase._end()", []),
        "and of others none that is not listed": (RUN, "it._status", uses("_status")),
        "be it in a string": (RUN, "getattr(it, '_status')", uses("_status")),
        "a module": (RUN, "import trio._threads", uses("_threads")),
        "that of a name": (RUN, "from trio._core import x", uses("_core")),
        "or the name": (RUN, "from sys import _current_frames", uses("_current_frames")),
    },
)
def test_problems(file, source, found, tmp_path):
    """What breaks the order of the rooms is found, and nothing else is."""
    empty = "__init__ _published _facts/config _engine/run testing/__init__ testing/_b"
    files = {f"{name}.py": "" for name in f"{empty} testing/_memory/d".split()}
    files |= {"_requests/connection.py": "from .sending import x", "_requests/sending.py": ""}
    for name, text in (files | {file: source}).items():
        path = tmp_path / "trioserver" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert problems(tmp_path / "trioserver") == found
