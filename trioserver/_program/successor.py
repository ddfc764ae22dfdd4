"""Starting the program anew, to take the place of this one without a client being turned away.

As tableflip does for Go, whose four rules hold here: nothing of the old program goes on after
the new one has taken over, but for the requests that it serves already; the new one has time to
get ready; one that fails does no harm; and there is one at a time.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import attrs
import trio

from .._facts.observers import error_log, log_safely
from .._sockets.handover import Handover
from .origin import DIRECTORY, ENVIRONMENT

_NOT_FOR_IT = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")
"""What is for this process alone. The service manager's other variables are for its main
process, which the successor will be."""

PATIENCE = 5.0
"""Seconds that one which is given up has to end by itself."""

_READY = b"ready"


@attrs.define(eq=False)
class Successor:
    """A program that was started to take the place of this one."""

    _process: subprocess.Popen[bytes]
    _ready: trio.lowlevel.FdStream

    @classmethod
    def start(cls, sockets: Sequence[tuple[int, str]]) -> Successor:
        """Start it, as this one was started: its command, directory and environment, new code.

        Args:
          sockets: the descriptors of the listening sockets, and their names.

        Raises:
          OSError: it cannot be started.
        """
        reading, writing = os.pipe()
        try:
            handover = Handover(os.getpid(), writing, sockets)
            environment = {it: ENVIRONMENT[it] for it in ENVIRONMENT if it not in _NOT_FOR_IT}
            handover.put_into(environment)
            process = subprocess.Popen(  # noqa: S603  (the very command that has started this one)
                sys.orig_argv,
                executable=sys.executable or None,
                cwd=DIRECTORY,
                env=environment,
                pass_fds=handover.descriptors(),
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return cls(process, trio.lowlevel.FdStream(reading))

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def is_ready(self, patience: float) -> bool:
        """Wait until it is ready; false, with the reason in the log, if it will not be.

        One that is not ready has ended when this returns, or raises.
        """
        is_ready, status, why = False, 0, f"was not ready within {patience:g} s"
        try:
            with trio.move_on_after(patience) as waiting:
                is_ready = await self._ready.receive_some(len(_READY)) == _READY
        finally:
            self._ready.close()
            if not is_ready:
                status = await self._end()
        if is_ready:
            return True
        if not waiting.cancelled_caught:
            why = f"has ended before it was ready, {_in_words(status)}"
        message = "the successor %s: this program serves on"
        log_safely(error_log, logging.ERROR, message, why)
        return False

    def terminate(self) -> None:
        """Tell it to end."""
        self._process.terminate()

    def let_go(self) -> None:
        """Have it be nobody's child any more: whether it still runs is no concern of this one."""
        self._process.returncode = 0

    async def _end(self) -> int:
        """Have it end, within bounds; its status."""
        for end in (self._process.terminate, self._process.kill):
            end()
            with trio.move_on_after(PATIENCE, shield=True):
                # Not in a thread, which nothing could end when the patience is over.
                while (status := self._process.poll()) is None:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                return status
        return -signal.SIGKILL  # it cannot end, and nobody can wait for that


def tell_ready(descriptor: int) -> None:
    """Tell the program that has started this one that it is ready."""
    try:
        os.write(descriptor, _READY)
    except OSError as error:  # it is gone; or it waits no more, and ends this one
        message = "cannot tell the program before this one that it is ready: %s"
        log_safely(error_log, logging.WARNING, message, error)
    finally:
        os.close(descriptor)


def _in_words(status: int) -> str:
    return f"by signal {-status}" if status < 0 else f"with status {status}"
