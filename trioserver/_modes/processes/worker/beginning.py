"""How the life of a worker process begins, whatever it is for."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from ..protocol.channel import Channel
from ..protocol.lifeline import end_with
from ..protocol.signals import do_nothing_at_signals


def begin(control: socket.socket, lifeline: int, parent: int) -> Channel:
    """Have this process end with the one that has started it, and take orders from it alone.

    Args:
      control: the line to it.
      lifeline: the descriptor that ends when that one does.
      parent: its process id.

    Returns:
      The line, to speak and listen.
    """
    control.set_inheritable(False)
    control.settimeout(None)  # whatever socket.setdefaulttimeout says
    do_nothing_at_signals()
    with suppress(OSError):
        os.setpgid(0, 0)  # so that what a handler starts can be ended with it
    end_with(parent, lifeline)
    channel = Channel(control)
    # A child that a handler forks has nothing to say: the line is its parent's.
    os.register_at_fork(after_in_child=channel.close)
    return channel
