"""How a worker process is started and ended: by `multiprocessing`, in a thread.

It knows how to find the program's own classes again in another process, which
`subprocess` does not. Never by ``fork``, which copies a running loop and other
people's locks.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import reduction, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import attrs

from ...._facts.cpython import set_exit_status
from ...._sockets.making import socket_pair, spare_the_program
from ..protocol.errors import ForkServerGone, WorkerStartError
from ..protocol.files import new_file
from ..protocol.lifeline import Lifeline
from ..protocol.signals import held_back

# multiprocessing looks after all its children whenever one is started, and is not made
# for two threads that do so at once.
_multiprocessing_lock = threading.Lock()

LONGEST_NEWS = 1.0
"""Seconds that a fork server has to tell how a worker process has ended."""

UNKNOWN = 255
"""The exit status of a process of which it cannot be told, as multiprocessing has it."""


@attrs.define(eq=False)
class Spawned:
    """A worker process that was started, and what connects the server with it.

    Attributes:
      pid: its process id.
      control: the line to it; does not block.
    """

    pid: int
    control: socket.socket
    _process: BaseProcess
    _lifeline: Lifeline
    _itself: int
    _is_over: bool = False

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process has ended."""
        return self._process.sentinel if self._itself == -1 else self._itself

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._is_over or _wait_for(self.sentinel, 0)

    def wait(self) -> None:
        """Wait until the process has ended; blocks."""
        _wait_for(self.sentinel, None)

    def kill(self) -> None:
        """End it, and what its handlers have started in its group; now."""
        if not self.has_ended():  # or its id may be somebody else's by now
            with suppress(OSError):  # it may not lead its group yet
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Take note of the end of the process, which has come, and give everything back.

        Blocks for a moment.

        Returns:
          Its exit status; less than 0: the signal that has ended it; or `UNKNOWN`.
        """
        self._is_over = True
        with _multiprocessing_lock:
            is_known = self._process.exitcode is not None
        if not is_known:
            # Of those that a fork server has forked it tells, unless somebody has stopped it.
            _wait_for(self._process.sentinel, LONGEST_NEWS)
        with _multiprocessing_lock:
            if self._process.exitcode is None:
                # Or somebody else has reaped it, or the system, where SIGCHLD is ignored.
                set_exit_status(self._process, UNKNOWN)
            self._process.join()
            status = self._process.exitcode
            self._process.close()
        self.give_back()
        return UNKNOWN if status is None else status

    def give_back(self) -> None:
        """Close everything but the process. Twice is once."""
        self.control.close()
        self._lifeline.cut()
        if self._itself != -1:
            os.close(self._itself)
            self._itself = -1


@attrs.define(eq=False)
class Spawn:
    """A start that can be given up, whatever the system makes of it.

    A fork server may take long, or for ever: it imports what the program wants.
    """

    _start: Callable[[], Spawned]
    _spawned: Spawned | None = None
    _is_given_up: bool = False
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def run(self) -> Spawned | None:
        """Start a worker, in a thread; and end it if nobody wants it any more."""
        spawned = self._start()
        with self._lock:
            if not self._is_given_up:
                self._spawned = spawned
                return spawned
        spawned.kill()
        spawned.wait()
        spawned.reap()
        return None

    def give_up(self) -> Spawned | None:
        """Nobody waits any more; the worker, if it is there already."""
        with self._lock:
            self._is_given_up = True
            return self._spawned


@attrs.frozen
class Recipe:
    """What a worker process is to do, and what it gets.

    Args:
      target: a function at the top of a module, which is its whole life. It is called with
        its line, the descriptor of its lifeline, that of a file with the setup, the process
        id of this one, and what the other descriptors are there.
      setup: what it is told when it starts, packed.
      descriptors: others that it gets; the caller's still.
      is_daemonic: whether it must not have worker processes itself.
      preload: names of modules that a fork server imports, if it has not started yet.
    """

    target: Callable[..., object]
    setup: bytes
    descriptors: Sequence[int] = ()
    is_daemonic: bool = True
    preload: Sequence[str] = ()


def spawn(method: str, recipe: Recipe, made: Callable[..., Spawned] | None = None) -> Spawned:
    """Start a worker; blocks for a moment, or for as long as a fork server takes to start.

    Args:
      method: ``"forkserver"`` or ``"spawn"``.
      recipe: what it is to do.
      made: makes what is returned; None: `Spawned` does.

    Raises:
      OSError: the system refuses it.
      ForkServerGone: the fork server has ended.
      WorkerStartError: this program is none that a worker can import.
    """
    if getattr(sys.modules["__main__"], "__file__", None) == "<stdin>":
        raise WorkerStartError(
            "worker processes import the program that has started them, and this one comes from"
            " stdin: put it into a file"
        )
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["__main__", *recipe.preload])
    with ExitStack() as unless_started, ExitStack() as theirs:
        ours, control = socket_pair()
        unless_started.callback(ours.close)
        theirs.callback(control.close)
        for end in (ours, control):
            spare_the_program(end)
        lifeline = Lifeline()
        unless_started.callback(lifeline.cut)
        theirs.callback(lifeline.handed_over)
        theirs.callback(os.close, told := _file_with(recipe.setup))
        arguments = (control, *_as_arguments((lifeline.worker_end, told)), os.getpid())
        process = context.Process(  # type: ignore[attr-defined]
            target=recipe.target,
            args=(*arguments, *_as_arguments(recipe.descriptors)),
            daemon=recipe.is_daemonic,
        )
        ours.setblocking(False)
        try:
            _start(process)
        except (EOFError, ConnectionError) as error:
            if method != "forkserver":
                raise
            raise ForkServerGone("the fork server has ended") from error
        unless_started.pop_all()
        make = Spawned if made is None else made
        return make(process.pid, ours, process, lifeline, _itself(process))


def _file_with(setup: bytes) -> int:
    """The descriptor of a file with the setup.

    Not among the arguments: if that is more than a pipe holds, the start would wait until
    the worker reads it.
    """
    number = new_file()
    with open(number, "wb", closefd=False) as file:
        file.write(setup)
    return number


def _start(process: BaseProcess) -> None:
    """Start it, deaf to signals until it says itself what it does at them.

    Of 12 that got a Ctrl-C while they started, 12 died, with tracebacks; so, none did.
    """
    with _multiprocessing_lock:
        _reserve_descriptors()
        with held_back():
            resource_tracker.ensure_running()
        with held_back():  # again: that lets go of some when it has had to start its helper
            process.start()


def _reserve_descriptors() -> None:
    """See that there are as many as a start needs.

    `multiprocessing` loses those that it has when it does not get the next one.

    Raises:
      OSError: there are not.
    """
    with ExitStack() as spare:
        for _ in range(_MOST_DESCRIPTORS):
            spare.callback(os.close, os.open(os.devnull, os.O_RDONLY))


_MOST_DESCRIPTORS = 10
"""The fork server's line, two pipes, a duplicate; its own start took five more before that."""


def _wait_for(number: int, seconds: float | None) -> bool:
    """Whether a descriptor is readable, after so many seconds at most."""
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def _itself(process: BaseProcess) -> int:
    """A descriptor of the process itself, if the system has that; else -1.

    What `multiprocessing` waits for is a pipe. Of a spawned process it stays open in
    whatever that forks, and of others it ends with the fork server, though they go on.
    """
    if hasattr(os, "pidfd_open") and process.pid is not None:
        with suppress(OSError):
            return os.pidfd_open(process.pid)
    return -1


def _as_arguments(numbers: Iterable[int]) -> Iterable[_Descriptor]:
    return map(_Descriptor, numbers)


@attrs.frozen
class _Descriptor:
    """A descriptor, as an argument of a process; there it is a number."""

    number: int

    def __reduce__(self) -> Any:
        return _there, (reduction.DupFd(self.number),)


def _there(duplicate: Any) -> int:
    number: int = duplicate.detach()
    os.set_inheritable(number, False)
    return number
