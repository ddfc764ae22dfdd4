"""A Trio run in a thread of its own, which plain threads call, and which cannot hang them.

The rules this file keeps:

* Whoever waits for the thread waits for so many real seconds at most, and is then told
  where its tasks were; or its stack, if not even Trio's loop goes on.
* What the run raises is raised to whoever waits for it, and at its end in any case; but
  never instead of the failure of the block around it, which it is added to as a note.
* The thread has ended when the block is left. One that cannot be ended is a daemon, is
  told to end as soon as it can, and is said to be left.
"""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from sys import _current_frames  # a documented one, for all its underscore
from types import TracebackType
from typing import Any, Generic, TypeVar, TypeVarTuple

import trio

from ...monitoring import TaskTree, task_tree
from .._looking.guard import Hung

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class BlockFailed(Exception):
    """Stands for the failure of the block in the calling thread, and collects its notes."""


class TrioThread(Generic[T]):
    """Has an async block in a thread of its own, in a run of its own, for a plain block.

    Args:
      block: the async block; what it gives is what the plain block gives.
      name: the thread's.
      patience: real seconds that the beginning, and that the end, may take.
    """

    def __init__(
        self, block: AbstractAsyncContextManager[T, Any], *, name: str, patience: float
    ) -> None:
        self.patience = patience
        self._block = block
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._everything = trio.CancelScope()
        self._calls: trio.Nursery
        self._over = trio.Event()
        self._is_left = False
        self._failed = False
        self._token: Future[trio.lowlevel.TrioToken] = Future()
        self._given: Future[T] = Future()
        self._ended: Future[None] = Future()

    # In the thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: BLE001  (whoever waits for it raises it)
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _main(self) -> None:
        self._token.set_result(trio.lowlevel.current_trio_token())
        with self._everything:
            async with self._block as given:
                await self._answer_calls(given)
                if self._failed:
                    raise BlockFailed("the block has failed")

    async def _answer_calls(self, given: T) -> None:
        async with trio.open_nursery() as self._calls:
            self._given.set_result(given)
            await self._over.wait()
            self._calls.cancel_scope.cancel(reason="the block is left")

    # From outside --------------------------------------------------------------------

    def __enter__(self) -> T:
        self._thread.start()
        self._wait_or_end("the start", self._given, self._ended)
        if not self._given.done():
            self._thread.join()
            self._ended.result()
        return self._given.result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._is_left = True
        error = self._end(failed=failure is not None)
        if failure is None:
            if error is not None:
                raise error
        elif error is not None and error is not failure:
            _add_notes(failure, error)

    def call(
        self,
        what: str,
        function: Callable[[*Ts], Awaitable[R]],
        *arguments: *Ts,
        seconds: float | None = None,
    ) -> R:
        """Call an async function in the thread, and wait for it.

        Args:
          what: this is, for the messages.
          function: to call.
          arguments: for it.
          seconds: real ones that it may take; None is the patience. What takes longer,
            or is interrupted here, is cancelled there.

        Raises:
          Hung: it took longer.
          RuntimeError: the block is left; or this is the very thread.
          BaseException: what the run was ended by; or what the function has raised.
        """
        seconds = self.patience if seconds is None else seconds
        self._refuse(what)
        answer: Future[R] = Future()
        scope = trio.CancelScope()

        async def perform() -> None:
            with scope:
                try:
                    answer.set_result(await function(*arguments))
                except Exception as error:  # noqa: BLE001  (the caller raises it)
                    answer.set_exception(error)

        def begin() -> None:
            # Closed to calls, it is at its end, for which the caller waits, too.
            with suppress(RuntimeError):
                self._calls.start_soon(perform, name=what)

        self._soon(begin)
        try:
            if not _one_is_done([answer, self._ended], seconds):
                raise self._hung(what, seconds)
        finally:
            self._soon(scope.cancel)
        if not answer.done():
            self._refuse(what)
            self._ended.result()
        return answer.result(timeout=0)

    def call_now(self, what: str, function: Callable[[*Ts], R], *arguments: *Ts) -> R:
        """Call a plain function in the thread, and wait for it; raises as `call` does."""

        async def perform() -> R:
            return function(*arguments)

        return self.call(what, perform)

    @contextmanager
    def block(
        self, what: str, block: AbstractAsyncContextManager[R, Any], *, seconds: float | None = None
    ) -> Iterator[R]:
        """An async block in the thread around a plain one; its ends are calls, as above.

        What the block raises is what leaves it; of a run that has failed, too, the end tells.
        """
        given = self.call(what, block.__aenter__, seconds=seconds)
        try:
            yield given
        except BaseException as failure:
            how = type(failure), failure, failure.__traceback__
            with suppress(Exception):
                self.call(what, block.__aexit__, *how, seconds=seconds)
            raise
        self.call(what, block.__aexit__, None, None, None, seconds=seconds)

    def raise_if_ended(self, what: str) -> None:
        """Raise what a call would."""
        self._refuse(what)
        if self._ended.done():
            self._ended.result()

    # The end ---------------------------------------------------------------------------

    def _end(self, *, failed: bool) -> BaseException | None:
        """End the run; what it has raised, or that it hung."""
        self._soon(self._leave, failed)
        try:
            self._wait_or_end("the end", self._ended)
        except Hung as hung:
            return hung
        self._thread.join()
        return self._ended.exception()

    def _leave(self, failed: bool) -> None:  # noqa: FBT001  (run_sync_soon has no keywords)
        self._failed = failed
        self._over.set()

    def _wait_or_end(self, what: str, *events: Future[Any]) -> None:
        """Wait for one of these; end the run if that takes too long, or is interrupted."""
        try:
            if not _one_is_done(events, self.patience):
                raise self._hung(what, self.patience)
        except BaseException as error:
            self._soon(partial(self._everything.cancel, reason=f"{what} was given up"))
            if _one_is_done([self._ended], self.patience):
                self._thread.join()
            else:
                error.add_note(f"{self._thread.name!r}, a thread, cannot be ended: it is left.")
            raise

    # Telling ---------------------------------------------------------------------------

    def _refuse(self, what: str) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(f"{what} would wait for itself: this is the server's own thread")
        if self._is_left:
            raise RuntimeError(f"{what} comes too late: the block is left, and the server ended")

    def _soon(self, function: Callable[[*Ts], object], *arguments: *Ts) -> None:
        """Have it called in the thread, if it still runs."""
        _one_is_done([self._token, self._ended], math.inf)  # at once: nobody's code comes before
        if not self._token.done():
            return
        with suppress(trio.RunFinishedError):
            self._token.result().run_sync_soon(function, *arguments)

    def _hung(self, what: str, seconds: float) -> Hung:
        tree: Future[TaskTree] = Future()
        self._soon(lambda: tree.set_result(task_tree()))
        took = f"{what} took more than {seconds:g} real seconds"
        _one_is_done([tree, self._ended], self.patience)
        frame = _current_frames().get(self._thread.ident or 0)
        if tree.done():
            return Hung(f"{took}; the tasks were here:\n{tree.result()}")
        if self._ended.done() or frame is None:
            return Hung(f"{took}, and then everything ended")
        stack = "".join(traceback.format_stack(frame))
        return Hung(f"{took}; Trio's loop is blocked here:\n{stack}")


def _add_notes(failure: BaseException, error: BaseException) -> None:
    """Add to the failure of a block what has come of it in the thread."""
    if isinstance(error, BlockFailed):
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
    elif isinstance(error, BaseExceptionGroup) and error.subgroup(BlockFailed):
        for one in error.exceptions:
            _add_notes(failure, one)
    else:
        told = "".join(traceback.format_exception(error))
        failure.add_note(f"The server has failed, too:\n{told}")


def _one_is_done(events: Iterable[Future[Any]], seconds: float) -> bool:
    """Wait for so many real seconds at most."""
    longest = min(seconds, threading.TIMEOUT_MAX)
    return bool(wait(events, longest, return_when=FIRST_COMPLETED).done)
