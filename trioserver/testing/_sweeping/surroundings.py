"""What a trial runs in: warnings become complaints, and Ctrl-C is heeded."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def warnings_into(complaints: list[str]) -> Iterator[None]:
    """Have warnings of what was left in the block be complaints."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    complaints += (f"{warning.category.__name__}: {warning.message}" for warning in caught)


@contextmanager
def ctrl_c_heeded() -> Iterator[None]:
    """Have SIGINT raise `KeyboardInterrupt`, also where it is ignored, as in a background job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
