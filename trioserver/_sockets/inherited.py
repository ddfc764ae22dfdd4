"""Sockets that somebody else has bound, and passed to this program.

A service manager (sd_listen_fds(3)), or the program in whose place this one comes. They are
passed once, to one process: the environment says to whom. So they are looked for at the first
call, whose descriptors then close in every program that this one starts, and whose variables
are taken out of its environment: a child that found them there would believe that it has those
descriptors, too.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager

import attrs

from .handover import Handover
from .left_sockets import PREFIX, LeftSocket, Place
from .making import socket_at

FIRST = 3
"""The first descriptor: ``SD_LISTEN_FDS_START`` of ``<systemd/sd-daemon.h>``."""

_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
BY_NUMBER = "fd://"
"""How a name begins that is the number of a descriptor, whoever has passed it."""

_NAMELESS = "unknown"  # as sd_listen_fds_with_names(3) calls them


@attrs.frozen
class Passed:
    """A descriptor that was passed, and its name."""

    number: int
    name: str


@attrs.define
class Inheritance:
    """What was passed to this process, and whose it is by now.

    Attributes:
      taken: the names of those that the program has taken, by their numbers.
      ready: the descriptor on which an earlier program, which has started this one to take
        its place, waits for it to be ready; None: nobody has.
    """

    taken: dict[int, str] = attrs.field(factory=dict)
    ready: int | None = None
    _left: list[Passed] | None = None
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def take(self, name: str | None) -> tuple[socket.socket, ...]:
        """The sockets of this name, or all that are left and not for a server's place."""
        if name is not None and name.startswith(BY_NUMBER):
            return (self._take_number(name),)
        named = self._take(lambda it: it.name == name if name else not it.name.startswith(PREFIX))
        self.taken.update((sock.fileno(), its_name) for its_name, sock in named)
        return tuple(sock for _, sock in named)

    def take_for(self, place: Place) -> Sequence[LeftSocket]:
        """The sockets that were left for a server, IPv4 first."""
        named = self._take(lambda it: place.is_of(it.name))
        found = [place.left_as(name, sock) for name, sock in named]
        left = [it for it in found if it is not None]
        return sorted(left, key=lambda it: it.socket.family != socket.AF_INET)

    def _take_number(self, name: str) -> socket.socket:
        if stand_in := self._take(lambda it: it.name == name):
            return stand_in[0][1]
        number = _number("the descriptor", name.removeprefix(BY_NUMBER))
        ((_, sock),) = _as_sockets([Passed(number, name)])
        os.set_inheritable(number, False)
        self.taken[number] = name
        return sock

    @contextmanager
    def standing_in(self, passed: Sequence[Passed]) -> Iterator[None]:
        """Have these be what was passed to this process, in the block: it is a worker of that one.

        They are the caller's still; what is taken has descriptors of its own.
        """
        self._left = [Passed(os.dup(it.number), it.name) for it in passed]
        try:
            yield
        finally:
            for it in self._left:
                os.close(it.number)
            self._left = []

    def close_unclaimed(self) -> Sequence[str]:
        """Close what was left for servers that there are not any more; their names."""
        named = self._take(lambda it: it.name.startswith(PREFIX))
        for _, sock in named:
            sock.close()
        return [name for name, _ in named]

    def load(self) -> None:
        """Look what was passed; once."""
        with self._lock:
            if self._left is None:
                self._left = passed_to_us(os.environ)
                handover = Handover.to_us(os.environ)
                if handover is not None:
                    self.ready = handover.ready
                    self._left += [Passed(number, name) for number, name in handover.sockets]

    def _take(self, is_wanted: Callable[[Passed], bool]) -> Sequence[tuple[str, socket.socket]]:
        self.load()
        with self._lock:
            left = self._left or []
            wanted = [it for it in left if is_wanted(it)]
            sockets = _as_sockets(wanted)
            self._left = [it for it in left if it not in wanted]
            return sockets


inheritance = Inheritance()
"""This process's own."""


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
        ``"fd://3"`` is the socket of that descriptor, whoever has passed it.

    Returns:
      The sockets in the order in which they were passed; none if there are none, or if they
      were passed to another process than this.

    Raises:
      ValueError: what the environment says does not make sense, or something that was
        passed is no open socket. Nothing is taken then.
    """
    return inheritance.take(name)


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


def _as_sockets(passed: Iterable[Passed]) -> Sequence[tuple[str, socket.socket]]:
    made: list[tuple[str, socket.socket]] = []
    for it in passed:
        try:
            made.append((it.name, socket_at(it.number)))
        except OSError as error:
            for _, sock in made:
                sock.detach()
            raise ValueError(_no_socket(it)) from error
    return made


def _no_socket(passed: Passed) -> str:
    if passed.name.startswith(BY_NUMBER):
        return f"an open socket was expected at {passed.name}, and is not there"
    it = f"descriptor {passed.number} ({passed.name!r})"
    return f"{it} was passed to this program; an open socket was expected there, and is not"
