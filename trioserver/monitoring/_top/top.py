"""Looking at another program from a terminal."""

from __future__ import annotations

import signal

import trio

from .._text.words import describe
from .app import ENDING, App
from .feed import Address, ask_monitor
from .remote import Remote
from .terminal import opened
from .view import View


async def top(
    address: Address, *, interval: float = 1.0, most: int = 256, colour: bool | None = None
) -> int:
    """Show what the monitor of another program tells, in this one's terminal, until ``q``.

    It takes the terminal, and leaves it as it was, whatever ends it: a key, a signal, a
    cancellation or an error. If the connection is lost, it says so, keeps the last picture, and
    tries again every second.

    Args:
      address: where the monitor is: ``(host, port)``, or the path of a Unix socket.
      interval: seconds between two pictures.
      most: requests of each server, or worker, that the monitor should tell of.
      colour: whether to use colours; None: unless ``NO_COLOR`` is in the environment, or the
        terminal is said to be dumb.

    Returns:
      The number of the signal that has ended it (SIGINT, SIGTERM or SIGHUP); 0 if a key has.

    Raises:
      MonitorError: nobody is there at first, or it is no monitor, or of another version.
      RuntimeError: standard input is no terminal; or this is not the main thread.
    """
    view = View()
    view.update(await ask_monitor(address, most=most))
    watched = (*ENDING, signal.SIGTSTP, signal.SIGWINCH)
    with trio.open_signal_receiver(*watched) as signals, opened(colour=colour) as terminal:
        app = App(terminal, view, Remote(address, interval, most), describe(address))
        await app.run(signals)
    return app.ended_by
