"""The fork server of this program, which `multiprocessing` starts, and how it is ended."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from ...._facts.cpython import fork_server_pid


def end_fork_server() -> bool:
    """End the fork server of this program, whatever it does; false if there is none."""
    pid = fork_server_pid()
    with suppress(OSError):  # somebody else has reaped it
        if pid is not None and not _has_ended(pid):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def _has_ended(child: int) -> bool:
    if not hasattr(os, "waitid"):  # macOS with an older Python: it is there until it is reaped
        return False
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
