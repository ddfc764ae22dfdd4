"""`Monitor`: serves the views of a program's servers to those who look at them."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import trio
from attrs.validators import instance_of, optional

import trioserver

from .._lints.linter import Linter
from .feed import Feed
from .lines import Conversation
from .query import MOST_REQUESTS, Query
from .web import Exchange

log = logging.getLogger("trioserver.monitoring")

LIMITS = trioserver.Limits(requests=64, per_client=None, line=65_536, linger=65_536)
TIMEOUTS = trioserver.Timeouts(idle=float("inf"), line=10, write=10, linger=1)

FIRST_LINE = 10.0
"""Seconds that a viewer has to say what it is."""


def _is_http(first: bytes) -> bool:
    """Whether a first line is one of HTTP, by whatever method; no method has a brace.

    Pages of others have a browser send methods that they have made up, with lines of JSON as the
    body. So what begins with a line of HTTP is held to its rules, and never read as orders.
    """
    return b" HTTP/" in first and not first.lstrip().startswith(b"{")


class _Viewer(trioserver.StreamRequestHandler):
    """Serves one viewer: a browser, or a program that sends lines of JSON."""

    async def handle(self) -> None:
        feed: Feed = self.server.feed
        default: Query = self.server.default
        with trio.move_on_after(FIRST_LINE) as patience:
            first = await self.rfile.readline()
        if patience.cancelled_caught:
            return
        if _is_http(first):
            await Exchange(feed, default, self.request, self.rfile).serve(first)
        elif first:
            await Conversation(feed, default, self.request, self.rfile).hold(first)


class _Served:
    """What the servers of a monitor have in common: they are not what is watched."""

    access_level: ClassVar[int] = logging.DEBUG
    feed: ClassVar[Feed]
    default: ClassVar[Query]


@attrs.frozen(eq=False)
class Monitor:
    """Shows servers to others: a web page, and the same as lines of JSON, at one address.

    Whoever can connect can see the addresses of all clients and where every task waits, so the
    address is of this machine alone: a loopback address, or a Unix socket, whose file says who may
    connect. The page needs ``h11`` (the extra ``monitor``); lines of JSON, and so ``trioserver
    top``, do not. What viewers do and fail to do is not noticed by the servers: a look is taken for
    all of them together, in a twentieth of the time at most; those that are slow miss looks, which
    is counted, and those that never read are ended.

    Attributes:
      servers: those that are watched; more than none.
      address: ``(host, port)`` of this machine alone, or the path of a Unix socket.
      allow_control: whether viewers may cancel requests, and suspend, resume and drain servers.
      interval: the shortest number of seconds between two looks.
      most: requests of each server, or worker, that are listed unless a viewer wants more.
      linter: finds what is wrong, by its own bounds, and what a `Watchdog` has told it; it is for
        this monitor alone. None: one with the usual bounds.

    Raises:
      TypeError, ValueError: a field is wrong, and named.
    """

    servers: Sequence[trioserver.BaseServer] = attrs.field()
    address: Any = attrs.field()
    allow_control: bool = attrs.field(default=False, kw_only=True)
    interval: float = attrs.field(default=0.5, kw_only=True)
    most: int = attrs.field(default=256, kw_only=True)
    linter: Linter | None = attrs.field(
        default=None, kw_only=True, validator=optional(instance_of(Linter))
    )

    @servers.validator
    def _check_servers(self, field: object, value: object) -> None:
        found = value if isinstance(value, (list, tuple)) else ()
        if not found or not all(isinstance(it, trioserver.BaseServer) for it in found):
            raise TypeError(f"servers must be a list of servers, at least one, not {value!r}")

    @address.validator
    def _check_address(self, field: object, value: object) -> None:
        if isinstance(value, (str, bytes, os.PathLike)):
            return  # a path; the server looks at it
        if not isinstance(value, (tuple, list)) or not value or not _is_here(value[0]):
            raise ValueError(
                "address must be a path, or (host, port) with a host of this machine alone, such"
                f" as 127.0.0.1, since a monitor shows everything to everybody; not {value!r}"
            )

    @interval.validator
    def _check_interval(self, field: object, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"interval must be a number of seconds, not {value!r}")
        if not 0 < value < float("inf"):
            raise ValueError(f"interval must be greater than 0 seconds, not {value!r}")

    @most.validator
    def _check_most(self, field: object, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"most must be a number of requests, not {value!r}")
        if not 0 <= value <= MOST_REQUESTS:
            raise ValueError(f"most must be from 0 to {MOST_REQUESTS}, not {value!r}")

    async def serve(self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve viewers until cancelled.

        Args:
          task_status: told the address, as soon as viewers can connect.

        Raises:
          OSError: the address cannot be had.
          TypeError, ValueError: the path or the port is wrong.

        Whatever fails later is logged on ``trioserver.monitoring``, and this returns: it never ends
        the servers that are watched.
        """
        feed = Feed(self.servers, self.interval, self.allow_control, self.linter or Linter())
        server = self._server(feed)
        async with server:
            task_status.started(server.server_address)
            try:
                await server.serve_forever()
            except Exception:
                log.exception("the monitor has failed; the servers go on")

    def _server(self, feed: Feed) -> trioserver.BaseServer:
        is_path = isinstance(self.address, (str, bytes, os.PathLike))
        base = trioserver.UnixStreamServer if is_path else trioserver.TCPServer
        body = {"feed": feed, "default": Query(self.interval, self.most)}
        made: trioserver.BaseServer = type("MonitorServer", (_Served, base), body)(
            self.address, _Viewer, limits=LIMITS, timeouts=TIMEOUTS
        )
        return made


def _is_here(host: object) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False
