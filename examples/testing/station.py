"""A weather station: a sensor, and the handler that answers for it."""

import trio

import trioserver


class Sensor:
    """Takes half a second for a reading, and has its lamp on meanwhile."""

    def __init__(self, degrees: dict[str, float]) -> None:
        self.degrees = degrees
        self.readings = 0  # those that are being taken

    @property
    def is_lit(self) -> bool:
        return self.readings > 0

    async def read(self, place: str) -> float:
        self.readings += 1
        try:
            await trio.sleep(0.5)
            return self.degrees[place]
        finally:
            self.readings -= 1


def station(sensor: Sensor) -> type[trioserver.StreamRequestHandler]:
    """A handler for this sensor."""

    class Station(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            async for line in self.rfile:
                match line.decode().split():
                    case ["GET", place] if place in sensor.degrees:
                        await self.wfile.write(b"OK %.1f\n" % await sensor.read(place))
                    case _:
                        await self.wfile.write(b"UNKNOWN\n")

    return Station
