"""What a program says of itself while it starts, serves and ends, and when.

To its log, and to a service manager, if there is one: that waits for it to be ready, and for
its end, and wants to know why either takes so long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import trio

from .._facts.address import Address, describe
from .._facts.observers import log_safely
from .service_manager import ServiceManager

program_log = logging.getLogger("trioserver.program")

EXTENSION = 5.0
"""Seconds by which the end is put off at a time. Short, because a program that hangs cannot ask
for the next ones: it is then killed soon."""

_TWICE = 2  # as often as is needed: one message may be late


@attrs.define(eq=False)
class Notices:
    """Says it.

    Attributes:
      manager: who is told, beside the log.
      on_ready: who is told by the program itself, once, where it serves.
    """

    manager: ServiceManager
    on_ready: Callable[[tuple[Address, ...]], object] | None = None
    _status: str = "it starts"
    _is_ready: bool = False

    def ready(self, addresses: tuple[Address, ...]) -> None:
        """Everything listens."""
        self._is_ready = True
        # Whoever is told by the program itself need not read it in the log, too.
        level = logging.INFO if self.on_ready is None else logging.DEBUG
        self._say("", f"serves {', '.join(map(describe, addresses))}", "READY=1", level=level)
        if self.on_ready is not None:
            self.on_ready(addresses)

    def leaving(self, order: str, seconds: float) -> None:
        """It is going to drain after so many seconds."""
        self._say(order, f"says that it is not ready, and drains in {seconds:g} s")

    def draining(self, order: str) -> None:
        """Nobody else is let in."""
        self._say(order, "drains", "STOPPING=1")

    def handed_over(self, process: int) -> None:
        """Another process takes the place of this one, and speaks for the program from now on."""
        self._say("", f"goes on as process {process}", f"MAINPID={process}")
        self.manager = ServiceManager()

    @contextmanager
    def reloading(self) -> Iterator[list[str]]:
        """It reloads in the block, which can add what has come of that."""
        outcome: list[str] = []
        if not self._is_ready:
            yield outcome
            return
        # The instant tells the service manager that this comes after its own order, and which.
        instant = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.manager.tell("RELOADING=1", f"MONOTONIC_USEC={instant}", "STATUS=reloads")
        try:
            yield outcome
        finally:
            self.manager.tell("READY=1", f"STATUS={'; '.join([self._status, *outcome])}")

    def _say(self, order: str, status: str, *lines: str, level: int = logging.INFO) -> None:
        self._status = status
        because = f"{order}: " if order else ""
        log_safely(program_log, level, "%sthe program %s", because, status)
        self.manager.tell(*lines, f"STATUS={status}")

    async def give_signs_of_life(self) -> None:
        """Tell the service manager that Trio's loop turns, as often as it wants that."""
        while (seconds := self.manager.watchdog) is not None:
            self.manager.tell("WATCHDOG=1", wait=False)
            await trio.sleep(seconds / _TWICE)

    async def put_the_end_off(self, seconds: float, what_is_left: Callable[[], str]) -> None:
        """Have the service manager wait for the end, for so many seconds at most.

        Args:
          seconds: until everything is over, by the program's own bounds.
          what_is_left: says what it still waits for.
        """
        if self.manager.address is None:
            return
        ends_at = trio.current_time() + seconds
        while (left := ends_at - trio.current_time()) > 0:
            usec = round(min(EXTENSION, left) * 1e6)
            status = f"STATUS=drains: {what_is_left()}"
            self.manager.tell(f"EXTEND_TIMEOUT_USEC={usec}", status)
            await trio.sleep(EXTENSION / _TWICE)
