"""Metrics for OpenTelemetry, by its API alone: which SDK exports them, the program says."""

from __future__ import annotations

from typing import Any

import trioserver

from .meters import BUCKETS, Labels, MeteringObserver


class OpenTelemetryObserver(MeteringObserver):
    """Counts what happens to requests, for OpenTelemetry; needs ``opentelemetry-api``.

    ``TCPServer(..., observers=[OpenTelemetryObserver("upper")])``.

    Args:
      server: what the attribute ``server`` says.
      meter_provider: an OpenTelemetry ``MeterProvider``; None is the one of the whole process.

    Raises:
      ImportError: there is no ``opentelemetry-api``: install ``trioserver[otel]``.
      TypeError: ``server`` is no name.
    """

    def __init__(self, server: str, meter_provider: Any = None) -> None:
        try:
            from opentelemetry import metrics  # noqa: PLC0415  (an extra)
        except ImportError as error:
            message = "this needs opentelemetry-api: pip install 'trioserver[otel]'"
            raise ImportError(message) from error
        meter = metrics.get_meter("trioserver", meter_provider=meter_provider)
        super().__init__(server, _Meters(meter))


class _Meters:
    """The instruments of one meter; of those that are asked for twice, the SDK gives the same."""

    def __init__(self, meter: Any) -> None:
        count = meter.create_counter
        self._started = count("trioserver.requests.started", "{request}", "Requests begun")
        self._ended = count("trioserver.requests", "{request}", "Requests that have ended")
        self._failed = count("trioserver.failed_arrivals", "{request}", "Ended before they began")
        self._refused = count("trioserver.refused", "{client}", "Clients turned away")
        self._accept_errors = count("trioserver.accept_errors", "{error}", "Failed accepts")
        self._received = count("trioserver.received", "By", "Bytes received")
        self._sent = count("trioserver.sent", "By", "Bytes sent")
        self._active = meter.create_up_down_counter(
            "trioserver.active_requests", "{request}", "Requests begun, and not ended"
        )
        self._duration = meter.create_histogram(
            "trioserver.request.duration",
            *("s", "From accept to outcome"),
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._listening = meter.create_up_down_counter(
            "trioserver.listening", "{server}", "Servers that let clients in"
        )
        self._listens: dict[str, bool] = {}

    def started(self, labels: Labels) -> None:
        request = _of_request(labels)
        self._started.add(1, request)
        self._active.add(1, request)

    def finished(self, labels: Labels, record: trioserver.RequestRecord) -> None:
        request = _of_request(labels)
        ends = {**request, "outcome": labels.outcome}
        self._active.add(-1, request)
        self._ended.add(1, ends)
        self._duration.record(record.duration, ends)
        self._received.add(record.bytes_received, request)
        self._sent.add(record.bytes_sent, request)

    def arrival_failed(self, labels: Labels, record: trioserver.RequestRecord) -> None:
        self._failed.add(1, {**_of_request(labels), "outcome": labels.outcome})

    def refused(self, server: str) -> None:
        self._refused.add(1, {"server": server})

    def accept_failed(self, server: str, listener: str) -> None:
        self._accept_errors.add(1, {"server": server, "listener": listener})

    def is_listening(self, server: str, *, listens: bool) -> None:
        was = self._listens.get(server, False)
        self._listens[server] = listens
        if was is not listens:
            self._listening.add(1 if listens else -1, {"server": server})


def _of_request(labels: Labels) -> dict[str, str]:
    return {"server": labels.server, "listener": labels.listener, "mode": labels.mode}
