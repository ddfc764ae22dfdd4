"""The client without Trio: plain tests, and one server for all of them."""

from collections.abc import Iterator

import pytest
from station import Sensor, station
from weather import Unknown, degrees_now

from trioserver.testing import Stall, ThreadServer, serve_in_thread

SENSOR = Sensor({"Oslo": 21.5})


@pytest.fixture(scope="session")
def one_for_all() -> Iterator[ThreadServer]:
    with serve_in_thread(station(SENSOR), faults=[]) as server:
        yield server


@pytest.fixture
def server(one_for_all: ThreadServer) -> Iterator[ThreadServer]:
    """What handlers raise fails the test that has caused it."""
    yield one_for_all
    one_for_all.wait_idle()
    one_for_all.check()


def test_place(server: ThreadServer) -> None:
    assert degrees_now(server.address, "Oslo") == 21.5


def test_unknown_place(server: ThreadServer) -> None:
    with pytest.raises(Unknown):
        degrees_now(server.address, "Atlantis")


def test_silence(server: ThreadServer) -> None:
    with server.faults.during(Stall(towards="client")), pytest.raises(TimeoutError):
        degrees_now(server.address, "Oslo", patience=0.2)
