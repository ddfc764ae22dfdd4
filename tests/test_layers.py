"""The rooms of the house: a file imports only from layers above its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import trioserver
from trioserver.testing._schedule import SWITCHES

PACKAGE = Path(trioserver.__file__).parent

# The last layer, people's tools, imports public names alone. Within any other
# layer files may import each other, but not in circles.
LAYERS = (
    "_published.py _errors.py _config.py _signals.py",
    (
        "_address.py _events.py _observers.py _transport.py"
        " _sockets.py _sealing.py _sharing.py _datagram_notes.py _datagram_socket.py _verdict.py"
        " _descriptors.py"
    ),
    (
        "_drain.py _receiving.py _sending.py _connection.py _datagram.py _files.py _reader.py"
        " _writer.py _unix_path.py _listeners.py _slots.py _blocking_socket.py _socket_use.py"
    ),
    (
        "_handlers.py _sync_handlers.py _request.py _accept.py _ledger.py _lent.py"
        " _worker_thread.py _own_thread.py"
    ),
    "_door.py _shutdown.py _run.py",
    "_fields.py _hooks.py _base.py",
    (
        "_servers.py _threads.py _processes/ _adopted_transport.py _adopted_listener.py _adopted.py"
        " _adopted_accept.py"
    ),
    "_program.py _adopt.py",
    "__init__.py",
    "testing/ pytest_plugin.py __main__.py _demo.py",
)

SHARED = "_published.py"
"""The one private file that tools use, too: it gives public names their home."""

PRIVATE = {
    *(("testing/_schedule.py", name) for name in ("_core", "_run", *SWITCHES)),
    *(("testing/_shields.py", name) for name in ("_scope", "_parent")),
}
"""What is private elsewhere and used all the same, which is said where it is."""

# Looking ------------------------------------------------------------------------


def layer_of(file: str) -> int | None:
    """The number of a file's layer; None if it is in none."""
    for number, names in enumerate(LAYERS):
        for name in names.split():
            if file == name or (name.endswith("/") and file.startswith(name)):
                return number
    return None


def imports_of(package: Path, file: str) -> Iterator[tuple[str, str]]:
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


def resolve(package: Path, parts: list[str], name: str) -> Iterator[tuple[str, str]]:
    """The file that a dotted name means, if it is one of the package's."""
    if parts[0] != package.name:
        return
    for path, taken in (([*parts[1:], name], ""), (parts[1:], name)):
        if path and path[-1] and (package / f"{'/'.join(path)}.py").exists():
            yield f"{'/'.join(path)}.py", taken
            return
        if (not path or path[-1]) and (package / "/".join(path) / "__init__.py").exists():
            yield "/".join([*path, "__init__.py"]), taken
            return


Imports = dict[str, list[tuple[str, str]]]


def problems(package: Path = PACKAGE) -> list[str]:
    """What breaks the order of the layers, a line each."""
    files = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    imports = {file: list(imports_of(package, file)) for file in files}
    found = [problem for file in files for problem in problems_of(file, imports)]
    return found + [
        f"{file}, a tool, uses {name}, which is private"
        for file in filter(is_tool, files)
        for name in sorted(foreign_privates(package / file))
        if (file, name) not in PRIVATE
    ]


def problems_of(file: str, imports: Imports) -> Iterator[str]:
    """What is wrong with the imports of one file."""
    mine = layer_of(file)
    if mine is None:
        yield f"{file} is in no layer"
        return
    for other, name in imports[file]:
        theirs = layer_of(other)
        if is_tool(file):
            if (
                not is_tool(other)
                and other != SHARED
                and (other != "__init__.py" or name.startswith("_"))
            ):
                yield f"{file}, a tool, imports {name or other} of {other}, which is private"
        elif theirs is None or theirs > mine:
            yield f"{file} (layer {mine}) imports {other} (layer {theirs})"
        elif file in reachable(imports, other):
            yield f"{file} and {other} import each other"


def is_tool(file: str) -> bool:
    """Whether a file is one of people's tools."""
    return layer_of(file) == len(LAYERS) - 1


