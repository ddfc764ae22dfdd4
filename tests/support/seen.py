"""Servers, requests and tasks as values, for tests of what shows them."""

import math

import trioserver
from trioserver.monitoring import Cancellation, ScopeView, TaskTree, TaskView

HOSTILE = "[bold red]x[/] \x1b]0;gone\x07\x1b[2J\n\x9b5m\u202egnp.exe\u2066 :smile: <b>&amp;"
"""Markup, control characters of both kinds, a new line, and characters that turn text around."""

LISTENER = ("127.0.0.1", 9999)


def a_request(number, client=None, *, age=1.0, **more):
    """One request of a server."""
    info = trioserver.RequestInfo(
        id=number,
        client_address=("127.0.0.1", 50_000 + number) if client is None else client,
        server_address=more.pop("listener", LISTENER),
        started=0.0,
        started_at=1_700_000_000.0,
    )
    values = {"state": "reading", "time_left": math.inf, "bytes_received": 0, "bytes_sent": 0}
    return trioserver.RequestSnapshot(info=info, age=age, **{**values, **more})


def a_worker(pid, *requests, **more):
    """One worker of a server."""
    values = {"generation": 1, "state": "serving", "age": 0.5}
    counts = trioserver.Statistics(accepted=len(requests), active=len(requests))
    return trioserver.WorkerSnapshot(
        pid=pid, requests=requests, statistics=counts, **{**values, **more}
    )


def a_server(*requests, **more):
    """One server."""
    listener = trioserver.ListenerSnapshot(address=LISTENER, accepting=True)
    values = {"name": "TCPServer", "state": "serving", "uptime": 192.0, "listeners": (listener,)}
    counts = trioserver.Statistics(accepted=len(requests), active=len(requests))
    return trioserver.ServerSnapshot(
        requests=requests, **{**values, "statistics": counts, "slots": 100, **more}
    )


def a_tree(name="handler"):
    """Three tasks: the root, a server's, and one that works for a request."""
    cancelled = ScopeView(cancelled=Cancellation("it is too old", "explicit"))
    return TaskTree(
        10.0,
        (
            TaskView(1, None, None, 0, "main"),
            TaskView(2, 1, 0, 1, "serve", (ScopeView(12.5, shield=True, nursery=0),)),
            TaskView(3, 2, 0, 2, name, (cancelled,), a_request(7).info),
        ),
    )
