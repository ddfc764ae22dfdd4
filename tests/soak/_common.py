"""What the soaks share: servers to put under load, clients in other processes, and figures.

A soak is a program: it prints what it measured, says which promise was broken,
and ends with status 1 if one was. Linux: it reads /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import os
import resource
import socketserver
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import attrs
import trio
from trio.lowlevel import in_trio_run

import trioserver

KINDS = ("tcp", "unix", "udp", "unix-datagram")
STREAM_KINDS = KINDS[:2]
STEPS = 20

# Servers ---------------------------------------------------------------------------


class Upper(trioserver.StreamRequestHandler):
    """Answers every line with its upper-case form; fails when asked to."""

    async def handle(self) -> None:
        async for line in self.rfile:
            if line == b"fail\n":
                raise ValueError("asked for")
            await self.wfile.write(line.upper())


class UpperInThread(socketserver.StreamRequestHandler):
    """The same, for a thread."""

    def handle(self) -> None:
        for line in self.rfile:
            if line == b"fail\n":
                raise ValueError("asked for")
            self.wfile.write(line.upper())


@attrs.define(eq=False)
class Tally(trioserver.Observer):
    """Counts how requests ended."""

    outcomes: Counter[str] = attrs.field(factory=Counter)

    def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
        self.outcomes[str(outcome)] += 1

    def __str__(self) -> str:
        return in_words(self.outcomes)


def make_server(
    kind: str, folder: str, handler: Any, *, threads: bool = False, **fields: Any
) -> Any:
    """A server of one of `KINDS` that counts its handlers' errors instead of logging them.

    With ``threads``, one of `STREAM_KINDS` whose handlers run in threads.
    """
    address = ("127.0.0.1", 0) if kind in {"tcp", "udp"} else f"{folder}/s"
    server = _QUIET[f"{kind}-threads" if threads else kind](address, handler, **fields)
    server.handler_errors = Counter()
    return server


def _quiet(base: Any) -> Any:
    class Quiet(base):  # type: ignore[misc]
        async def handle_error(self, request: Any, client_address: Any) -> None:
            self.handler_errors[type(sys.exception()).__name__] += 1

    return Quiet


_QUIET = {
    "tcp": _quiet(trioserver.TCPServer),
    "unix": _quiet(trioserver.UnixStreamServer),
    "udp": _quiet(trioserver.UDPServer),
    "unix-datagram": _quiet(trioserver.UnixDatagramServer),
    "tcp-threads": _quiet(trioserver.ThreadingTCPServer),
    "unix-threads": _quiet(trioserver.ThreadingUnixStreamServer),
}


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for it; `trio.TooSlowError` after so long."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  (there is no event for it)
            await trio.sleep(0.001)


def is_quiet(server: trioserver.BaseServer) -> bool:
    """Whether every connection so far is closed."""
    now = server.statistics()
    return not (now.active or now.lingering)


def arrived(now: trioserver.Statistics) -> int:
    """How many clients the server has noticed, datagrams that it could not take included."""
    return now.accepted + now.accept_errors + now.dropped


# Clients ---------------------------------------------------------------------------


@attrs.define(eq=False)
class Clients:
    """A process of `_clients.py`, which does as it is told, one thing at a time."""

    _process: subprocess.Popen[bytes]
    _orders: trio.lowlevel.FdStream
    _answers: trio.lowlevel.FdStream

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[Clients]:
        """The process, inside the block."""
        # No run_process: that starts it in a thread, which would be counted.
        script = str(Path(__file__).with_name("_clients.py"))
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, script], stdin=pipe, stdout=pipe) as process:  # noqa: ASYNC220
            assert process.stdin is not None
            assert process.stdout is not None
            orders = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
            answers = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
            process.stdin.close()
            process.stdout.close()
            try:
                async with orders, answers:
                    yield cls(process, orders, answers)
            finally:
                process.kill()

    async def do(self, what: str, **facts: Any) -> Any:
        """Have it do one thing; what came of it."""
        await self.begin(what, **facts)
        return await self.result()

    async def begin(self, what: str, **facts: Any) -> None:
        """Have it begin one thing."""
        await self._orders.send_all(json.dumps({"do": what, **facts}).encode() + b"\n")

    async def result(self) -> Any:
        """What came of what was begun."""
        line = b""
        while not line.endswith(b"\n"):
            data = await self._answers.receive_some()
            if not data:
                raise EOFError("the clients' process has ended")
            line += data
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(f"among the clients:\n{answer['error']}")
        return answer["result"]


# Figures ---------------------------------------------------------------------------


@attrs.frozen
class Sample:
    """What this process holds at one instant, and for how much work."""

    done: int
    seconds: float
    descriptors: int
    tasks: int
    threads: int
    blocks: int
    kib: int

    @classmethod
    def take(cls, done: int, seconds: float) -> Sample:
        """Look now, after the C library has given back the pages that nobody uses.

        Without that, one unlucky page in the middle of the heap is a step up.
        """
        if gc.isenabled():
            gc.collect()
        _trim(0)
        return cls(
            done=done,
            seconds=seconds,
            descriptors=descriptors(),
            tasks=trio.lowlevel.current_statistics().tasks_living if in_trio_run() else 0,
            threads=threading.active_count(),
            blocks=sys.getallocatedblocks(),
            kib=resident_kib(),
        )

    HEADER = "     done  seconds  fds  tasks  threads    blocks       KiB"

    def __str__(self) -> str:
        return (
            f"{self.done:>9} {self.seconds:>8.1f} {self.descriptors:>4} {self.tasks:>6}"
            f" {self.threads:>8} {self.blocks:>9} {self.kib:>9}"
        )


_trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda padding: None)  # glibc's


def descriptors() -> int:
    """How many descriptors this process has open, and one to look."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def resident_kib() -> int:
    """Memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (rss,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(rss)


@attrs.define
class Growth:
    """Samples of a process that does the same again and again, and what a thousand times cost.

    Args:
      unit: what is done.
      warm_up: of how many nothing is asked.
      enough: of fewer, nothing is asked of the memory: a page more or less is
        the whole slope.
      most_kib: per 1000, for the process.
      most_blocks: per 1000, for what Python allocates, which is more exact.
    """

    unit: str
    warm_up: int
    enough: int
    most_kib: float = 1.0
    most_blocks: float = 30.0
    _samples: list[Sample] = attrs.field(factory=list)
    _began: float = attrs.field(factory=time.monotonic)

    def sample(self, done: int) -> None:
        """Take one, and print it."""
        if not self._samples:
            print(Sample.HEADER)
        self._samples.append(Sample.take(done, time.monotonic() - self._began))
        print(self._samples[-1], flush=True)

    def judge(self, verdict: Verdict) -> None:
        """Print what a thousand cost, and promise that it is nothing."""
        first, last = self._samples[0], self._samples[-1]
        for name in ("descriptors", "tasks", "threads"):
            before, after = getattr(first, name), getattr(last, name)
            verdict.promise(before == after, f"{name}: {before} before, {after} after")
        warm = [it for it in self._samples if it.done >= min(self.warm_up, last.done / 2)]
        rate = (last.done - first.done) / (last.seconds - first.seconds)
        kib, blocks = _slope(warm, "kib"), _slope(warm, "blocks")
        print(f"{rate:.0f} {self.unit} a second")
        print(f"{blocks:+.2f} blocks per 1000 {self.unit} (at most {self.most_blocks:g})")
        print(f"{kib:+.2f} KiB per 1000 {self.unit} (at most {self.most_kib:g})")
        if last.done < self.enough:
            print(f"too few to judge the memory by: it takes {self.enough}")
            return
        verdict.promise(blocks <= self.most_blocks, "Python's memory does not grow")
        verdict.promise(kib <= self.most_kib, "the process does not grow")


def _slope(samples: Sequence[Sample], name: str) -> float:
    """By how much a figure grows per 1000."""
    thousands = [sample.done / 1000 for sample in samples]
    return statistics.linear_regression(thousands, [getattr(it, name) for it in samples]).slope


def in_words(counts: Counter[str]) -> str:
    """The most common first."""
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def in_ms(seconds: Sequence[float]) -> str:
    """Latencies: the median, the 99th percentile, the worst."""
    ordered = sorted(seconds)
    picked = (ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1])
    return "{:.2f} / {:.2f} / {:.2f} ms".format(*(1000 * it for it in picked))


@attrs.frozen
class Latencies:
    """How long clients waited for their answers.

    Args:
      answers: as the clients' ``ask`` tells them.
    """

    answers: list[list[float]]

    def __str__(self) -> str:
        return in_ms([seconds for _, seconds, _ in self.answers])

    @property
    def undisturbed(self) -> list[float]:
        """Without the time in which other programs had the processors: what is promised on."""
        return [max(0.0, seconds - waited) for _, seconds, waited in self.answers]

    @property
    def worst(self) -> float:
        """Of the undisturbed."""
        return max(self.undisturbed)

    @property
    def worst_at(self) -> float:
        """When that client came, in seconds."""
        return self.answers[self.undisturbed.index(self.worst)][0]


def table(*rows: tuple[str, object]) -> None:
    """Print figures, each with its name."""
    width = max(len(name) for name, _ in rows)
    for name, figure in rows:
        print(f"  {name:<{width}}  {figure}")


async def in_steps(
    growth: Growth,
    verdict: Verdict,
    server: trioserver.BaseServer,
    tally: Tally,
    *,
    count: int,
    do: str,
    kind: str,
    threads: bool = False,
    **facts: Any,
) -> tuple[Counter[str], trioserver.Statistics]:
    """Serve ``count`` clients, one after the other, with a sample every 5 %.

    Promises that the server noticed each, and has one record for each request.

    Args:
      do: what the clients are told.
      kind: one of `KINDS`.
      threads: whether handlers run in threads. What they share is made for the first
        of them, and idle ones are kept for ten seconds, so neither is counted.
      facts: what else it takes, but for the address and the numbers of the clients.

    Returns:
      The sum of what came of it among the clients, and the server's counts.
    """
    totals: Counter[str] = Counter()
    step, nudges = count // STEPS, 0
    async with Clients.start() as clients, server.serving():
        where = {"kind": kind, "address": server.server_address}
        if threads:
            totals += Counter(await clients.do(do, **facts, **where, first=count, count=1))
            nudges = 1
            await until(lambda: is_quiet(server))
            await until(lambda: threading.active_count() == 1)
        growth.sample(0)
        for done in range(step, step * STEPS + 1, step):
            totals += Counter(await clients.do(do, **facts, **where, first=done - step, count=step))
            while not await all_done(server, done + nudges) and kind == "udp" and nudges < 100:
                await clients.do("nudge", **where)
                nudges += 1
            if threads and done == count:
                await until(lambda: threading.active_count() == 1)
            growth.sample(done)
        counts = server.statistics()
    verdict.promise(
        tally.outcomes.total() == counts.accepted and arrived(counts) == done + nudges,
        f"one record each: {done} clients, {nudges} more datagrams, {counts}, {tally}",
    )
    return totals, counts


async def all_done(server: trioserver.BaseServer, count: int) -> bool:
    """Wait a while until so many clients have come and are done with; whether they are."""
    with trio.move_on_after(5):
        await until(lambda: arrived(server.statistics()) >= count and is_quiet(server))
        return True
    return False


# The end -----------------------------------------------------------------------------


@attrs.define
class Verdict:
    """Which promises were broken."""

    broken: list[str] = attrs.field(factory=list)

    def promise(self, kept: bool, promise: str) -> None:
        """Note it unless it was kept."""
        if not kept:
            self.broken.append(promise)


Soak = Callable[[argparse.Namespace, str, Verdict], Awaitable[None]]
PlainSoak = Callable[[argparse.Namespace, str, Verdict], None]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every soak takes."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--gc-off", action="store_true", help="without the garbage collector")
    return parser


def run(soak: Soak, options: argparse.Namespace) -> NoReturn:
    """Run it inside Trio, say what is broken, and exit."""
    run_plain(lambda *facts: trio.run(soak, *facts), options)


def run_plain(soak: PlainSoak, options: argparse.Namespace) -> NoReturn:
    """The same for one that calls `trio.run` by itself."""
    verdict = Verdict()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, trio {trio.__version__}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.gc_off:
        gc.disable()
    with tempfile.TemporaryDirectory() as folder, unraisable() as errors:
        soak(options, folder, verdict)
        gc.collect()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    verdict.promise(not errors, f"nothing unraisable: {errors}")
    for promise in verdict.broken:
        print(f"BROKEN: {promise}")
    print("FAILED" if verdict.broken else "ok")
    sys.exit(1 if verdict.broken else 0)


@contextmanager
def unraisable() -> Iterator[list[str]]:
    """What was raised where nobody could catch it: in a destructor, or a warning made an error."""
    errors: list[str] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda hook: errors.append(f"{hook.err_msg}: {hook.exc_value!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield errors
    finally:
        sys.unraisablehook = before


class Records(logging.Handler):
    """What was logged, as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {record.getMessage()}")

    @classmethod
    @contextmanager
    def kept(cls) -> Iterator[Records]:
        """Inside the block."""
        records = cls()
        logging.getLogger().addHandler(records)
        try:
            yield records
        finally:
            logging.getLogger().removeHandler(records)
