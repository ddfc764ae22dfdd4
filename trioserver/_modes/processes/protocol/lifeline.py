"""How a worker comes to end with its server, whatever either of them does.

Each worker has the reading end of a pipe, and its server has the writing end. When the
server is gone, for whatever reason, the pipe ends. Measured, in a worker that sleeps,
computes, or keeps the interpreter in a C function:

* On Linux the kernel then sends SIGKILL by itself (``O_ASYNC``): gone after 16 ms.
* Elsewhere a thread waits for it, which needs the interpreter for a moment.
* ``PR_SET_PDEATHSIG`` is about the *thread* that started a process: it killed healthy
  workers when Trio had no more use for that thread.

A ``fork`` elsewhere in the program copies the writing end, which then would not end with
the server. So copies are closed after each fork, and the thread waits for the server's
process itself, too, where the system can.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import threading
import weakref
from contextlib import suppress
from typing import NoReturn


class Lifeline:
    """The server's end of one worker's pipe, and the worker's until it is handed over."""

    def __init__(self) -> None:
        self.worker_end, self._ours = os.pipe()
        _all.add(self)

    def handed_over(self) -> None:
        """Close the worker's end here: the worker has it. Twice is once."""
        if self.worker_end != -1:
            os.close(self.worker_end)
            self.worker_end = -1

    def cut(self) -> None:
        """Close both ends. Twice is once."""
        for number in (self._ours, self.worker_end):
            if number != -1:
                with suppress(OSError):
                    os.close(number)
        self._ours = self.worker_end = -1


_all: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _after_fork() -> None:
    for line in list(_all):
        line.cut()


os.register_at_fork(after_in_child=_after_fork)


def end_with(parent: int, number: int) -> None:
    """Have this process, and the group that it leads, end when its server does.

    Args:
      parent: the process id of the server.
      number: the worker's end of its `Lifeline`.
    """
    if sys.platform == "linux":
        whom = -os.getpgrp() if _leads_group() else os.getpid()
        fcntl.fcntl(number, fcntl.F_SETOWN, whom)
        fcntl.fcntl(number, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_ASYNC)
    watched = select.poll()
    watched.register(number, select.POLLIN)
    if watched.poll(0):
        _end()  # it was over before there was a signal for it
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):
            watched.register(os.pidfd_open(parent), select.POLLIN)
    if watched.poll(0):
        _end()
    threading.Thread(target=_watch, args=(watched,), name="lifeline", daemon=True).start()


def _watch(watched: select.poll) -> None:
    watched.poll()
    _end()


def _leads_group() -> bool:
    return os.getpgrp() == os.getpid()


def _end() -> NoReturn:
    if _leads_group():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
