"""An attribute that is made when somebody asks for it, once.

`functools.cached_property` takes a lock each time on Python 3.11, which costs as much as what is
made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class made_when_needed(Generic[T]):  # noqa: N801  (used as `property` is)
    """Make a method without arguments an attribute, which it makes at the first look."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> made_when_needed[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> made_when_needed[T] | T:
        if instance is None:
            return self
        made = vars(instance)[self._name] = self._make(instance)
        return made
