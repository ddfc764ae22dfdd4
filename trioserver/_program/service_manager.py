"""The service manager that has started a program, and wants to hear how it is (sd_notify(3)).

systemd, and whoever speaks as it does: what is said goes to a Unix datagram socket, a line for
each variable. Where there is no such socket, nothing is said, and nothing costs anything.

Not by a package: those there are have not changed for years, or are bound to a C library, and
descriptors have to be passed anyway.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager

import attrs

from .._facts.address import printable
from .._facts.observers import error_log, log_safely
from .._sockets.making import new_socket

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
"""What it puts in the environment of a program; not for the programs that this one starts."""

PATIENCE = 1.0
"""Seconds that a message may wait for room in the service manager's queue, and Trio with it.
The C library waits without end; a message that is lost, such as READY=1, has a start fail."""


@attrs.define(eq=False)
class ServiceManager:
    """Where to tell it, and how often it wants a sign of life.

    Attributes:
      address: of its socket; None: there is nobody to tell.
      watchdog: seconds within which it wants a sign of life; None: it does not.
      keeps_sockets: whether it keeps descriptors for the next start, after a crash, say.
    """

    address: str | bytes | None = None
    watchdog: float | None = None
    keeps_sockets: bool = False
    _has_failed: bool = False

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """The one that the variables describe; those that make no sense are logged."""
        keeps_sockets = environment.get("FDSTORE", "0") != "0"
        return cls(_address(environment), _watchdog(environment), keeps_sockets)

    def keep(self, descriptor: int, name: str) -> None:
        """Have it keep a descriptor for the next start; one that it has already is kept once."""
        # It would let go of it at once if it found it ready in some way.
        self.tell("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=[descriptor])

    def let_go(self, name: str) -> None:
        """Have it keep the descriptors of this name no longer."""
        self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def tell(self, *lines: str, descriptors: Sequence[int] = (), wait: bool = True) -> None:
        """Say this, ``VARIABLE=value`` each; whatever goes wrong is logged once.

        Args:
          lines: what to say, all in one message.
          descriptors: what to pass with it.
          wait: whether it may wait for room, for `PATIENCE` seconds at most.
        """
        if self.address is None:
            return
        message = "\n".join(printable(line) for line in lines).encode()
        try:
            with new_socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE if wait else 0)
                sock.connect(self.address)
                socket.send_fds(sock, [message], descriptors) if descriptors else sock.send(message)
        except OSError as error:
            if not self._has_failed:
                told = "cannot tell the service manager (NOTIFY_SOCKET): %s"
                log_safely(error_log, logging.WARNING, told, error)
            self._has_failed = True


@contextmanager
def told_by_environment() -> Iterator[ServiceManager]:
    """The service manager of this process; in the block its variables are not in the environment.

    So no program that is started meanwhile speaks in this one's name.
    """
    manager = ServiceManager.of(os.environ)
    taken = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield manager
    finally:
        os.environ.update(taken)


def _address(environment: MutableMapping[str, str]) -> str | bytes | None:
    value = environment.get("NOTIFY_SOCKET")
    if not value:
        return None
    if value.startswith("/"):
        return value
    if value.startswith("@"):
        return b"\0" + os.fsencode(value[1:])
    message = "NOTIFY_SOCKET is %r; a path, or @ and an abstract name, was expected: nobody is told"
    log_safely(error_log, logging.WARNING, message, value)
    return None


def _watchdog(environment: MutableMapping[str, str]) -> float | None:
    value, process = environment.get("WATCHDOG_USEC"), environment.get("WATCHDOG_PID")
    if value is None or (process is not None and process != str(os.getpid())):
        return None
    if value.isascii() and value.isdecimal() and int(value):
        return int(value) / 1e6
    message = "WATCHDOG_USEC is %r; a number of microseconds was expected: no sign of life is given"
    log_safely(error_log, logging.WARNING, message, value)
    return None