def reachable(imports: Imports, file: str) -> set[str]:
    """The files that a file imports, directly or not."""
    found: set[str] = set()
    ahead = [file]
    while ahead:
        new = {other for other, _ in imports[ahead.pop()]} - found
        ahead += new
        found |= new
    return found


def foreign_privates(file: Path) -> set[str]:
    """The private attributes that a file uses and does not define."""
    nodes = list(ast.walk(ast.parse(file.read_bytes())))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if isinstance(node.ctx, ast.Load)}
    defined = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    defined |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.name for node in nodes if isinstance(node, ast.AsyncFunctionDef)}
    names = [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
    defined |= {name.id for name in names if isinstance(name, ast.Name)}
    return {name for name in used - defined if name[0] == "_" and not name.endswith("__")}


# The package ---------------------------------------------------------------------


def test_layers_hold() -> None:
    """Every file is in a layer, and imports only from above."""
    assert problems() == []


def test_layers_name_no_file_that_is_gone() -> None:
    """The table is of this package, as it is now."""
    names = " ".join(LAYERS).split()
    assert [name for name in names if not (PACKAGE / name).exists()] == []
    assert len(names) == len(set(names))


# The check itself -------------------------------------------------------------------


def package(folder: Path, **sources: str) -> Path:
    """A package of these files."""
    for name, source in {"__init__": "", **sources}.items():
        file = folder / "trioserver" / f"{name.replace('__in__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
    return folder / "trioserver"


def test_layers_import_from_below(tmp_path: Path) -> None:
    """An import of a lower layer is found, in all its forms."""
    for source in (
        "from ._run import Run",
        "from . import _run",
        "from trioserver._run import Run",
        "from trioserver import _run",
        "import trioserver._run",
        "def f():\n    from ._run import Run",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ._run import Run",
    ):
        found = problems(package(tmp_path, _config=source, _run=""))
        assert found == ["_config.py (layer 0) imports _run.py (layer 4)"], source


def test_layers_import_from_above(tmp_path: Path) -> None:
    """An import of an upper layer, or of other packages, is none of its business."""
    source = "from ._config import Limits\nimport trio, os.path\nfrom attrs import define"
    assert problems(package(tmp_path, _config="", _run=source)) == []


def test_layers_import_of_the_package_itself(tmp_path: Path) -> None:
    """A file that imports the package has imported everything."""
    found = problems(package(tmp_path, _config="import trioserver"))
    assert found == ["_config.py (layer 0) imports __init__.py (layer 8)"]


def test_layers_circle_in_a_layer(tmp_path: Path) -> None:
    """Within a layer, an order is fine and a circle is not."""
    straight = {"_files": "from ._connection import x", "_connection": "from ._sending import x"}
    assert problems(package(tmp_path, _sending="", **straight)) == []
    found = problems(package(tmp_path, _sending="from ._files import x", **straight))
    assert found == [
        "_connection.py and _sending.py import each other",
        "_files.py and _connection.py import each other",
        "_sending.py and _files.py import each other",
    ]


def test_layers_unknown_file(tmp_path: Path) -> None:
    """A new file has to be given its place."""
    assert problems(package(tmp_path, _new="")) == ["_new.py is in no layer"]


def test_layers_tools_use_public_names(tmp_path: Path) -> None:
    """A tool may use the package as everybody does, and its own neighbours."""
    tool = (
        "import trioserver\nfrom trioserver import TCPServer\nfrom ._b import c\nself._x = self._x"
    )
    folder = package(tmp_path, testing__in____init__="", testing__in___a=tool, testing__in___b="")
    assert problems(folder) == []


def test_layers_tools_use_private_names(tmp_path: Path) -> None:
    """A tool may not look behind the curtain, in any way."""
    for source, complaint in (
        ("from .._run import Run", "imports Run of _run.py"),
        ("from trioserver._run import Run", "imports Run of _run.py"),
        ("import trioserver._run", "imports _run.py of _run.py"),
        ("from trioserver import _secret", "imports _secret of __init__.py"),
        ("import trioserver\ntrioserver._run.Run()", "uses _run"),
        ("server._bound_run()", "uses _bound_run"),
    ):
        folder = package(tmp_path, testing__in___a=source, _run="")
        [found] = problems(folder)
        assert found == f"testing/_a.py, a tool, {complaint}, which is private", source
