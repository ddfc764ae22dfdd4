"""The small services that every inetd(8) had, for trying things out: echo and its like."""

from __future__ import annotations

import argparse
import itertools
import string
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import trioserver

from .building import servers_for
from .program import run_program

Handler: TypeAlias = Callable[[Any, Any, Any], Awaitable[object]]

PORTION = 65_536
EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970 (RFC 868)."""

CHARACTERS = string.printable[:94] + " "
WIDTH = 72  # RFC 864


async def echo(request: Any, client_address: Any, server: Any) -> None:
    """RFC 862: send back whatever comes."""
    if isinstance(request, trioserver.Datagram):
        await request.reply(request.data)
        return
    while data := await _portion(request):
        await request.send_all(data)


async def discard(request: Any, client_address: Any, server: Any) -> None:
    """RFC 863: throw away whatever comes."""
    if not isinstance(request, trioserver.Datagram):
        while await _portion(request):
            pass


async def chargen(request: Any, client_address: Any, server: Any) -> None:
    """RFC 864: send characters until the client has enough of them; to a datagram, a line."""
    if isinstance(request, trioserver.Datagram):
        await request.reply(_line(0))
        return
    for number in itertools.count():
        if server.draining:
            return
        await request.send_all(b"".join(map(_line, range(number, number + len(CHARACTERS)))))


async def daytime(request: Any, client_address: Any, server: Any) -> None:
    """RFC 867: send the date and time, in words."""
    now = time.strftime("%A, %B %d, %Y %H:%M:%S-%Z\r\n").encode()
    await _say(request, now)


async def the_time(request: Any, client_address: Any, server: Any) -> None:
    """RFC 868: send the seconds since 1900, four bytes."""
    await _say(request, (int(time.time() + EPOCH) % 2**32).to_bytes(4, "big"))


SERVICES: Mapping[str, Handler] = {
    "echo": echo,
    "discard": discard,
    "chargen": chargen,
    "daytime": daytime,
    "time": the_time,
}


def main(service: Handler, typed: argparse.Namespace) -> int:
    """Serve it."""
    return run_program(partial(_servers, service, typed), typed)


def _servers(service: Handler, typed: argparse.Namespace) -> Sequence[trioserver.BaseServer]:
    return servers_for(service, typed, udp=bool(typed.udp))


async def _portion(request: trioserver.Connection) -> bytes:
    """What comes next; nothing at the end, or when the server drains."""
    try:
        with request.idle():
            return bytes(await request.receive_some(PORTION))
    except trioserver.Draining:
        return b""


async def _say(request: Any, data: bytes) -> None:
    if isinstance(request, trioserver.Datagram):
        await request.reply(data)
    else:
        await request.send_all(data)


def _line(number: int) -> bytes:
    first = number % len(CHARACTERS)
    return ((CHARACTERS * 2)[first : first + WIDTH] + "\r\n").encode()
