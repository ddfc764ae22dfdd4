"""A program that shows itself in its own terminal while it serves."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import attrs
import trio

import trioserver

from .app import App
from .captured import Captured
from .local import Local
from .terminal import check_terminal, opened
from .view import View

_INTERVAL = 1.0


@attrs.define(eq=False)
class LiveScreen:
    """This program's own terminal, as a screen that shows its servers while they serve.

    ::

        with LiveScreen() as screen:
            trioserver.run(server, beside=[screen.show])

    What the program and its workers write to the terminal in the block, their logs above all, is
    shown in the lower part of the screen, and is written when the screen is left: the last 200
    lines of it. Standard outputs that are no terminal are left alone.

    Raises:
      RuntimeError: on entering the block: standard input is no terminal.
    """

    _captured: Captured = attrs.field(factory=Captured, init=False)

    def __enter__(self) -> Self:
        check_terminal()
        self._captured.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._captured.end()

    async def show(self, servers: Sequence[trioserver.BaseServer]) -> None:
        """Show these servers until somebody types ``q``, or it is cancelled.

        The servers go on serving. Ctrl-C is for the program, as it is without a screen. The
        terminal is left as it was, whatever ends it.

        Args:
          servers: of this program.
        """
        view = View(log=())
        token = trio.lowlevel.current_trio_token()
        # A size that has changed, and Ctrl-Z; all other signals are the program's.
        watched = (signal.SIGWINCH, signal.SIGTSTP)
        with trio.open_signal_receiver(*watched) as signals:
            try:
                with opened() as terminal:
                    app = App(terminal, view, Local(servers, _INTERVAL), "this program")

                    def show_lines() -> None:
                        view.log = self._captured.kept()
                        app.changed()

                    # Called in the thread that reads: for many lines once.
                    self._captured.keep(lambda: token.run_sync_soon(show_lines, idempotent=True))
                    await app.run(signals)
            finally:
                self._captured.pass_on()
