"""The names by which the fields of a server are given, and what was meant by one that is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, cast

import attrs

from .._facts.config import Limits, Timeouts

_POSITIONAL = ("server_address", "RequestHandlerClass")


def arguments_of(cls: type) -> dict[str, attrs.Attribute[Any]]:
    """The fields that can be given when a server is built, by the names of the arguments."""
    return {str(field.alias): field for field in fields_of(cls).values() if field.init}


def by_name(cls: type, arguments: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """All that is given, by name: what is given by its position, too."""
    if "bind_and_activate" in given or len(arguments) > len(_POSITIONAL):
        raise TypeError(
            f"{cls.__name__} takes two positional arguments, server_address and"
            " RequestHandlerClass. There is no bind_and_activate: building a server binds"
            " nothing, `async with server:` does"
        )
    positional = dict(zip(_POSITIONAL, arguments, strict=False))
    if twice := positional.keys() & given.keys():
        raise TypeError(f"{cls.__name__} got {' and '.join(sorted(twice))} twice")
    return positional | given


def check_names(cls: type, given: Iterable[str]) -> None:
    """Refuse what is no field, and the lack of one that is needed."""
    check_known(cls, given)
    needed = [alias for alias, field in arguments_of(cls).items() if field.default is attrs.NOTHING]
    if missing := [alias for alias in needed if alias not in given]:
        how = ", ".join(alias if alias in _POSITIONAL else f"{alias}=..." for alias in needed)
        raise TypeError(
            f"{cls.__name__} needs {' and '.join(missing)}: build it as {cls.__name__}({how})"
        )


def check_known(cls: type, given: Iterable[str]) -> None:
    """Refuse what is no field, with what may have been meant."""
    names = arguments_of(cls)
    if unknown := sorted(name for name in given if name not in names):
        hints = "; ".join(f"{name}{_hint(name, names)}" for name in unknown)
        raise TypeError(f"{cls.__name__} has no field {hints}. It has {', '.join(sorted(names))}")


def _hint(name: str, names: Iterable[str]) -> str:
    for part in (Timeouts, Limits):
        if name in attrs.fields_dict(part):
            whole = part.__name__
            return f" (it is one of {whole}: {whole.lower()}={whole}({name}=...))"
    close = difflib.get_close_matches(name, names, n=2)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def fields_of(cls: type) -> dict[str, attrs.Attribute[Any]]:
    """The fields of a server class, by the names of its attributes."""
    return attrs.fields_dict(cast("type[attrs.AttrsInstance]", cls))
