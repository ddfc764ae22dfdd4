"""What the fork server imports for the library's workers, and nobody else imports.

There is one in a program, so others have it fork for them, too. Those are to hear
signals, which are blocked in it; workers see to this themselves.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import util

from ...._facts.cpython import is_about_to
from ..protocol.signals import hear_again
from .main import main


def _begins(worker: object) -> None:
    """A process that the fork server has forked is about to do what it is for."""
    if not is_about_to(multiprocessing.current_process(), worker):
        hear_again()


util.register_after_fork(main, _begins)
