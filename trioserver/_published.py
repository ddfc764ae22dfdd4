"""Public names say where people find them, not in which file they are defined."""

from __future__ import annotations

import importlib
import sys
import typing
from collections.abc import Iterable, Mapping

import attrs


def publish(package: str, namespace: Mapping[str, typing.Any], names: Iterable[str]) -> None:
    """Have tracebacks, reprs, pickles and the docs call public things ``package.name``.

    Trio does so, too (``trio._util.fixup_module_metadata``): a file can then move
    without a change for anybody who pickles, logs or reads a traceback.

    Args:
      package: the public package, such as ``"trioserver"``.
      namespace: its names, and what they mean.
      names: those of them that are public. What another package has published
        already keeps that package's name.
    """
    mine = [thing for name in names if is_defined_below(package, thing := namespace[name])]
    for thing in mine:
        if isinstance(thing, type):
            resolve_annotations(thing)
    for thing in mine:
        thing.__module__ = package


def load(
    package: str, namespace: dict[str, typing.Any], later: Mapping[str, Iterable[str]], name: str
) -> typing.Any:
    """What a public name means whose file is loaded only now; the ``__getattr__`` of a package.

    Args:
      package: the public package.
      namespace: its names, to which all of the loaded files are added.
      later: names by the files, below the package, that define them.
      name: the one that was asked for.

    Raises:
      AttributeError: there is no such name.
    """
    file = next((file for file, names in later.items() if name in names), None)
    if file is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    importlib.import_module(f"{package}.{file}")
    for loaded, names in later.items():
        module = sys.modules.get(f"{package}.{loaded}")
        is_there = all(hasattr(module, one) for one in names)  # another thread may load it now
        if is_there and not set(names) <= set(namespace):
            namespace.update({one: getattr(module, one) for one in names})
            publish(package, namespace, names)
    return namespace[name]


def load_all(package: str) -> None:
    """Load now what a public package loads when it is asked for: before processes are forked."""
    module = importlib.import_module(package)
    for name in module.__all__:
        getattr(module, name)


def is_defined_below(package: str, thing: object) -> bool:
    """Whether a private file of the package defines it."""
    return getattr(thing, "__module__", "").startswith(f"{package}._")


def resolve_annotations(kind: type) -> None:
    """Turn a class's annotations from text into types, while its file's names are in reach.

    `typing.get_type_hints` looks for names in the module that a class says it
    is of, which has few of them; so do the libraries that serialise attrs classes.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    own = vars(kind).get("__annotations__", {})
    kind.__annotations__ = {name: hints[name] for name in own}
    if attrs.has(kind):
        attrs.resolve_types(kind)
