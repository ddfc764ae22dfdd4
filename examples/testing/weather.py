"""A client for a weather station, which the tests beside it test.

The client says ``GET place``, a line, and the station ``OK degrees`` or ``UNKNOWN``.
"""

import socket
from collections.abc import Awaitable, Callable

import trio


class Unknown(LookupError):
    """The station has no such place."""


class Unavailable(Exception):
    """The station has not answered."""


def degrees_in(answer: bytes) -> float:
    match answer.split():
        case [b"OK", degrees] if answer.endswith(b"\n"):
            return float(degrees)
        case [b"UNKNOWN"] if answer.endswith(b"\n"):
            raise Unknown
        case _:
            raise Unavailable(f"the station has answered {answer!r}")


async def ask(stream: trio.abc.Stream, place: str) -> float:
    await stream.send_all(f"GET {place}\n".encode())
    answer = b""
    while not answer.endswith(b"\n"):
        portion = await stream.receive_some()
        if not portion:
            break
        answer += portion
    return degrees_in(answer)


async def degrees(
    connect: Callable[[], Awaitable[trio.abc.Stream]], place: str, patience: float = 30
) -> float:
    """Ask up to three times, on a connection each, with a pause before the next attempt."""
    for pause in (1, 5, None):
        try:
            with trio.fail_after(patience):
                async with await connect() as stream:
                    return await ask(stream, place)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, Unavailable) as error:
            if pause is None:
                raise Unavailable("three attempts have failed") from error
        await trio.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def degrees_now(address: tuple[str, int], place: str, patience: float = 30) -> float:
    """The same without Trio, and once."""
    with socket.create_connection(address, timeout=patience) as connection:
        connection.sendall(f"GET {place}\n".encode())
        with connection.makefile("rb") as answers:
            return degrees_in(answers.readline())
