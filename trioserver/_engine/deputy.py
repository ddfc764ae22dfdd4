"""Who serves what a run has bound, in its stead: the workers of a program."""

from __future__ import annotations

from typing import Protocol

from .._facts.events import ShutdownReport, Statistics
from .._facts.snapshots import WorkerSnapshot


class Deputy(Protocol):
    """What a run tells, and asks, whoever serves in its stead."""

    @property
    def is_serving(self) -> bool:
        """Whether clients are let in."""

    def drain(self, seconds: float) -> None:
        """Begin the drain, and close the run's listeners. Of several the earliest end holds."""

    def suspend(self) -> None:
        """Accept nobody until `resume`."""

    def resume(self) -> None:
        """Accept again."""

    def reload(self) -> None:
        """Have the server's TLS context made anew."""

    def statistics(self) -> Statistics:
        """The counts, as they were told last."""

    def snapshots(self) -> tuple[WorkerSnapshot, ...]:
        """Each of those who serve, as it was when it last told."""

    def report(self, reason: str) -> ShutdownReport:
        """How it has ended."""
