"""See what looking costs: a snapshot of a server, the tree of tasks, and their texts.

    python tests/bench/views.py
    python tests/bench/views.py --requests 1000 --rounds 5

Prints the least milliseconds of the processor that each took in so many rounds, in a process
whose server has so many requests, in memory. It says nothing of other machines; bounds for two
cores are beside.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable

import trio
import trio.testing

from trioserver.monitoring import as_text, task_tree
from trioserver.testing import MemoryServer

BOUNDS = {"snapshot": 30, "its text": 50, "plain tasks": 15, "with stacks": 60}
"""Milliseconds: the first two of 10 000 requests, the others of 5 000 tasks in a scope each."""


async def hold(request: object, client_address: object, server: object) -> None:
    """Keep the slot."""
    with trio.move_on_after(3600):
        await trio.sleep_forever()


def least(look: Callable[[], object], rounds: int) -> float:
    """The least milliseconds that a look took; garbage of the one before is gone."""
    took = []
    for _ in range(rounds):
        gc.collect()
        before = time.process_time()
        look()
        took.append(time.process_time() - before)
    return min(took) * 1000


async def measure_tasks(tasks: int, rounds: int) -> None:
    """Print what a tree takes of so many tasks, each of which waits in a scope with a deadline."""
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(hold, None, None, None)
        await trio.testing.wait_all_tasks_blocked()
        print(f"{tasks} tasks that are no requests")
        tell("plain tasks", lambda: task_tree(stacks=False), rounds)
        tell("with stacks", task_tree, rounds)
        nursery.cancel_scope.cancel(reason="measured")


def tell(name: str, look: Callable[[], object], rounds: int) -> None:
    """Measure a look, and print it beside its bound."""
    bound = f"  (at most {BOUNDS[name]})" if name in BOUNDS else ""
    print(f"{name:17} {least(look, rounds):8.1f} ms{bound}")


async def measure(requests: int, rounds: int) -> None:
    """Print what looks take while a server has so many requests."""
    from trioserver import Limits  # noqa: PLC0415  (the server's module is loaded by now)

    server = MemoryServer(("memory", 1), hold, limits=Limits(requests=requests))
    async with server.serving(grace=0):
        for _ in range(requests):
            await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        snapshot, tree = server.snapshot(), task_tree()
        looks: dict[str, Callable[[], object]] = {
            "snapshot": server.snapshot,
            "its text": lambda: as_text(snapshot),
            "its JSON": lambda: json.dumps(snapshot.as_json()),
            "tree": lambda: task_tree(stacks=False),
            "its stacks, too": task_tree,
            "text of the tree": lambda: as_text(tree),
        }
        print(f"{len(snapshot.requests)} requests, {len(tree.tasks)} tasks")
        for name, look in looks.items():
            tell(name, look, rounds)


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[5_000, 10_000])
    parser.add_argument("--rounds", type=int, default=15)
    typed = parser.parse_args()
    for requests in typed.requests:
        trio.run(measure, requests, typed.rounds)
    trio.run(measure_tasks, 5_000, typed.rounds)


if __name__ == "__main__":
    main()
