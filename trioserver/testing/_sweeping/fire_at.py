"""Something done after a step of one task's own: the small brother of a sweep."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def fire_at(
    steps_of: Coroutine[Any, Any, T], step: int, fire: Callable[[], object]
) -> Awaitable[T]:
    """Await a coroutine, and call ``fire`` after a step of its own.

    To cancel one request at each of its checkpoints, say. What it wraps notices nothing.

    Args:
      steps_of: the coroutine.
      step: after how many of its steps; 0 for never.
      fire: a plain function.

    Returns:
      What the coroutine returns.
    """

    @types.coroutine
    def drive() -> Generator[Any, Any, T]:
        done, resume, value = 0, steps_of.send, None
        while True:
            try:
                trap = resume(value)
            except StopIteration as end:
                result: T = end.value
                return result
            done += 1
            if done == step:
                fire()
            try:
                resume, value = steps_of.send, (yield trap)
            except BaseException as error:  # noqa: BLE001  (handed on to whom it was for)
                resume, value = steps_of.throw, error

    return drive()
