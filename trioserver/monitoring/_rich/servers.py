"""A server as a tree of rich: where it listens, its workers, and tables of their requests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

import trioserver

from .._text.servers import counts_in_words
from .._text.words import describe, duration, printable, size

_STATES = {
    "serving": "green",
    "starting": "cyan",
    "suspended": "yellow",
    "draining": "yellow",
    "unbound": "dim",
    "bound": "cyan",
}
_COLUMNS = ("id", "client", "listener", "mode", "state", "age", "left", "in", "out")
_NUMBERS = {"id", "age", "left", "in", "out"}


def several_as_rich(servers: Sequence[trioserver.ServerSnapshot], most: int) -> Group:
    """Each server, one below the other."""
    return Group(*(tree_of_server(server, most) for server in servers))


def tree_of_server(server: trioserver.ServerSnapshot, most: int) -> Tree:
    """A server, with at most ``most`` requests of each process that serves it."""
    tree = Tree(
        Text.assemble(
            (printable(server.name), "bold"),
            "  ",
            _state(server.state),
            f"  up {duration(server.uptime)}  {counts_in_words(server.statistics)}",
        )
    )
    for listener in server.listeners:
        state = "accepting" if listener.accepting else "not accepting"
        queued = f"  {listener.queued} in the queue" if listener.queued else ""
        tree.add(Text(f"{describe(listener.address)}  {state}{queued}"))
    _add_requests(tree, server.requests, most)
    for worker in server.workers:
        branch = tree.add(
            Text.assemble(
                f"worker {worker.pid}  ",
                _state(worker.state),
                f"  generation {worker.generation}  {counts_in_words(worker.statistics)}",
            )
        )
        _add_requests(branch, worker.requests, most)
    return tree


def _state(state: str) -> tuple[str, str]:
    return printable(state), _STATES.get(state, "")


def _add_requests(branch: Tree, requests: Sequence[trioserver.RequestSnapshot], most: int) -> None:
    shown = requests[:most]
    if shown:
        branch.add(_table(shown))
    if len(shown) < len(requests):
        branch.add(Text(f"and {len(requests) - len(shown)} more", style="dim"))


def _table(requests: Sequence[trioserver.RequestSnapshot]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=True)
    for request in requests:
        info = request.info
        left = request.time_left
        cells = (
            str(info.id),
            describe(info.client_address),
            describe(info.server_address),
            printable(info.mode),
            printable(request.state),
            f"{request.age:.1f} s",
            "-" if left == math.inf else f"{left:.1f} s",
            size(request.bytes_received),
            size(request.bytes_sent),
        )
        table.add_row(*map(Text, cells))
    return table
