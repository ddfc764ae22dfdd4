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


@EACH
def test_names(module):
    """``__all__`` has every name without an underscore but submodules, in order, and no other.

    In tracebacks, reprs and pickles, such a name is that of its public package; and what reads
    the types of fields finds them, though the names are not in the package.
    """
    assert module.__all__ == sorted(set(module.__all__))
    assert set(dir(module)) >= set(module.__all__)
    everything = public(module)  # of which some is loaded only now
    names = {name for name, value in vars(module).items() if not inspect.ismodule(value)}
    assert {name for name in names if name[0] != "_"} == set(module.__all__)
    for name, value in everything:
        if name.isupper():
            continue  # a dictionary, say, which knows no name
        assert value.__module__ == module.__name__, name
        assert pickle.loads(pickle.dumps(value)) is value, name  # noqa: S301
        if inspect.isclass(value):
            assert isinstance(typing.get_type_hints(value), dict)
            fields = attrs.fields(value) if attrs.has(value) else ()
            assert [field for field in fields if isinstance(field.type, str)] == []


LATER = [name for names in trioserver._LATER.values() for name in names]


@pytest.mark.parametrize("name", ["Limits", *LATER])
def test_is_loaded_when_it_is_asked_for(name):
    """The import loads only what is told; the first look at one more name loads its files."""
    seen = python(
        "-c",
        "import sys, trioserver\n"
        "rooms = {file.split('.')[1] for file in sys.modules if file.startswith('trioserver.')}\n"
        "print(*sorted(rooms))\n"
        f"print(trioserver.{name}.__module__)",
    )
    assert seen.stdout == "_facts _published\ntrioserver\n"


def test_fork_server_has_all_of_it():
    """What it has, its workers need not load, each for itself."""
    seen = python(
        "-c",
        "import trioserver._modes.processes.worker.preloaded, trioserver\n"
        "print(sorted({*trioserver.__all__} - {*vars(trioserver)}))",
    )
    assert seen.stdout == "[]\n"


def test_name_that_there_is_not():
    """A wrong name is an `AttributeError`, as of any module."""
    with pytest.raises(AttributeError, match="module 'trioserver' has no attribute 'TcpServer'"):
        _ = trioserver.TcpServer


def test_all_has_every_class_that_one_meets():
    """What a public name derives from, as far as it is the library's, is public or unnamed."""
    kinds = [kind for _, kind in public(trioserver) if inspect.isclass(kind)]
    bases = {base for kind in kinds for base in kind.mro()}
    ours = {base.__name__ for base in bases if base.__module__.startswith("trioserver")}
    unnamed = {"Configured", "DefaultHooks", "File", "IPServer", "Lifecycle", "Listening"}
    assert ours - {*trioserver.__all__} <= unnamed | {
        "Fate",
        "OfClient",
        "ServedStream",
        "StreamArrival",
        "UnixServer",
        "_Pair",
    }


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
        "read read1 readinto readinto1 readline readlines readuntil readexactly peek more"
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
    mro = trioserver.UnixStreamServer.mro()
    assert mro.index(trioserver.TCPServer) < mro.index(trioserver.BaseServer)
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
    """Besides there is only the standard library; other kinds of server are not paid for."""
    found = set(python("-c", NEW_MODULES.format(module=module.__name__)).stdout.split())
    assert found - sys.stdlib_module_names == {"trioserver"}
    heavy = {"asyncio", "multiprocessing", "http", "unittest", "argparse"}
    assert module is not trioserver or not found & heavy


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


def test_what_is_shipped():
    """Type checkers use the package's own types; Trio and attrs are all that it needs."""
    assert resources.files(trioserver).joinpath("py.typed").is_file()
    assert "py.typed" in SETTINGS["tool"]["setuptools"]["package-data"]["trioserver"]
    assert sorted(SETTINGS["project"]["dependencies"]) == ["attrs>=25.4", "trio>=0.31"]
