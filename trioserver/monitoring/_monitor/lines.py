"""The monitor for programs: a line of JSON each, both ways.

::

    {"watch": {"interval": 1.0, "most": 256, "sort": "age", "filter": ""}}   a state each second
    {"show": {"server": 0, "request": 7}}                                    one request
    {"control": {"do": "cancel", "server": 0, "request": 7}}                 an order

What makes no sense is answered by ``{"type": "error", "message": ...}``, and nothing ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import trio

import trioserver

from .feed import Beat, Feed, with_dropped
from .orders import detail_of, obey
from .query import BadQuery, Query, query_from

_EXPECTED = 'an object with "watch", "show" or "control" was expected'


@attrs.define(eq=False)
class Conversation:
    """What goes on with one viewer.

    Attributes:
      feed: where states come from.
      default: what is watched unless the viewer says otherwise.
    """

    feed: Feed
    default: Query
    _request: trioserver.Connection
    _lines: trioserver.RequestReader
    _query: Query | None = None
    _wants: trio.Event = attrs.field(factory=trio.Event)
    _sending: trio.Lock = attrs.field(factory=trio.Lock)

    async def hold(self, first: bytes) -> None:
        """Converse until the viewer has left, beginning with its first line."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._show_states)
            await self._answer(first)
            async for line in self._lines:
                await self._answer(line)
            nursery.cancel_scope.cancel(reason="the viewer has left")

    async def _show_states(self) -> None:
        await self._wants.wait()
        beat = Beat(self.feed)
        while True:
            query = self._query or self.default
            await self._send(with_dropped(self.feed.state(query), beat.dropped))
            await beat.next(query)

    async def _answer(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            answer = self._answer_to(line)
        except BadQuery as error:
            answer = {"type": "error", "message": str(error)}
        if answer is not None:
            await self._send(json.dumps(answer, separators=(",", ":")).encode())

    def _answer_to(self, line: bytes) -> Mapping[str, Any] | None:
        try:
            sent = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadQuery(f"{_EXPECTED}, as a line of JSON: {error}") from error
        match sent:
            case {"watch": facts}:
                self._query = query_from(facts, self.default)
                self._wants.set()
                return None
            case {"show": facts}:
                return detail_of(self.feed.servers, facts)
            case {"control": facts}:
                return obey(self.feed.servers, facts, allowed=self.feed.control)
            case _:
                raise BadQuery(_EXPECTED)

    async def _send(self, line: bytes) -> None:
        async with self._sending:
            await self._request.send_all(line + b"\n")
