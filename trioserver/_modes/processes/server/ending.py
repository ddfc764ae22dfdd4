"""How a worker process is heard to its end, and ended: within bounds, whatever it does."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from ...._facts.observers import error_log, log_safely
from ..protocol.frames import FrameError, Message
from .line import Line

if TYPE_CHECKING:  # it brings multiprocessing
    from .spawn import Spawned

LONGEST_KILL = 5.0
"""Seconds that the system has to end a process that was killed, and may have in hand."""

MOST_LAST_WORDS = 64
"""Portions that are heard of a worker that has ended. The line holds four; whoever has it still,
and goes on talking, is not the worker."""

SOON = 1.0
"""Seconds for what commonly takes none: the end of a worker that has hung up, say."""


async def hear_all(
    line: Line, sentinel: int, hear: Callable[[Message, bytes], object], *, who: object
) -> bool:
    """Hear what a worker says until it hangs up, or has ended.

    Args:
      line: to it.
      sentinel: a descriptor that becomes readable when it has ended.
      hear: called with each message; it raises `FrameError` if that does not make sense.
      who: the worker, for the log.

    Returns:
      Whether all that it has said makes sense. If not, that is logged, and it is to be killed.

    Cancelled, nothing is lost of what it has said: it can be heard further.
    """
    makes_sense = True

    async def wait_for_end(scope: trio.CancelScope) -> None:
        # A process that it has forked may keep the line open.
        await trio.lowlevel.wait_readable(sentinel)
        scope.cancel(reason="the worker has ended")

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_end, nursery.cancel_scope)
            while data := await line.receive():
                for message in line.frames.feed(data):
                    hear(*message)
            nursery.cancel_scope.cancel(reason="the worker has hung up")
        # It has ended; what it has said before counts.
        for _ in range(MOST_LAST_WORDS):
            if not (data := line.receive_now()):
                break
            for message in line.frames.feed(data):
                hear(*message)
    except* FrameError as group:
        told = "%s does not keep to the protocol, and is killed: %s"
        log_safely(error_log, logging.ERROR, told, who, group.exceptions[0])
        makes_sense = False
    return makes_sense


async def end_process(
    spawned: Spawned, line: Line, seconds: float, *, who: object, has_ended: Callable[[], object]
) -> int:
    """End a worker process, one way or the other, and give everything back that it had.

    Args:
      spawned: the process.
      line: to it; nothing more is said.
      seconds: how long it may take by itself; then it is killed, and if that does not end it
        either, it is left behind.
      who: the worker, for the log.
      has_ended: called once, as soon as it does nothing any more; what it shares with this
        process is still there.

    Returns:
      Its exit status.

    A cancellation does not shorten it.
    """
    is_told = False

    def tell() -> None:
        nonlocal is_told
        if not is_told:
            is_told = True
            has_ended()

    with trio.move_on_after(seconds + LONGEST_KILL, shield=True):
        line.hang_up()
        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(spawned.sentinel)
        spawned.kill()
        await trio.lowlevel.wait_readable(spawned.sentinel)
        tell()
        return await _reap(spawned)
    log_safely(error_log, logging.ERROR, "%s does not end, though it was killed", who)
    tell()
    spawned.give_back()
    return -signal.SIGKILL


def why_never_ready(told: str, status: int) -> str:
    """Why a worker has ended with this exit status and was never ready, as far as it is known.

    Args:
      told: what it has said itself, or ``""``.
      status: its exit status.
    """
    if told:
        return told
    hint = ' (what starts a server belongs under `if __name__ == "__main__":`)'
    why = f"it ended with exit status {status}, and did not say why"
    return why + hint if status == 1 else why


async def _reap(spawned: Spawned) -> int:
    # By a thread of its own: those of the program may all be busy.
    alone = trio.CapacityLimiter(1)
    try:
        return await trio.to_thread.run_sync(spawned.reap, limiter=alone, abandon_on_cancel=True)
    except RuntimeError:  # there is none to be had: here, as it has ended, and takes no time
        return spawned.reap()
