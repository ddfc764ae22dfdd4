"""What people type, as values: addresses, times, numbers. Each error says what was expected."""

from __future__ import annotations

import argparse
import math
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import attrs

import trioserver

Address: TypeAlias = Any
N = TypeVar("N", int, float)

_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"(\d+\.?\d*|\.\d+)(\D*)", re.ASCII)
_BYTES = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}
_SIZE = re.compile(r"(\d+)(\D*)", re.ASCII)
_HOST_AND_PORT = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<host>[^:]*)):(?P<port>[^:]+)")


def seconds(text: str) -> float:
    """A time: seconds, or with a unit of ``ms``, ``s``, ``m`` or ``h``; or ``inf``."""
    if text == "inf":
        return math.inf
    expected = "a time was expected, such as 2.5, 300ms, 10s, 5m, 1h or inf"
    number, unit = _with_unit(text, _TIME, _SECONDS, expected)
    return float(number) * unit


def count(text: str) -> int:
    """A whole number."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"a whole number was expected, not {text!r}")
    return int(text)


def workers(text: str) -> int | str:
    """How many processes: a number, or ``auto``."""
    if text == "auto":
        return text
    if not (text.isascii() and text.isdecimal() and int(text)):
        message = f"a number of at least 1, or auto, was expected, not {text!r}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def size(text: str) -> int:
    """A number of bytes: alone, or with a unit of ``KiB`` or ``MiB``."""
    expected = "a number of bytes was expected, such as 4096, 64KiB or 1MiB"
    number, unit = _with_unit(text, _SIZE, _BYTES, expected)
    return int(number) * unit


def _with_unit(
    text: str, pattern: re.Pattern[str], units: Mapping[str, N], expected: str
) -> tuple[str, N]:
    """The number in a text, and what its unit stands for."""
    found = pattern.fullmatch(text)
    if found is None or found[2] not in units:
        raise argparse.ArgumentTypeError(f"{expected}, not {text!r}")
    return found[1], units[found[2]]


def shown_size(number: int) -> str:
    """A number of bytes as it can be typed."""
    for unit, factor in reversed(_BYTES.items()):
        if number >= factor and number % factor == 0:
            return f"{number // factor}{unit}"
    return str(number)


def names(text: str) -> tuple[str, ...]:
    """Words, with commas in between."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


@attrs.frozen
class Bind:
    """Where to listen.

    Attributes:
      text: as it was typed.
      address: a path, a host and port; or None: ``inherited`` is the name of sockets.
      inherited: of sockets that were passed; None: the address counts.
    """

    text: str
    address: Address = None
    inherited: str | None = None

    @property
    def is_path(self) -> bool:
        """Whether it is an address of a Unix socket."""
        return isinstance(self.address, (str, bytes))

    def sockets(self) -> Sequence[socket.socket]:
        """The sockets that were passed.

        Raises:
          ValueError: there are none of this name, or one is no socket.
        """
        sockets = trioserver.inherited_sockets(self.inherited or None)
        if not sockets:
            raise ValueError(
                f"{self.text}: no such sockets were passed to this program; a service manager"
                " was expected to have (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES)"
            )
        return sockets


def bind(text: str) -> Bind:
    """Where to listen: ``host:port``, ``unix:PATH``, ``fd://N`` or ``inherited:NAME``."""
    if text.startswith("fd://"):
        if not text.removeprefix("fd://").isdecimal():
            raise argparse.ArgumentTypeError(f"fd://N was expected, as in fd://3, not {text!r}")
        return Bind(text, inherited=text)
    if text.startswith("inherited:"):
        return Bind(text, inherited=text.removeprefix("inherited:"))
    return Bind(text, address(text))


def address(text: str) -> Address:
    """Where a server is: ``host:port``, or ``unix:PATH``; ``@`` begins an abstract name.

    A port alone is one of 127.0.0.1.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise argparse.ArgumentTypeError(f"unix:PATH was expected, not {text!r}")
        return "\0" + path[1:] if path.startswith("@") else path
    is_port = text.isascii() and text.isdecimal()
    found = _HOST_AND_PORT.fullmatch(f"127.0.0.1:{text}" if is_port else text)
    if found is None:
        raise argparse.ArgumentTypeError(
            "an address was expected, such as 127.0.0.1:8000, 8000 (the same), [::1]:8000, :8000"
            f" (every interface), or unix:PATH, not {text!r}"
        )
    host = found["ipv6"] if found["ipv6"] is not None else found["host"]
    port = found["port"]
    if not port.isdecimal():
        return host, port
    if int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"a port is at most 65535, unlike that of {text!r}")
    return host, int(port)


def shown(address: Address) -> str:
    """An address as it can be typed again."""
    match address:
        case (str(host), port, *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case bytes():
            return f"unix:@{address[1:].decode(errors='backslashreplace')}"
        case _:
            return f"unix:{address}"
