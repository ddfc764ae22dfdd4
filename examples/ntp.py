"""What is the time? A server of the Simple Network Time Protocol (RFC 4330, RFC 5905).

    python examples/ntp.py [PORT]

It tells the time of its own machine, well-formed questions only: to anything
else it says nothing at all, and no answer is larger than its question.
"""

import logging
import struct
import sys
import time

import trio

import trioserver

# Leap indicator, version and mode; stratum; poll; precision; root delay and
# dispersion; reference id; times: of the last adjustment, origin, receipt, transmission.
PACKET = struct.Struct("!BBbb2I4s4Q")
CLIENT, SERVER = 3, 4
PRIMARY, LOCAL_CLOCK = 1, b"LOCL"
MICROSECONDS = -20  # as a power of two, of seconds
SECONDS_1900_TO_1970 = 2_208_988_800


def timestamp(seconds: float) -> int:
    """A time of ours as one of NTP's: seconds since 1900, times 2**32, begun anew in 2036."""
    return int((seconds + SECONDS_1900_TO_1970) * 2**32) % 2**64


async def tell_the_time(request: trioserver.Datagram, _address: object, _server: object) -> None:
    if len(request.data) < PACKET.size:
        return
    first, _, poll, *_, asked_at = PACKET.unpack_from(request.data)
    version, mode = first >> 3 & 0b111, first & 0b111
    if mode != CLIENT or not 1 <= version <= 4:
        return
    head = (version << 3 | SERVER, PRIMARY, poll, MICROSECONDS, 0, 0, LOCAL_CLOCK)
    received, now = timestamp(request.info.started_at), timestamp(time.time())
    await request.reply(PACKET.pack(*head, received, asked_at, received, now))


def make_server(port: int) -> trioserver.UDPServer:
    return trioserver.UDPServer(("localhost", port), tell_the_time)


async def main(
    port: int,
    *,
    task_status: trio.TaskStatus[trioserver.UDPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trioserver.run(make_server(int(sys.argv[1] if len(sys.argv) > 1 else 9123)))
