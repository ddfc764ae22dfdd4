"""A server that follows a script: what its client has to say, and what it says to the client.

The rules this file keeps:

* All that is expected has to come, and nothing else: what is missing, and what is too
  much, is an `Unmet`, however the input was cut into segments on its way.
* That a step is not met is found as soon as it is certain, never by waiting for more.
* Only the client's steps are expected of it. It may give up during a pause, and hang up
  before a reply has reached it.
* An end that comes from the test, and not from the client, meets nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from trio.lowlevel import ParkingLot, checkpoint

import trioserver

from .._running.clock import jumping_clock
from .._running.exchanges import A_SECOND
from .._running.open_server import open_test_server
from .._running.server import RunningServer
from .pattern import Mismatch, end_of_match, literals_of
from .steps import Step, check_steps, excerpt

A_DAY = 86_400.0
"""Seconds that a script waits for its client: longer than tests last, so that it is the
client's patience that is tested. On a clock that jumps, a script and a client that wait for
each other still end at once."""


class Unmet(AssertionError):
    """A step of a script was not met; says which, what was wanted, and what came."""


class _Conversation:
    """One connection, which is led through the script."""

    def __init__(
        self, request: trioserver.Connection, steps: Sequence[Step], changed: ParkingLot
    ) -> None:
        self._request = request
        self._steps = steps
        self._changed = changed
        self._position = 0
        self._input = bytearray()
        self._has_ended = False
        self._has_failed = False
        self._following = trio.CancelScope()
        self._parting = trio.CancelScope()
        request.idle_timeout = request.write_timeout = A_DAY

    async def follow(self) -> None:
        """Go through the steps, and part."""
        try:
            with self._following:
                await self._take_steps()
            if self._wanted is None:
                await self._part()
            self._request.close()
        except Exception:
            self._has_failed = True
            raise
        finally:
            self._has_ended = True
            self._changed.unpark_all()

    @property
    def is_awaited(self) -> bool:
        """Whether it goes on, and more is expected of its client."""
        return self._wanted is not None and not self._has_ended

    def unmet(self) -> str | None:
        """What is still expected of the client, in words; None if nothing is, or that was told."""
        wanted = self._wanted
        if wanted is None or self._has_failed:
            return None
        at = self._position
        came = self._received() or "nothing"
        what = f"got {came}" if wanted == at else f"the script was at {self._name(at)}"
        return self._not_met(wanted, f"{what}, and the test was over")

    def end(self) -> None:
        """Follow no further: the test is over."""
        self._following.cancel(reason="the test is over")
        self._parting.deadline = min(self._parting.deadline, trio.current_time() + A_SECOND / 2)

    # Steps ---------------------------------------------------------------------

    async def _take_steps(self) -> None:
        while self._position < len(self._steps):
            step = self._steps[self._position]
            match step.kind:
                case "expect":
                    await self._expect(step.argument)
                case "expect_eof":
                    await self._expect_eof()
                case "reply":
                    await self._say(self._request.send_all(step.argument))
                case "eof":
                    await self._say(self._request.send_eof())
                case "pause":
                    await trio.sleep(step.argument)
            self._position += 1
            self._changed.unpark_all()

    async def _expect(self, pattern: bytes) -> None:
        literals = literals_of(pattern)
        try:
            while (end := end_of_match(literals, self._input)) is None:
                if not await self._receive():
                    raise self._ended_by("the end of the input")
        except Mismatch:
            raise self._unmet(f"got {self._received()}") from None
        del self._input[:end]

    async def _expect_eof(self) -> None:
        if self._input or await self._receive():
            raise self._unmet(f"got {self._received()}")

    async def _receive(self) -> bool:
        """Have more of the input; False at its end."""
        try:
            data = await self._request.receive_some()
        except trioserver.PeerGone as error:
            raise self._ended_by("a reset by the client") from error
        except trioserver.IdleTimeout as error:
            raise self._ended_by(f"nothing for {A_DAY:g} s") from error
        except trioserver.Draining as error:
            raise self._unmet("got nothing, and the server was stopped") from error
        self._input += data
        return bool(data)

    async def _say(self, saying: Awaitable[None]) -> None:
        """Send, or end the output."""
        try:
            # Whether a send notices that the client is gone is up to chance.
            with suppress(trioserver.PeerGone):
                await saying
        except trioserver.WriteTimeout as error:
            raise self._unmet(f"the client has taken nothing for {A_DAY:g} s") from error

    async def _part(self) -> None:
        """End the output; then the client has nothing more to say.

        The server would do the same by itself, and ignore what comes.
        """
        if not self._input:
            if not self._following.cancelled_caught:  # perhaps in the middle of a reply
                await self._say(self._request.send_eof())
            until = trio.current_time() + self._request.timeouts.linger
            self._parting.deadline = min(self._parting.deadline, until)
            with self._parting, suppress(trioserver.PeerGone):
                self._input += await self._request.receive_some()
        if self._input:
            last = self._name(len(self._steps) - 1)
            raise Unmet(f"after {last}, nothing more is expected: got {self._received()}")

    # In words ------------------------------------------------------------------

    @property
    def _wanted(self) -> int | None:
        """The next step that is expected of the client; None if none is."""
        rest = range(self._position, len(self._steps))
        return next((at for at in rest if self._steps[at].is_the_clients), None)

    def _received(self) -> str:
        return excerpt(self._input) if self._input else ""

    def _name(self, position: int) -> str:
        return f"step {position + 1} of {len(self._steps)}, {self._steps[position]}"

    def _not_met(self, position: int, what: str) -> str:
        return f"{self._name(position)}, is not met: {what}"

    def _unmet(self, what: str) -> Unmet:
        return Unmet(self._not_met(self._position, what))

    def _ended_by(self, what: str) -> Unmet:
        received = self._received()
        return self._unmet(f"got {received} and then {what}" if received else f"got {what}")


class _Script:
    """The handler of a scripted server."""

    def __init__(self, steps: Sequence[Step]) -> None:
        check_steps(steps)
        self._steps = steps
        self._conversations: list[_Conversation] = []
        self._changed = ParkingLot()

    def __repr__(self) -> str:
        return f"<a script: {', '.join(map(str, self._steps))}>"

    async def __call__(
        self, request: trioserver.Connection, client_address: Any, server: Any
    ) -> None:
        conversation = _Conversation(request, self._steps, self._changed)
        self._conversations.append(conversation)
        await conversation.follow()

    async def settle(self) -> None:
        """Let what is on its way arrive; a second at most, and only if somebody waits for it."""
        await checkpoint()
        with trio.move_on_after(A_SECOND):
            while not self._conversations or any(one.is_awaited for one in self._conversations):
                await self._changed.park()

    def unmet(self) -> list[str]:
        """What is still expected, in words."""
        if not self._conversations:
            steps = f"{len(self._steps)} steps" if len(self._steps) > 1 else "1 step"
            return [f"nobody has connected; the first of {steps} is {self._steps[0]}"]
        return [unmet for one in self._conversations if (unmet := one.unmet()) is not None]

    def end(self) -> None:
        """Stop following the script."""
        for conversation in self._conversations:
            conversation.end()


def _check_fit(steps: Sequence[Step], options: dict[str, Any]) -> None:
    """Refuse where a script cannot be followed."""
    transport = options.get("transport", "memory")
    if transport == "udp":
        raise ValueError("a script needs a stream: transport must not be 'udp'")
    stands_still = transport != "memory" and jumping_clock() is not None
    for step in steps:
        if step.kind == "pause" and stands_still and options.get("autojump") == "wait":
            raise RuntimeError(
                f"{step} would never end: this test runs on a clock with autojump, which stands"
                " still while a request is open (autojump='wait'); use the real clock, or memory"
            )


@asynccontextmanager
async def open_scripted_server(*steps: Step, **options: Any) -> AsyncIterator[RunningServer]:
    """Serve a script in a block, to test a client; gives a `RunningServer`.

    Every connection is led through the script from its first step. After the last one
    the server ends its output, and closes when the client has ended its own, or
    ``Timeouts.linger`` seconds later; what the client says meanwhile is not expected.

    Args:
      steps: what `expect`, `expect_eof`, `reply`, `pause` and `eof` give; at least one.
      options: those of `open_test_server`. A script needs a stream.

    When the block is left, what is on its way has a second to arrive, by the Trio
    clock; then the connections are closed, and that meets no step.

    Raises:
      Unmet: at the end of the block, steps were expected that have not come; or nobody has
        connected. If the block itself fails, this is a note on what it raises.
      ExceptionGroup: of `Unmet`, with an error for each connection that went another way.
      ValueError: a script without a step, or one that nobody can follow.
      RuntimeError: a pause would never end, on a clock that stands still.

    Also what `open_test_server` raises. ``strict=False`` has no step fail the test.
    """
    script = _Script(steps)
    _check_fit(steps, options)
    unmet: list[str] = []
    try:
        async with open_test_server(script, **options) as server:
            try:
                yield server
                with suppress(RuntimeError):  # there are none, nor can be
                    server.faults.clear()
                await script.settle()
            finally:
                unmet = script.unmet()  # now: closing the clients would change it
                script.end()
    except BaseException as error:
        for one in unmet:
            error.add_note(one)
        raise
    if unmet and options.get("strict", True):
        raise Unmet("\n".join(unmet))
