"""The TLS context of a worker: when it is made anew, and what is said of it if that fails."""

import logging
import time

import pytest
from support.tls import SERVER

from trioserver._modes.processes.worker.contexts import Contexts
from trioserver._sockets.credentials import Credentials


@pytest.fixture
def made():
    """What the server's function has returned so far; after None it fails."""
    return []


def contexts_of(made):
    """Those of a worker that has just started."""

    def make():
        if made[-1:] == [None]:
            raise ValueError("half of it")
        made.append(SERVER.context())
        return made[-1]

    return Contexts(Credentials(make, "Server"))


def test_made_once_for_each_reload(made):
    """TL-11: not for a reload that came before the worker, and once for one that came after."""
    before = time.monotonic()
    contexts = contexts_of(made)
    assert [contexts.of(before) for _ in range(2)] == made * 2
    after = time.monotonic()
    assert [contexts.of(after) for _ in range(3)] == [made[1]] * 3
    assert len(made) == 2


def test_failure_is_told_once(made, caplog):
    """TL-10: each client has another try, and the log is not full of it; the old one serves."""
    contexts = contexts_of(made)
    made.append(None)
    asked = time.monotonic()
    assert [contexts.of(asked) for _ in range(3)] == [made[0]] * 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    made.pop()
    assert contexts.of(asked) is made[1]
    made.append(None)
    assert contexts.of(time.monotonic()) is made[1]
    assert len(caplog.records) == 2
