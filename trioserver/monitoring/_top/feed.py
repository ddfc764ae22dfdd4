"""The connection to a monitor: messages, each a line of JSON, in both directions."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import attrs
import trio

from .._text.words import printable
from .parts import MonitorError
from .state import MonitorState, state_of

Address: TypeAlias = Any
Message: TypeAlias = Mapping[str, Any]

LONGEST_LINE = 64 * 1024 * 1024
"""Bytes: what is longer comes from no monitor, and is not kept."""


@attrs.define
class Feed:
    """A connection to a monitor."""

    _stream: trio.abc.Stream
    _buffer: bytearray = attrs.field(factory=bytearray)

    async def send(self, message: Message) -> None:
        """Send a message; once cancelled, only a part may have been sent.

        Raises:
          MonitorError: the connection is lost.
        """
        try:
            await self._stream.send_all(json.dumps(message).encode() + b"\n")
        except trio.BrokenResourceError:
            raise MonitorError("the connection is lost") from None

    async def receive(self) -> Message:
        """The next message. What has come of one is kept when this is cancelled.

        Raises:
          MonitorError: the connection is lost, or somebody else than a monitor is there.
        """
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > LONGEST_LINE:
                raise MonitorError(f"no monitor is there: a line has more than {LONGEST_LINE} B")
            try:
                data = await self._stream.receive_some(65_536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise MonitorError("the connection is lost")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return _message_of(line)


def _message_of(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        said = printable(line[:80].decode(errors="backslashreplace").strip())
        raise MonitorError(f"no monitor is there, but who says '{said}'")
    return message


@asynccontextmanager
async def connected(address: Address, patience: float) -> AsyncIterator[Feed]:
    """A connection to a monitor, for a block.

    Args:
      address: ``(host, port)``, or the path of a Unix socket.
      patience: seconds that connecting may take.

    Raises:
      MonitorError: nobody is there.
    """
    try:
        with trio.fail_after(patience):
            stream = await _open(address)
    except trio.TooSlowError:
        raise MonitorError(f"no connection within {patience:g} s") from None
    except (OSError, ValueError) as error:
        raise MonitorError(_in_short(error)) from None
    async with stream:
        yield Feed(stream)


async def _open(address: Address) -> trio.SocketStream:
    if isinstance(address, tuple):
        host, port = address[:2]
        return await trio.open_tcp_stream(host, port)
    return await trio.open_unix_socket(address)


def _in_short(error: Exception) -> str:
    """Why there is no connection, without the address, which is told already."""
    cause = error.__cause__ or error  # of all addresses that a name has
    each = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause]
    numbers = [number for one in each if (number := getattr(one, "errno", 0) or 0) > 0]
    if len(numbers) < len(each):  # the name does not resolve, say
        return printable(str(cause))
    return "; ".join(dict.fromkeys(os.strerror(number) for number in numbers))


async def ask_monitor(address: Address, *, most: int = 256, patience: float = 5.0) -> MonitorState:
    """What the monitor of a program tells of it now.

    Args:
      address: where it is: ``(host, port)``, or the path of a Unix socket.
      most: requests of each server, or worker, that it should tell of.
      patience: seconds that the whole may take.

    Raises:
      MonitorError: nobody is there, or it is no monitor, or of another version.
    """
    with trio.move_on_after(patience):
        async with connected(address, patience) as feed:
            await feed.send({"watch": {"interval": 1.0, "most": most, "sort": "age", "filter": ""}})
            return await first_state(feed)
    raise MonitorError(f"no answer within {patience:g} s")


async def first_state(feed: Feed) -> MonitorState:
    """What a monitor tells first of its program."""
    while True:
        message = await feed.receive()
        if message.get("type") == "error":
            raise MonitorError(f"the monitor refuses: {printable(str(message.get('message')))}")
        return state_of(message)
