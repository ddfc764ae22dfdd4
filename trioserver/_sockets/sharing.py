"""Whether others hold a listening socket, too: asked when a drain begins, and not before.

What is queued in a socket that somebody else accepts from is theirs. The last who holds it
has to take the queue in, or the kernel resets whoever is in it. No system call tells how
many hold a socket; Linux shows who does, in ``/proc``.

The rules this file keeps:

* Of several who leave at the same time, one is the last. They ask one after the other: each
  keeps the lock until it has closed the socket. (A lock of fcntl(2) is a process's, for the
  socket itself, whatever the descriptors; it ends when the process closes any of them.)
* In doubt the queue is left alone, as it would be where the system does not tell.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress

if sys.platform != "win32":
    import fcntl

PATIENCE = 0.1
"""Seconds to wait for somebody who is taking a queue in at this moment. It takes less by far."""

_PAUSE = 0.001


def others_hold(sock: socket.socket, *, ours: int = 1, apart_from: Collection[int] = ()) -> bool:
    """Whether somebody else has the socket, or perhaps has it.

    Who has it: another process, or another descriptor of this one. Of a process of another
    user this cannot be told, and it counts if it has started this one: a service manager, or
    a parent that binds what its children serve on.

    To be closed soon: until then nobody else gets an answer.

    Args:
      ours: how many descriptors the caller has for it.
      apart_from: processes that do not count: the caller's workers.
    """
    if sys.platform != "linux":
        return True
    try:
        _take_turn(sock)
        name = f"socket:[{os.fstat(sock.fileno()).st_ino}]"
        if sum(name == other for other in _open_in("self")) > ours:
            return True
        parent = str(os.getppid())
        ours_all = {str(os.getpid()), *map(str, apart_from)}
        for process in _processes():
            try:
                if process not in ours_all and name in _open_in(process):
                    return True
            except OSError:  # it has ended, or is another user's
                if process == parent:
                    return _may_have_passed_it(parent)
    except OSError:  # there is no /proc
        return True
    return False


def _take_turn(sock: socket.socket) -> None:
    """Wait until nobody else is about to close the same socket, within bounds."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(sock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return
            time.sleep(_PAUSE)
        else:
            return


def _processes() -> list[str]:
    with os.scandir("/proc") as entries:
        return [entry.name for entry in entries if entry.name.isdecimal()]


def _open_in(process: str) -> Iterator[str]:
    """What a process has open, by the kernel's names."""
    with os.scandir(f"/proc/{process}/fd") as entries:
        for entry in entries:
            with suppress(OSError):  # closed in this very moment
                yield os.readlink(entry.path)  # noqa: PTH115  (of thousands: a Path takes as long)


def _may_have_passed_it(parent: str) -> bool:
    """Whether the parent, of which nothing can be seen, has given this process sockets."""
    if parent != "1":
        return True
    # Everything of a system has this parent. A service manager says what it passes on, and
    # the environment is as it was at the start, whoever has taken that out of os.environ.
    with open("/proc/self/environ", "rb") as environment:  # noqa: PTH123  (no file)
        return b"LISTEN_FDS=" in environment.read()
