"""Sockets that a service manager has bound, and passed to this program (sd_listen_fds(3)).

It passes them once, to one process: the environment says to whom. So they are looked for at
the first call, whose descriptors then close in every program that this one starts, and whose
variables are taken out of its environment: a child that found them there would believe that
it has those descriptors, too.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, MutableMapping

import attrs

FIRST = 3
"""The first descriptor: ``SD_LISTEN_FDS_START`` of ``<systemd/sd-daemon.h>``."""

_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_NAMELESS = "unknown"  # as sd_listen_fds_with_names(3) calls them


@attrs.frozen
class Passed:
    """A descriptor that was passed, and its name."""

    number: int
    name: str


@attrs.define
class Inheritance:
    """What was passed to this process and is nobody's yet."""

    _left: list[Passed] | None = None
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def take(self, name: str | None) -> tuple[socket.socket, ...]:
        """The sockets of this name, or all that are left; they are the caller's."""
        with self._lock:
            if self._left is None:
                self._left = passed_to_us(os.environ)
            wanted = [it for it in self._left if name is None or it.name == name]
            sockets = _as_sockets(wanted)
            self._left = [it for it in self._left if it not in wanted]
            return sockets


_ours = Inheritance()


def inherited_sockets(name: str | None = None) -> tuple[socket.socket, ...]:
    """The listening sockets that a service manager has passed to this program.

    Such as systemd, for a service with a ``.socket`` unit. Give them to a server as its
    ``server_address``::

        trioserver.TCPServer(inherited_sockets("web") or ("127.0.0.1", 8000), Handler)

    Each is returned once, and is the caller's from then on. It closes when this program
    starts another one.

    Args:
      name: return those of this name alone (``FileDescriptorName=`` of the unit, which
        is the unit's own name unless it says otherwise); None returns all that are left.

    Returns:
      The sockets in the order in which they were passed; none if there are none, or if they
      were passed to another process than this.

    Raises:
      ValueError: what the environment says does not make sense, or something that was
        passed is no open socket. Nothing is taken then.
    """
    return _ours.take(name)


def passed_to_us(environment: MutableMapping[str, str]) -> list[Passed]:
    """What the variables say was passed to this process; they are taken out.

    The descriptors close from now on when this program starts another one.

    Raises:
      ValueError: a variable has no sensible value, or a descriptor is not open. Nothing
        is taken out then.
    """
    passed = list(_described(*map(environment.get, _VARIABLES)))
    for it in passed:
        try:
            os.set_inheritable(it.number, False)
        except OSError as error:
            raise ValueError(_no_socket(it)) from error
    for variable in _VARIABLES:
        environment.pop(variable, None)
    return passed


def _described(
    process: str | None, identity: str | None, count: str | None, names: str | None
) -> Iterator[Passed]:
    """What the values of the variables describe, if it is for this process."""
    if process is None or count is None or _number("LISTEN_PID", process) != os.getpid():
        return
    if identity is not None and _number("LISTEN_PIDFDID", identity) != _identity_of_process():
        return  # it was for an earlier process, which had the same number
    numbers = range(FIRST, FIRST + _number("LISTEN_FDS", count))
    named = [_NAMELESS] * len(numbers) if names is None else names.split(":")
    if len(named) != len(numbers):
        raise ValueError(
            f"LISTEN_FDNAMES is {names!r}, so {len(named)} names; {len(numbers)} were expected,"
            " one for each of LISTEN_FDS"
        )
    yield from map(Passed, numbers, named)


def _number(variable: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal()):
        raise ValueError(f"{variable} is {value!r}; a whole number was expected")
    return int(value)


def _identity_of_process() -> int | None:
    """What tells this process from an earlier one of the same number; None: nothing does."""
    if sys.platform != "linux":
        return None
    descriptor = os.pidfd_open(os.getpid())
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


def _as_sockets(passed: Iterable[Passed]) -> tuple[socket.socket, ...]:
    made: list[socket.socket] = []
    for it in passed:
        try:
            made.append(socket.socket(fileno=it.number))
        except OSError as error:
            for sock in made:
                sock.detach()
            raise ValueError(_no_socket(it)) from error
    return tuple(made)


def _no_socket(passed: Passed) -> str:
    it = f"descriptor {passed.number} ({passed.name!r})"
    return f"{it} was passed to this program; an open socket was expected there, and is not"
