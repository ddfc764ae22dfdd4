"""Where the servers of these tests listen."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(folder: Path) -> str:
    """Where a Unix socket may be made."""
    return str(folder / "socket")
