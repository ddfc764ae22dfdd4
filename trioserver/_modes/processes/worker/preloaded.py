"""What the fork server imports for the library's workers, and no other process imports.

A program has one fork server, so other code has it fork, too. Those processes must hear
signals, which are blocked in the fork server. Workers see to this themselves.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import util

from ...._facts.cpython import is_about_to
from ...._published import load_all
from ..protocol.signals import hear_again
from .main import main


def _begins(worker: object) -> None:
    """Have a process hear signals that the fork server has forked, unless it is a worker."""
    if not is_about_to(multiprocessing.current_process(), worker):
        hear_again()


util.register_after_fork(main, _begins)

load_all("trioserver")  # or each worker would do so anew: its start would take three times as long
