"""Workers that somebody has stopped with a signal (SIGSTOP), and left so.

They look at no time-out themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import trio

from ...._facts.observers import error_log, log_safely
from .worker_process import Worker

BETWEEN_LOOKS = 5.0
"""Seconds between two looks whether somebody has stopped a worker that has a request."""


async def end_stopped(workers: Mapping[int, Worker], longest: float) -> None:
    """Kill workers that have a request and stay stopped; until cancelled.

    Args:
      workers: those there are now, by process id.
      longest: seconds that one may be stopped.
    """
    while True:
        await trio.sleep(min(BETWEEN_LOOKS, longest))
        now = trio.current_time()
        for worker in workers.values():
            if worker.job is None or not _is_stopped(worker.pid):
                worker.stopped_since = None
            elif worker.stopped_since is None:
                worker.stopped_since = now
                message = "%s was stopped by a signal in the middle of %s"
                log_safely(error_log, logging.WARNING, message, worker, worker.job.task.info)
            elif worker.stopped_since + longest <= now:
                message = "%s does not go on after %g s (idle), and is killed"
                log_safely(error_log, logging.ERROR, message, worker, longest)
                worker.kill()


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped, where the system tells; one that is debugged does not count."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] == [b"T"]
