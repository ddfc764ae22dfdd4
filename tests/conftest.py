"""What holds for every test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from trioserver.testing import open_descriptors


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heeded() -> Iterator[None]:
    """Also in a background job of a shell, which ignores it and hands that on to its children."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def nothing_stays_open() -> Iterator[None]:
    """Whatever a test does with servers, all descriptors are closed at its end."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before
