r"""One scene, told by a table: a client that does this and that at its instants, and what it gets.

::

    @table("scene", {
        "GS-03: a connection that is idle at the drain is closed at once": Scene(
            Upper, {0: b"one\n"}, drain_at=60, gets=b"ONE\n", ends_at=60, outcomes=["drained"]
        ),
    })
    async def test_between_requests(scene: Scene, autojump_clock: MockClock) -> None:
        await scene.play()

The sentence of a row is its promise, and the id under which it fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio

import trioserver
from trioserver.testing import MemoryServer

from . import Witness

A_LONG_TIME = 400 * 86_400.0
"""Virtual seconds after which a scene that does not end fails: more than a year."""


def table(names: str, rows: Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parameters of a test, a row for each promise; tuples for several names."""
    return pytest.mark.parametrize(names, list(rows.values()), ids=list(rows))


@attrs.frozen(eq=False)
class Played:
    """What came of a scene.

    Attributes:
      server: who served.
      got: what the client got, all of it.
      ended_at: the instant at which it got the end, or an error in its place.
      error: that error.
      witness: the server's events.
    """

    server: Any
    got: bytes
    ended_at: float
    error: trio.BrokenResourceError | None
    witness: Witness


@attrs.frozen(eq=False)
class Scene:
    """A client of a server in memory, on the virtual clock, and what has to come of it.

    Attributes:
      handler: who serves it.
      does: what the client does at which instant: sends bytes, or what a
        function of it does.
      drain_at: when the server is shut down, after what the client does then; None: at the end.
      grace: of that shutdown, in seconds.
      fields: of the server.
      kind: what server.
      gets: all that the client gets; None: whatever it is.
      breaks: whether it gets an error in the place of the end.
      ends_at: the instant at which the client has the end; None: whenever it is.
      outcomes: of all requests, in order; None: whatever they are.
      reason: what the last record's reason has in it.
    """

    handler: Any
    does: Mapping[float, Any] = attrs.field(factory=dict)
    drain_at: float | None = None
    grace: float = 5
    fields: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)
    kind: Any = attrs.field(default=MemoryServer, kw_only=True)
    gets: bytes | None = attrs.field(default=None, kw_only=True)
    breaks: bool = attrs.field(default=False, kw_only=True)
    ends_at: float | None = attrs.field(default=None, kw_only=True)
    outcomes: Sequence[str] | None = attrs.field(default=None, kw_only=True)
    reason: str = attrs.field(default="", kw_only=True)

    async def play(self) -> Played:
        """Play it, and compare; what came of it is for what a row cannot say."""
        witness = Witness()
        server = self.kind(("memory", 1), self.handler, **self.fields)
        server = attrs.evolve(server, observers=[*server.observers, witness])
        with trio.fail_after(A_LONG_TIME):
            async with server.serving():
                client = await server.connect()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._act, server, client)
                    played = Played(server, *await hear(client), witness)
                    nursery.cancel_scope.cancel()
                client.close()
                if self.drain_at is not None:
                    await server.wait_closed()
        self._compare(played)
        return played

    async def _act(self, server: trioserver.BaseServer, client: Any) -> None:
        drain_at = math.inf if self.drain_at is None else self.drain_at
        for instant in sorted({*self.does, drain_at} - {math.inf}):
            await trio.sleep_until(instant)
            if instant in self.does:
                await act(client, self.does[instant])
            if instant == drain_at:
                server.shutdown(self.grace)

    def _compare(self, played: Played) -> None:
        assert (played.error is not None) == self.breaks, played.error
        if self.gets is not None:
            assert played.got == self.gets
        if self.ends_at is not None:
            assert played.ended_at == self.ends_at
        if self.outcomes is not None:
            assert played.witness.outcomes == list(self.outcomes)
        if self.reason:
            assert self.reason in str(played.witness.records[-1].reason)


async def act(client: Any, what: Any) -> None:
    """Do what a row says: send bytes, or call a function of the client."""
    # Suppressed: the server has ended it, which the row knows.
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await (client.send_all(what) if isinstance(what, bytes) else what(client))


async def hear(client: Any) -> tuple[bytes, float, trio.BrokenResourceError | None]:
    """All that a client gets, when it has the end, and the error in the end's place."""
    got, error = b"", None
    try:
        while data := await client.receive_some():
            got += data
    except trio.BrokenResourceError as broken:
        error = broken
    return got, trio.current_time(), error
