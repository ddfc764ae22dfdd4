"""Files without a name: what two processes share, or what is too long for a pipe."""

from __future__ import annotations

import os
import tempfile


def new_file() -> int:
    """The descriptor of an empty file, which has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("trioserver", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def all_of(number: int) -> bytes:
    """What is in such a file; its descriptor is closed then."""
    with open(number, "rb") as file:
        file.seek(0)
        return file.read()
