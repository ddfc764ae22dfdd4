"""The server's own handler, with a fault after each of its steps."""

import contextlib

import trio
from station import Sensor, station
from weather import Unavailable, ask

from trioserver.testing import (
    Cancel,
    CtrlC,
    ResetClient,
    ShutDown,
    Trial,
    open_test_server,
    sweep,
)


async def one_reading(trial: Trial) -> None:
    """Whatever comes in between, the lamp is off at the end."""
    sensor = Sensor({"Oslo": 21.5})
    trial.afterwards(lambda: ["the lamp is on"] if sensor.is_lit else [])
    async with open_test_server(station(sensor)) as running:
        client = await running.connect()
        trial.arm(server=running.server, client=client)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, Unavailable):
            answer = await ask(client, "Oslo")
            if answer != 21.5:
                trial.complain(f"{answer} degrees")


def test_one_fault() -> None:
    sweep(one_reading, faults=[Cancel(), CtrlC(), ShutDown(), ResetClient()])


def test_two_faults() -> None:
    """A shutdown, and then no more patience."""
    sweep(one_reading, faults=[(ShutDown(), Cancel())], seeds=[0], every=5)
