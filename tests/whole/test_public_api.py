"""What the package shows to the world: names, docstrings, colours, and nothing more."""

import inspect
import pickle
import subprocess
import sys
import tomllib
import typing
from importlib import resources
from pathlib import Path
from types import ModuleType

import attrs
import pytest

import trioserver
import trioserver.monitoring
import trioserver.testing

MODULES = (trioserver, trioserver.monitoring, trioserver.testing)
EACH = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
SETTINGS = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text("utf-8"))

# Looking ------------------------------------------------------------------------


def public(thing):
    """The public names that the library gives to a module or class, as found on it."""
    if isinstance(thing, ModuleType):
        return [(name, getattr(thing, name)) for name in thing.__all__]
    found = {}
    for kind in inspect.getmro(thing):
        if kind.__module__.startswith("trioserver"):
            for name, value in vars(kind).items():
                found.setdefault(name, value)
    return [(name, value) for name, value in found.items() if name[0] != "_"]


def python(*arguments):
    """Run a fresh interpreter, with the installed package, in which warnings are errors."""
    command = [sys.executable, "-P", "-W", "error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


# Names ----------------------------------------------------------------------------


@EACH
def test_all_is_sorted_and_complete(module):
    """``__all__`` has every name without an underscore but submodules, in order, and no other."""
    assert module.__all__ == sorted(set(module.__all__))
    names = {name for name, value in vars(module).items() if not inspect.ismodule(value)}
    assert {name for name in names if name[0] != "_"} == set(module.__all__)


@EACH
def test_names_say_where_they_are_found(module):
    """In tracebacks, reprs and pickles, a public name is that of its public package."""
    homes = {name: value.__module__ for name, value in public(module)}
    assert homes == dict.fromkeys(module.__all__, module.__name__)
    for name, value in public(module):
        assert pickle.loads(pickle.dumps(value)) is value, name  # noqa: S301


@EACH
def test_annotations_can_be_resolved(module):
    """What reads the types of fields finds them, though the names are not in the package."""
    kinds = [value for _, value in public(module) if inspect.isclass(value)]
    assert all(isinstance(typing.get_type_hints(kind), dict) for kind in kinds)
    fields = [field for kind in kinds if attrs.has(kind) for field in attrs.fields(kind)]
    assert [field for field in fields if isinstance(field.type, str)] == []


def test_all_has_every_class_that_one_meets():
    """What a public name derives from, as far as it is the library's, is public or unnamed."""
    private_bases = {
        base.__name__
        for _, kind in public(trioserver)
        if inspect.isclass(kind)
        for base in inspect.getmro(kind)
        if base.__module__.startswith("trioserver") and base.__name__ not in trioserver.__all__
    }
    unnamed = {"Configured", "DefaultHooks", "File", "IPServer", "Lifecycle", "OfClient"}
    assert private_bases <= unnamed | {"ServedStream", "UnixServer", "_Pair"}


@EACH
def test_names_have_docstrings(module):
    """The package, and every public name and member, says what it is, in words of its own."""
    assert inspect.getdoc(module)
    for name, value in public(module):
        assert value.__doc__, name
        assert not value.__doc__.startswith(f"{name}("), name  # what decorators make up
        for member, it in public(value) if module is trioserver and inspect.isclass(value) else ():
            if inspect.isroutine(it) or isinstance(it, property):
                assert inspect.getdoc(getattr(value, member)), (name, member)


# Colours ------------------------------------------------------------------------------

WAITS = {
    trioserver.BaseServer: (
        "serve_forever handle_request wait_closed server_close server_bind server_activate"
        " verify_request process_request finish_request shutdown_request close_request"
        " handle_error handle_timeout service_actions __aenter__ __aexit__"
    ),
    trioserver.BaseRequestHandler: "setup handle finish",
    trioserver.Connection: (
        "receive_some recv send_all sendall send_eof aclose wait_send_all_might_not_block"
    ),
    trioserver.RequestReader: (
        "read read1 readinto readinto1 readline readlines readuntil readexactly peek more __anext__"
    ),
    trioserver.RequestWriter: "write writelines flush",
}
DECIDES_AT_ONCE = {
    trioserver.BaseServer: "shutdown cancel_request fileno statistics snapshot evolve get_request",
    trioserver.BaseRequestHandler: "idle",
    trioserver.Connection: "idle reset fileno",
    trioserver.RequestReader: "at_eof readable writable fileno __aiter__",
    trioserver.RequestWriter: "readable writable fileno",
}
IS = {
    trioserver.BaseServer: "server_address socket sockets draining requests",
    trioserver.BaseRequestHandler: "cancel_scope info",
    trioserver.Connection: "idle_timeout write_timeout peer_credentials",
    trioserver.RequestReader: "closed",
    trioserver.RequestWriter: "closed",
}


@pytest.mark.parametrize("kind", WAITS)
def test_colours(kind):
    """What may wait is async, what decides at once is never a checkpoint; facts are properties."""
    for name in WAITS[kind].split():
        assert inspect.iscoroutinefunction(getattr(kind, name)), name
    for name in DECIDES_AT_ONCE[kind].split():
        assert inspect.isfunction(getattr(kind, name)), name
        assert not inspect.iscoroutinefunction(getattr(kind, name)), name
    for name in IS[kind].split():
        assert isinstance(inspect.getattr_static(kind, name), property), name


def test_class_tree_is_the_classic_one():
    """`UnixStreamServer` is a `TCPServer` is a `BaseServer`; forking is the old name of process."""
    assert issubclass(trioserver.UnixStreamServer, trioserver.TCPServer)
    assert issubclass(trioserver.TCPServer, trioserver.BaseServer)
    assert issubclass(trioserver.StreamRequestHandler, trioserver.BaseRequestHandler)
    for kind in ("MixIn", "TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer"):
        assert getattr(trioserver, f"Forking{kind}") is getattr(trioserver, f"Process{kind}")


def test_errors_are_what_people_catch():
    """Each error of a connection is caught as what it is elsewhere, too."""
    for error, known in (
        *((trioserver.IdleTimeout, TimeoutError), (trioserver.WriteTimeout, TimeoutError)),
        *((trioserver.PeerGone, ConnectionError), (trioserver.IncompleteRead, EOFError)),
        (trioserver.LimitExceeded, ValueError),
    ):
        assert issubclass(error, known)
    of_workers = {trioserver.HandlerFailed, trioserver.WorkerCrashed, trioserver.WorkerStartError}
    for name in trioserver.__all__:
        error = getattr(trioserver, name)
        if inspect.isclass(error) and issubclass(error, Exception):
            assert issubclass(error, trioserver.RequestEnded) == (error not in of_workers)


# Importing --------------------------------------------------------------------------------

NEW_MODULES = """
import sys
import attrs, trio
before = set(sys.modules)
import {module}
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}))
"""


@EACH
def test_import_needs_trio_and_attrs_alone(module):
    """Nothing is imported at run time but the standard library, Trio, attrs and ourselves."""
    found = set(python("-c", NEW_MODULES.format(module=module.__name__)).stdout.split())
    assert found - sys.stdlib_module_names == {"trioserver"}


def test_import_leaves_heavy_modules_alone():
    """The modules of other kinds of server are not paid for by everybody."""
    found = set(python("-c", NEW_MODULES.format(module="trioserver")).stdout.split())
    assert not found & {"asyncio", "multiprocessing", "http", "unittest", "argparse"}


def test_import_does_nothing():
    """Importing says nothing, and touches neither logging, signals, hooks nor threads."""
    code = """
import atexit, logging, signal, sys, threading, warnings, trio
def state():
    signals = [signal.getsignal(number) for number in signal.valid_signals()]
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook, logging.root.handlers[:]
    return signals, hooks, threading.active_count(), atexit._ncallbacks(), warnings.filters[:]
before = state()
import trioserver
assert state() == before
import trioserver.testing
assert not logging.root.handlers
"""
    finished = python("-X", "dev", "-c", code)
    assert (finished.stdout, finished.stderr) == ("", "")
    python("-OO", "-c", "import trioserver, trioserver.testing")  # without docstrings and asserts


# What is shipped -----------------------------------------------------------------------------


def test_what_is_shipped():
    """Type checkers use the package's own types; Trio and attrs are all that it needs."""
    assert resources.files(trioserver).joinpath("py.typed").is_file()
    assert "py.typed" in SETTINGS["tool"]["setuptools"]["package-data"]["trioserver"]
    assert sorted(SETTINGS["project"]["dependencies"]) == ["attrs>=25.4", "trio>=0.31"]
