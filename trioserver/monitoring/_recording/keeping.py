"""A flight recorder: what has happened last is written when something goes wrong."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeAlias

import attrs
import trio

from .recording import Recording, json_of
from .timeline import timeline
from .triggers import Triggers

log = logging.getLogger("trioserver.monitoring")

MakeRecording: TypeAlias = Callable[[], Recording]
"""Makes a recording of what was noted, in whatever thread: it takes a while."""

TRIGGERS = ("failed", "cut", "blocked")
AT_MOST = 10
"""Episodes that are written, unless somebody says otherwise."""
GAP = 60.0
LAST_WORDS = 2.0
"""Seconds for which it waits for servers to end when it is cancelled."""
WRITING = 10.0
"""Seconds that an episode may take to be written, be it cancelled meanwhile or not."""


@attrs.define(eq=False)
class Keeping:
    """Writes a recording for each episode; see `Recorder.keep`."""

    folder: Path
    on: Collection[str]
    at_most: float = attrs.field(kw_only=True)
    gap: float = attrs.field(kw_only=True)
    slow: float = attrs.field(kw_only=True)
    _pulled: list[str] = attrs.field(factory=list, init=False)  # one at most: of one episode
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _last: float = attrs.field(default=-math.inf, init=False)
    _written: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        unknown = [self.on] if isinstance(self.on, str) else sorted({*self.on} - {*TRIGGERS})
        if unknown:
            raise ValueError(f"on must be some of {', '.join(TRIGGERS)}, not {unknown!r}")
        for name, least in {"at_most": 1, "gap": 0, "slow": 0}.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)!r}")

    async def run(self, triggers: Triggers, take: Callable[[], MakeRecording]) -> None:
        """Wait for episodes and write them, until it is cancelled."""
        with triggers.told_to(self._hear, self.slow):
            try:
                while True:
                    await self._changed.wait()
                    await self._write_one(take())
            finally:
                if "cut" in self.on:  # servers end beside it, and tell only then who was cut
                    with trio.move_on_after(LAST_WORDS, shield=True):
                        await triggers.wait_closed()
                if self._pulled:
                    await self._write_one(take())

    def _hear(self, trigger: str) -> None:
        """Remember it, if it is another episode."""
        now = trio.current_time()
        is_meant = trigger in self.on or trigger == "slow"
        is_another = not self._pulled and now - self._last >= self.gap
        if is_meant and is_another and self._written < self.at_most:
            self._last = now
            self._pulled.append(trigger)
            self._changed.set()

    async def _write_one(self, make: MakeRecording) -> None:
        trigger = self._pulled.pop()
        self._changed = trio.Event()
        self._written += 1
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self.folder / f"{stamp}-{self._written:03}-{trigger}"
        write_it = partial(write, make, path, title=path.name)
        try:
            # A disk may hang: then the thread is left alone, and its files are whole or not there.
            with trio.fail_after(WRITING, shield=True):
                await trio.to_thread.run_sync(write_it, abandon_on_cancel=True)
        except Exception:
            log.exception("a recording (%s) could not be written to %s", trigger, self.folder)
            return
        last = "" if self._written < self.at_most else ", the last one"
        log.warning("recorded: %s.html%s", path, last)


def write(make: MakeRecording, path: Path, *, title: str) -> None:
    """Write a recording as ``path.html`` and ``path.json``, each of them whole or not at all."""
    recording = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {".json": "".join(json_of(recording)), ".html": timeline(recording, title=title)}
    for ending, text in texts.items():
        part = path.with_name(f"{path.name}{ending}.part")
        part.write_text(text, "utf-8")
        part.replace(path.with_name(f"{path.name}{ending}"))
