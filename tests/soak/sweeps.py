"""Every fault after every step, on every kind of server, and every pair of faults.

    python tests/soak/sweeps.py                    # seeds 0, 1 and 2: a quarter of an hour
    python tests/soak/sweeps.py --seeds 7 --only udp --only pairs
    python tests/soak/sweeps.py --list

The suite tries a sample of these: see test_sweep.py, test_sweep_arrival.py,
test_sweep_threads.py and test_sweep_processes.py for what must hold. Prints for each sweep
its points (the steps of the scenario, in all schedules), the runs, the findings and the
seconds, and what was found. Exits 1 if anything was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

sys.path.extend(
    str(Path(__file__).resolve().parents[1] / folder)
    for folder in ("", "engine", "sockets", "threads", "processes")
)

import test_handing_over as successions
import test_sweep as starts
import test_sweep_arrival as arrivals
import test_sweep_processes as processes
import test_sweep_threads as threads
from support import sweeping as streams
from support import sweeping_datagrams as datagrams
from support.sweeping import NAMES, Serving, Sweepable, cancel, ctrl_c, shut_down, shut_down_at_once

import trioserver
from trioserver.testing import ResetClient

STREAMS = {"memory": streams.InMemory, "tcp": streams.OnTCP, "unix": streams.OnUnix}
DATAGRAMS = {
    "memory-datagrams": datagrams.PacketsInMemory,
    "udp": datagrams.OnUDP,
    "udp-wildcard": datagrams.OnWildcard,
    "unix-datagrams": datagrams.PacketsOnUnix,
}
THREADS = {"threads-tcp": threads.ThreadsOnTCP, "threads-unix": threads.ThreadsOnUnix}


class SoonerOnTCP(processes.ProcessesOnTCP):
    """Whose clock jumps after three seconds: what follows a reset waits for it in every run."""

    JUMP_AFTER = 3.0


class SoonerOnUnix(processes.ProcessesOnUnix):
    """The same, on a Unix socket."""

    JUMP_AFTER = 3.0


PROCESSES = {
    "processes-tcp": (processes.ProcessesOnTCP, SoonerOnTCP),
    "processes-unix": (processes.ProcessesOnUnix, SoonerOnUnix),
}
FEW = trioserver.Limits(requests=2, per_client=2)


@attrs.frozen
class Sweep:
    """One sweep.

    Attributes:
      name: what to call it: which server, which handler, which fault.
      run: sweeps over one schedule; how many runs it took.
      points: how many steps there are in one schedule.
    """

    name: str
    run: Callable[[int], int]
    points: Callable[[int], int]


def of(name: str, setting: Sweepable, *, every: int = 1) -> Sweep:
    """A sweep over a scenario; of long ones only every so many steps."""

    def run(seed: int) -> int:
        return setting.sweep(seeds=(seed,), every=every)

    return Sweep(name, run, lambda seed: setting.one(seed=seed).steps)


def of_one_request(name: str, setting: Serving, cut: Any = None) -> Sweep:
    """A sweep over the steps of one request."""

    def run(seed: int) -> int:
        return setting.sweep_one_request(seeds=(seed,), cut=cut)

    return Sweep(f"{name} cancel_request", run, run)


def all_sweeps() -> Iterator[Sweep]:
    """All of them."""
    yield from of_streams()
    yield from of_listening()
    yield from of_arrivals()
    yield from of_datagrams()
    yield from of_threads()
    yield from of_processes()
    yield from of_starts()


def of_streams() -> Iterator[Sweep]:
    """Streams, handled by tasks."""
    for where, kind in STREAMS.items():
        for handler in (streams.Careful, streams.HangsUp, streams.Idling, streams.Buffering):
            setting = partial(streams.Setting, kind, handler=handler)
            name = f"{where} {handler.__name__}"
            yield of(f"{name} cancel", setting([cancel]))
            yield of(f"{name} shutdown", setting([shut_down], gentle=True))
            yield of(f"{name} shutdown-at-once", setting([shut_down_at_once]))
            yield of(f"{name} ctrl-c", setting([ctrl_c]))
            yield of(f"{name} reset", setting([ResetClient()], gentle=True))
            yield of_one_request(name, setting())
        few = partial(streams.Setting, kind, limits=FEW)
        yield of(f"{where} few-slots cancel", few([cancel]))
        yield of(f"{where} few-slots shutdown", few([shut_down], gentle=True))
        yield of(f"{where} block cancel", few([cancel], serve=streams.serve_in_a_block))
        yield of(f"{where} handle_request cancel", few([cancel], serve=streams.serve_one_by_one))
        for name, faults in pairs_of_faults():
            yield of(f"{where} {name}", streams.Setting(kind, faults))


def of_listening() -> Iterator[Sweep]:
    """Servers that are suspended for a while, or handed over to the next one."""
    for where, kind in {**STREAMS, **THREADS}.items():
        handler = threads.Careful if where in THREADS else streams.Careful
        suspended = streams.Setting(kind, [streams.suspend_a_while], handler, gentle=True)
        yield of(f"{where} suspend", suspended)
    for where in ("tcp", "unix"):
        yield of(f"{where} hand-over", successions.Succession(STREAMS[where]))


def of_arrivals() -> Iterator[Sweep]:
    """Streams that wait before they are served."""
    for kind in arrivals.KINDS + arrivals.BY_TLS:
        setting, name = partial(streams.Setting, kind), kind.__name__
        yield of(f"{name} cancel", setting([cancel]))
        yield of(f"{name} shutdown", setting([shut_down], gentle=True))
        yield of(f"{name} shutdown-at-once", setting([shut_down_at_once]))
        yield of(f"{name} ctrl-c", setting([ctrl_c]))
        yield of(f"{name} reset", setting([ResetClient()], gentle=True))
        yield of_one_request(name, setting(), cut=arrivals.cut_in_its_arrival)


def of_datagrams() -> Iterator[Sweep]:
    """Datagrams, handled by tasks."""
    for where, kind in DATAGRAMS.items():
        for handler in (datagrams.Writes, datagrams.Sends):
            setting = partial(datagrams.Setting, kind, handler=handler)
            name = f"{where} {handler.__name__}"
            yield of(f"{name} cancel", setting([cancel]))
            yield of(f"{name} shutdown", setting([shut_down], gentle=True))
            yield of(f"{name} shutdown-at-once", setting([shut_down_at_once]))
            yield of(f"{name} ctrl-c", setting([ctrl_c]))
            yield of(f"{name} client-leaves", setting([streams.leave], gentle=True))
            yield of_one_request(name, setting([shut_down]))
        few = partial(datagrams.Setting, kind, limits=trioserver.Limits(requests=2))
        yield of(f"{where} few-slots cancel", few([cancel]))
        yield of(f"{where} few-slots shutdown", few([shut_down], gentle=True))
        yield of(f"{where} block cancel", few([cancel], serve=streams.serve_in_a_block))
        yield of(f"{where} handle_request cancel", few([cancel], serve=streams.serve_one_by_one))
        for name, faults in pairs_of_faults():
            yield of(f"{where} {name}", datagrams.Setting(kind, faults))


def of_threads() -> Iterator[Sweep]:
    """Streams, handled by threads, whose own steps nobody schedules."""
    for where, kind in THREADS.items():
        for handler in (threads.Careful, threads.Calls):
            setting = partial(streams.Setting, kind, handler=handler)
            name = f"{where} {handler.__name__}"
            yield of(f"{name} cancel", setting([cancel]))
            yield of(f"{name} shutdown", setting([shut_down], gentle=True))
            yield of(f"{name} shutdown-at-once", setting([shut_down_at_once]))
            yield of(f"{name} ctrl-c", setting([ctrl_c]))
            yield of(f"{name} reset", setting([ResetClient()], gentle=True))
        few = partial(streams.Setting, kind, handler=threads.Careful, limits=FEW)
        yield of(f"{where} few-slots cancel", few([cancel]))
        yield of(f"{where} few-slots shutdown", few([shut_down], gentle=True))
        for name, faults in pairs_of_faults():
            setting = streams.Setting(kind, faults, threads.Careful)
            yield of(f"{where} {name}", setting)


def of_processes() -> Iterator[Sweep]:
    """Streams, handled by worker processes, of which each run starts its own."""
    for where, (kind, sooner) in PROCESSES.items():
        setting = partial(streams.Setting, kind, handler=processes.Answers)
        yield of(f"{where} cancel", setting([cancel]))
        yield of(f"{where} shutdown", setting([shut_down], gentle=True))
        yield of(f"{where} shutdown-at-once", setting([shut_down_at_once]))
        yield of(f"{where} ctrl-c", setting([ctrl_c]))
        reset = streams.Setting(sooner, [ResetClient()], processes.Answers, gentle=True)
        yield of(f"{where} reset", reset)
        for name, faults in pairs_of_faults():
            yield of(f"{where} {name}", setting(faults), every=9)


def of_starts() -> Iterator[Sweep]:
    """Servers that are only about to start."""
    for kind in (
        *(starts.SlowTCP, starts.SlowUDP),
        *(starts.SlowUnix, starts.SlowUnixDatagrams),
    ):
        for fault in (cancel, ctrl_c, shut_down):
            yield of(f"start {kind.__name__} {NAMES[fault]}", starts.Start(kind, [fault]))


def pairs_of_faults() -> Iterator[tuple[str, list[Any]]]:
    """What may come after a shutdown."""
    for second in (cancel, ctrl_c, shut_down_at_once):
        yield f"pairs shutdown-{NAMES[second]}", [shut_down, second]


@attrs.define
class Figures:
    """What it came to."""

    points: int = 0
    runs: int = 0
    findings: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.points:6} points {self.runs:7} runs {self.findings:3} findings"
            f" {self.seconds:7.1f} s"
        )


def do(sweep: Sweep, seeds: Sequence[int]) -> Figures:
    """Run a sweep; what it finds is printed."""
    figures, began = Figures(), time.perf_counter()
    for seed in seeds:
        try:
            figures.points += sweep.points(seed)
            figures.runs += sweep.run(seed)
        except AssertionError as found:
            figures.findings += 1  # the first one of this schedule; the others may follow from it
            print(f"FOUND: {sweep.name}: {found}")
    figures.seconds = time.perf_counter() - began
    return figures


def main() -> None:
    """Run the sweeps that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which schedules")
    parser.add_argument(
        "--only", action="append", default=[], help="only sweeps with this word in their name"
    )
    parser.add_argument("--list", action="store_true", help="only print their names")
    options = parser.parse_args()
    chosen = [it for it in all_sweeps() if all(word in it.name.split() for word in options.only)]
    if not chosen:
        parser.error("no such sweep")
    total = Figures()
    for sweep in chosen:
        if options.list:
            print(sweep.name)
            continue
        figures = do(sweep, options.seeds)
        print(f"{sweep.name:45} {figures}", flush=True)
        total.points += figures.points
        total.runs += figures.runs
        total.findings += figures.findings
        total.seconds += figures.seconds
    if not options.list:
        print(f"{f'{len(chosen)} sweeps':45} {total}")
    sys.exit(1 if total.findings else 0)


if __name__ == "__main__":
    main()
