"""Where the servers of these tests listen."""

import pytest


@pytest.fixture
def path(folder):
    """Where a Unix socket may be made."""
    return str(folder / "socket")
