"""Metrics: what observers hear is counted, under few labels, none of which is a client's."""

import json
import re
from pathlib import Path

import prometheus_client
import pytest
import trio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families
from support import hold
from support.scenes import table

import trioserver
from trioserver.monitoring import OpenTelemetryObserver, PrometheusCollector, PrometheusObserver
from trioserver.testing import MemoryServer

EXAMPLES = Path(__file__).parents[2] / "examples" / "monitoring"


async def echo(request, client_address, server):
    """Answers once."""
    await request.send_all(await request.receive_some())


async def fails(request, client_address, server):
    """Has an error of its own."""
    raise ZeroDivisionError


class Verifies(MemoryServer):
    """One that refuses all."""

    async def verify_request(self, request, client_address):
        return False


def exported(registry):
    """What Prometheus gets: values by name and labels."""
    text = prometheus_client.generate_latest(registry).decode()
    families = text_string_to_metric_families(text)
    samples = [
        ((sample.name, *sorted(sample.labels.items())), sample.value)
        for family in families
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    ]
    assert len(dict(samples)) == len(samples), "Prometheus takes no sample twice"
    return dict(samples)


def value(found, name, **labels):
    """The value of one of them; 0 if there is none."""
    return found.get((f"trioserver_{name}", *sorted(labels.items())), 0)


REQUEST = {"server": "s", "listener": "memory:1", "mode": "task"}


async def served(handler, observer, kind=MemoryServer, clients=2):
    """Serve so many clients, each of whom sends three bytes."""
    async with kind(("memory", 1), handler, observers=[observer]).serving(grace=0) as server:
        for _ in range(clients):
            stream = await server.connect()
            await stream.send_all(b"abc")
            await trio.testing.wait_all_tasks_blocked()
            if handler is not hold:
                await stream.aclose()


@table(
    "handler, kind, outcome, bytes_sent, failed",
    {
        "completed": (echo, MemoryServer, "completed", 3, 0),
        "failed": (fails, MemoryServer, "failed", 0, 0),
        "cancelled": (hold, MemoryServer, "cancelled", 0, 0),
        "refused on arrival": (echo, Verifies, "refused", 0, 2),
    },
)
async def test_prometheus(handler, kind, outcome, bytes_sent, failed):
    """Each request is counted once, where it has ended, with its duration and its bytes."""
    registry = prometheus_client.CollectorRegistry()
    await served(handler, PrometheusObserver("s", registry), kind)
    found, ended = exported(registry), {**REQUEST, "outcome": outcome}
    assert value(found, "requests_started_total", **REQUEST) == 2 - failed
    assert value(found, "requests_total", **ended) == 2 - failed
    assert value(found, "failed_arrivals_total", **ended) == failed
    assert value(found, "request_duration_seconds_count", **ended) == 2 - failed
    assert value(found, "sent_bytes_total", **REQUEST) == bytes_sent * 2
    assert value(found, "active_requests", **REQUEST) == 0
    assert value(found, "listening", server="s") == 0
    assert "client" not in str(found)


async def test_prometheus_while_it_serves():
    """Gauges say what is so now; two observers on one registry share their collectors."""
    registry = prometheus_client.CollectorRegistry()
    observers = [PrometheusObserver(name, registry) for name in ("s", "other")]
    async with MemoryServer(("memory", 1), hold, observers=observers[:1]).serving(grace=0) as it:
        await it.connect()
        await trio.testing.wait_all_tasks_blocked()
        assert value(exported(registry), "active_requests", **REQUEST) == 1
        assert value(exported(registry), "listening", server="s") == 1
    assert value(exported(registry), "active_requests", **REQUEST) == 0


async def test_opentelemetry():
    """The same, by the API of OpenTelemetry, under the names that are usual there."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    await served(echo, OpenTelemetryObserver("s", provider))
    found = {}
    for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            number = getattr(point, "value", getattr(point, "count", None))
            found[metric.name, tuple(sorted(point.attributes.items()))] = number
    request = tuple(sorted(REQUEST.items()))
    ended = tuple(sorted({**REQUEST, "outcome": "completed"}.items()))
    assert found["trioserver.requests", ended] == 2
    assert found["trioserver.request.duration", ended] == 2
    assert found["trioserver.active_requests", request] == 0
    assert found["trioserver.sent", request] == 6
    assert found["trioserver.listening", (("server", "s"),)] == 0
    provider.shutdown()


async def test_collector():
    """It reads what servers have counted when it is asked, and not when it is registered.

    Those of one class have the same labels, so they are one sample: Prometheus takes none twice.
    """
    registry = prometheus_client.CollectorRegistry()
    servers = [MemoryServer(("memory", port), echo) for port in (1, 2)]
    registry.register(PrometheusCollector([*servers, Verifies(("memory", 3), echo)]))
    for server in servers:
        async with server.serving():
            async with await server.connect() as stream:
                await stream.send_all(b"abc")
                assert await stream.receive_some() == b"abc"
    found = exported(registry)
    assert value(found, "requests_total", server="MemoryServer", outcome="completed") == 2
    assert value(found, "accepted_total", server="MemoryServer") == 2
    assert value(found, "accepted_total", server="Verifies") == 0
    assert value(found, "received_bytes_total", server="MemoryServer") == 6


@pytest.mark.parametrize("kind", [PrometheusObserver, OpenTelemetryObserver])
def test_name_that_is_refused(kind):
    """A server has a name, or nobody could tell whose numbers they are."""
    for name in ("", None, MemoryServer(("memory", 1), hold)):
        with pytest.raises(TypeError, match="server must be a name"):
            kind(name)


@pytest.mark.parametrize(
    ("library", "make", "extra"),
    [
        ("prometheus_client", lambda: PrometheusObserver("s"), "prometheus"),
        ("prometheus_client", lambda: PrometheusCollector([]), "prometheus"),
        ("opentelemetry", lambda: OpenTelemetryObserver("s"), "otel"),
    ],
    ids=["an observer", "a collector", "OpenTelemetry"],
)
def test_without_the_library(library, make, extra, monkeypatch):
    """Who has not installed it is told what to install."""
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'trioserver[{extra}]'")):
        make()


async def test_dashboard():
    """The dashboard asks for metrics and labels that there are."""
    registry = prometheus_client.CollectorRegistry()
    observer = PrometheusObserver("s", registry)
    await served(echo, observer)
    await served(echo, observer, Verifies)
    observer.request_refused("x", "y")
    observer.accept_failed(("127.0.0.1", 1), OSError())
    known = {}
    text = prometheus_client.generate_latest(registry).decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(asked) >= 8
    for expression in asked:
        names = re.findall(r"trioserver_\w+", expression)
        assert names
        for name in names:
            assert name in known, name
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        labels = {it.strip() for group in grouped for it in group.split(",")}
        labels |= set(re.findall(r"(\w+)=~?\"", expression))
        assert labels <= set().union(*(known[name] for name in names)), expression
    assert "password" not in str(dashboard)
    assert trioserver.Outcome.FAILED.value in str(dashboard)
