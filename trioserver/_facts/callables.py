"""What a callable is: async or plain, a generator, and for which arguments."""

from __future__ import annotations

import functools
import inspect
from typing import Any


def is_async_callable(value: object) -> bool:
    """Whether calling ``value`` gives a coroutine, as far as can be told without calling it.

    A decorator that hides an ``async def`` behind a plain wrapper is seen
    through where it used `functools.wraps`.
    """
    while isinstance(value, functools.partial):
        value = value.func
    if not callable(value):
        return False
    if not inspect.isroutine(value):
        value = type(value).__call__  # an object that is called like a function
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(inspect.unwrap(value))


def is_plain_function(value: object) -> bool:
    """Whether it is a function, or a method, and calling it does what it does, at once."""
    while isinstance(value, functools.partial):
        value = value.func
    return inspect.isroutine(value) and not is_async_callable(value) and not has_yield(value)


def close_unawaited(value: object) -> None:
    """Close a coroutine that nobody is going to await, so that nobody is warned of that, too."""
    if inspect.iscoroutine(value):
        value.close()


def has_yield(value: object) -> bool:
    """Whether calling ``value`` runs nothing of it, because there is a ``yield`` in it."""
    return inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value)


def parameters_if_not_for(value: Any, *arguments: str) -> str | None:
    """The parameters of ``value``, if it cannot be called with that many arguments; else None.

    None, too, where that cannot be told. A decorator may take others than what it decorates.
    """
    try:
        signature = inspect.signature(value, follow_wrapped=False)
    except Exception:  # noqa: BLE001  (builtins; names in annotations that are nowhere)
        return None
    try:
        signature.bind(*arguments)
    except TypeError:
        names = signature.replace(
            parameters=[
                parameter.replace(annotation=inspect.Parameter.empty)
                for parameter in signature.parameters.values()
            ],
            return_annotation=inspect.Signature.empty,
        )
        return str(names)
    return None


def parameters_of_method_if_not_for(cls: type, name: str, *arguments: str) -> str | None:
    """The parameters of a method, if it is a plain function that cannot be called so."""
    method = inspect.getattr_static(cls, name, None)
    if not inspect.isfunction(method):
        return None
    return parameters_if_not_for(method, "self", *arguments)


def name_of(handler: object) -> str:
    """What a handler is called, for messages."""
    return getattr(handler, "__name__", repr(handler))
