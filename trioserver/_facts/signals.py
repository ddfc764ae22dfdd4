"""Signal handlers that are for one process alone: a child that it forks has the old ones back.

A child that a server forks must not keep the server's handlers: nobody would look at what
they note, and ``terminate()`` would end nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], object]
Disposition: TypeAlias = Handler | int | None

_replaced: dict[int, tuple[Handler, Disposition]] = {}
"""What was installed in this process, and what children get back."""


def dispositions(numbers: Iterable[int]) -> dict[int, Disposition]:
    """What happens now at each of these signals."""
    return {number: signal.getsignal(number) for number in numbers}


def install(handler: Handler, before: Mapping[int, Disposition]) -> None:
    """Have ``handler`` called for signals, in this process and in no child that it forks.

    Args:
      handler: what to call.
      before: the signals, and what is to happen at each in children.
    """
    for number, disposition in before.items():
        signal.signal(number, handler)
        _replaced[number] = handler, disposition


@contextmanager
def installed(handler: Handler, before: Mapping[int, Disposition]) -> Iterator[None]:
    """Install ``handler`` for the block; at its end, restore what was installed before."""
    outer = dispositions(before)
    replaced = {number: _replaced[number] for number in before if number in _replaced}
    install(handler, before)
    try:
        yield
    finally:
        for number, disposition in outer.items():
            _put_back(number, disposition)
            del _replaced[number]
        _replaced.update(replaced)


def _put_back(number: int, disposition: Disposition) -> None:
    # None: it was not installed from Python, and cannot be put back.
    signal.signal(number, signal.SIG_DFL if disposition is None else disposition)


# Signals are blocked around a fork: one that reached the child before it has its own
# handlers would be lost, and the starter of a process may want to end it at once.


def _before_fork() -> None:
    if _replaced:
        _thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _replaced)


def _after_fork_in_parent() -> None:
    mask, _thread.mask = _thread.mask, None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    """This thread is the only one here, and so the main one."""
    if _replaced:
        for number, (handler, disposition) in _replaced.items():
            if signal.getsignal(number) is handler:  # else somebody's own has come since
                _put_back(number, disposition)
        _replaced.clear()
        signal.set_wakeup_fd(-1)  # it is the parent's loop that would be woken
    _after_fork_in_parent()


class _Thread(threading.local):
    mask: set[int | signal.Signals] | None = None


_thread = _Thread()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
