"""How this program was started: what its successor is started with, whatever has changed since."""

from __future__ import annotations

import os

ENVIRONMENT = dict(os.environ)
"""The environment, as it was when the library was imported."""


def _directory() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  (a Path is not needed)
    except OSError:  # it is gone already
        return None


DIRECTORY = _directory()
"""The working directory, as it was then; None if there was none."""
