"""What is measured: the same things by each library, under the names that are usual there."""

from __future__ import annotations

from typing import Protocol

import attrs

import trioserver

from .._text.words import describe

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of durations in seconds: those of Prometheus's clients, and longer ones."""


class Meters(Protocol):
    """The instruments of one library."""

    def started(self, labels: Labels) -> None:
        """Count a request that begins."""

    def finished(self, labels: Labels, record: trioserver.RequestRecord) -> None:
        """Count a request that has begun, and has ended."""

    def arrival_failed(self, labels: Labels, record: trioserver.RequestRecord) -> None:
        """Count one that has ended before."""

    def refused(self, server: str) -> None:
        """Count a client that was turned away."""

    def accept_failed(self, server: str, listener: str) -> None:
        """Count an accept that has failed."""

    def is_listening(self, server: str, *, listens: bool) -> None:
        """Tell whether a server lets clients in."""


@attrs.frozen
class Labels:
    """What tells requests apart; there are few of them, whoever the clients are."""

    server: str
    listener: str
    mode: str
    outcome: str = ""


class MeteringObserver(trioserver.Observer):
    """Tells what it hears to the instruments of a library.

    An observer is told of events, and not of which server: so each server has one of its own.
    """

    def __init__(self, server: str, meters: Meters) -> None:
        if not server or type(server) is not str:
            raise TypeError(f"server must be a name for the server, not {server!r}")
        self._server = server
        self._meters = meters

    def server_listening(self, addresses: tuple[object, ...]) -> None:
        """The server listens."""
        self._meters.is_listening(self._server, listens=True)

    def request_started(self, info: trioserver.RequestInfo) -> None:
        """A request begins."""
        self._meters.started(self._labels(info))

    def request_finished(
        self,
        info: trioserver.RequestInfo,
        outcome: trioserver.Outcome,
        record: trioserver.RequestRecord,
    ) -> None:
        """A request has ended."""
        self._meters.finished(self._labels(info, outcome.value), record)

    def arrival_failed(
        self, info: trioserver.RequestInfo, record: trioserver.RequestRecord
    ) -> None:
        """A request has ended before it began."""
        self._meters.arrival_failed(self._labels(info, record.outcome.value), record)

    def request_refused(self, client_address: object, reason: str) -> None:
        """A client was turned away."""
        self._meters.refused(self._server)

    def accept_failed(self, server_address: object, error: OSError) -> None:
        """An accept has failed."""
        self._meters.accept_failed(self._server, describe(server_address))

    def draining(self, grace: float) -> None:
        """The server has stopped accepting."""
        self._meters.is_listening(self._server, listens=False)

    def server_closed(self, report: trioserver.ShutdownReport) -> None:
        """The run is over."""
        self._meters.is_listening(self._server, listens=False)

    def _labels(self, info: trioserver.RequestInfo, outcome: str = "") -> Labels:
        return Labels(self._server, describe(info.server_address), info.mode, outcome)
