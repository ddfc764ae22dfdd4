"""Metrics for Prometheus, by its own client library: an observer, and a collector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import trioserver

from .meters import BUCKETS, Labels, MeteringObserver

_OF_REQUESTS = ("server", "listener", "mode")
_OF_ENDS = (*_OF_REQUESTS, "outcome")


class PrometheusObserver(MeteringObserver):
    """Counts what happens to requests, for Prometheus; needs ``prometheus-client``.

    ``TCPServer(..., observers=[PrometheusObserver("upper")])``. Observers with the same registry
    and namespace share their collectors. With workers, ``prometheus_client`` adds up what each
    process has counted if ``PROMETHEUS_MULTIPROC_DIR`` is set, as its docs say.

    Args:
      server: what the label ``server`` says.
      registry: a ``CollectorRegistry``; None is the one of the whole process.
      namespace: what the names of all metrics begin with.

    Raises:
      ImportError: there is no ``prometheus-client``: install ``trioserver[prometheus]``.
      TypeError: ``server`` is no name.
      ValueError: the registry has a metric of such a name already, of somebody else.
    """

    def __init__(self, server: str, registry: Any = None, *, namespace: str = "trioserver") -> None:
        client = _client()
        super().__init__(server, _meters_of(registry or client.REGISTRY, namespace))


class PrometheusCollector:
    """The counts of servers, read from them when Prometheus asks; nothing is done for a request.

    ``registry.register(PrometheusCollector(servers))``. It has no durations, which only an observer
    hears. It counts what workers have done, too, in the process that has started them. It is to be
    asked in Trio's thread, or in another one while Trio runs: it reads numbers, which may be a
    moment old.

    Args:
      servers: which; the label ``server`` is the class of each, where several of one are added
        up, and ``listener`` there is none.
      namespace: what the names of all metrics begin with.
    """

    def __init__(
        self, servers: Sequence[trioserver.BaseServer], *, namespace: str = "trioserver"
    ) -> None:
        self._client = _client()
        self._servers = tuple(servers)
        self._namespace = namespace

    def describe(self) -> list[Any]:
        """Nothing, so that registering it asks no server for anything."""
        return []

    def collect(self) -> Iterator[Any]:
        """The metrics, as they are now."""
        from prometheus_client import core  # noqa: PLC0415  (an extra)

        counts: dict[str, list[trioserver.Statistics]] = {}
        for server in self._servers:
            counts.setdefault(type(server).__name__, []).append(server.statistics())
        ends = self._family(
            core.CounterMetricFamily, "requests", "Requests that have ended", "outcome"
        )
        for name, found in counts.items():
            for outcome in trioserver.Outcome:
                number = sum(one.outcomes.get(outcome, 0) for one in found)
                ends.add_metric([name, outcome.value], number)
        yield ends
        for field, (kind, metric, said) in {
            "accepted": ("Counter", "accepted", "Connections, or datagrams, that became requests"),
            "refused": ("Counter", "refused", "Clients turned away before they became requests"),
            "accept_errors": ("Counter", "accept_errors", "Errors that an accept has met"),
            "arrivals_failed": ("Counter", "failed_arrivals", "Requests ended before they began"),
            "bytes_received": ("Counter", "received_bytes", "Bytes received, of ended requests"),
            "bytes_sent": ("Counter", "sent_bytes", "Bytes sent, of ended requests"),
            "active": ("Gauge", "active_requests", "Requests that hold a slot"),
        }.items():
            family = self._family(getattr(core, f"{kind}MetricFamily"), metric, said)
            for name, found in counts.items():
                family.add_metric([name], sum(getattr(one, field) for one in found))
            yield family

    def _family(self, kind: Any, name: str, said: str, *labels: str) -> Any:
        return kind(f"{self._namespace}_{name}", said, labels=["server", *labels])


class _Meters:
    """The collectors in one registry."""

    def __init__(self, registry: Any, namespace: str) -> None:
        client = _client()
        common = {"namespace": namespace, "registry": registry}
        self._started = client.Counter(
            "requests_started", "Requests that have begun", _OF_REQUESTS, **common
        )
        self._ended = client.Counter("requests", "Requests that have ended", _OF_ENDS, **common)
        self._active = client.Gauge(
            *("active_requests", "Requests that have begun, and not ended", _OF_REQUESTS),
            **common,
            multiprocess_mode="livesum",
        )
        self._duration = client.Histogram(
            *("request_duration_seconds", "From accept to outcome", _OF_ENDS),
            **common,
            buckets=BUCKETS,
        )
        self._received = client.Counter("received_bytes", "Received", _OF_REQUESTS, **common)
        self._sent = client.Counter("sent_bytes", "Sent", _OF_REQUESTS, **common)
        self._failed = client.Counter(
            "failed_arrivals", "Requests that have ended before they began", _OF_ENDS, **common
        )
        self._refused = client.Counter("refused", "Clients turned away", ("server",), **common)
        self._accept_errors = client.Counter(
            "accept_errors", "Accepts that have failed", ("server", "listener"), **common
        )
        self._listening = client.Gauge(
            *("listening", "Whether it lets clients in", ("server",)),
            **common,
            multiprocess_mode="livemax",
        )

    def started(self, labels: Labels) -> None:
        request = (labels.server, labels.listener, labels.mode)
        self._started.labels(*request).inc()
        self._active.labels(*request).inc()

    def finished(self, labels: Labels, record: trioserver.RequestRecord) -> None:
        request = (labels.server, labels.listener, labels.mode)
        self._active.labels(*request).dec()
        self._ended.labels(*request, labels.outcome).inc()
        self._duration.labels(*request, labels.outcome).observe(record.duration)
        self._received.labels(*request).inc(record.bytes_received)
        self._sent.labels(*request).inc(record.bytes_sent)

    def arrival_failed(self, labels: Labels, record: trioserver.RequestRecord) -> None:
        ends = (labels.server, labels.listener, labels.mode, labels.outcome)
        self._failed.labels(*ends).inc()

    def refused(self, server: str) -> None:
        self._refused.labels(server).inc()

    def accept_failed(self, server: str, listener: str) -> None:
        self._accept_errors.labels(server, listener).inc()

    def is_listening(self, server: str, *, listens: bool) -> None:
        self._listening.labels(server).set(int(listens))


_made: WeakKeyDictionary[Any, dict[str, _Meters]] = WeakKeyDictionary()


def _meters_of(registry: Any, namespace: str) -> _Meters:
    of_registry = _made.setdefault(registry, {})
    if namespace not in of_registry:
        of_registry[namespace] = _Meters(registry, namespace)
    return of_registry[namespace]


def _client() -> Any:
    try:
        import prometheus_client  # noqa: PLC0415  (an extra)
    except ImportError as error:
        message = "this needs prometheus-client: pip install 'trioserver[prometheus]'"
        raise ImportError(message) from error
    return prometheus_client
