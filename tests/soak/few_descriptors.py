"""Run the tests with few descriptors, and see which cannot.

    python tests/soak/few_descriptors.py                        # the whole suite, with 64
    python tests/soak/few_descriptors.py tests/engine/test_drain.py --limit 40

Each file has a pytest of its own. What fails is tried again by itself, with the
usual limit and with this one: what fails there, too, fails for another reason,
and what passes here, after a failed test; both are only named. Those that really
need more descriptors are listed below, with the reason; another one that does is
a leak, or a test that holds on to what it is done with.
"""

from __future__ import annotations

import argparse
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree as ET

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

NEED_MORE = {
    "processes_test.py::test_bounded": "8 workers and 9 clients",
    "test_drain.py::test_more_has_a_last_look_at_the_kernel_on_tcp": "30 clients at once",
    "test_drain_every_step.py::test_drain_of_fifty_after_some_steps_on_tcp": "50 clients at once",
    "test_examples.py::test_xmlrpc_server_is_called": "many clients at once",
    "test_hostile_clients.py::test_clients_that_connect_and_vanish": "50 clients at once",
    "test_hostile_clients.py::test_clients_that_vanish_in_setup": "100 clients at once",
    "test_process_crashes.py::test_starts_that_fail_together": "8 workers at once",
    "test_process_crashes.py::test_workers_that_end_together": "8 workers at once",
    "test_process_life.py::test_cancelled_while_they_wait_for_a_worker": "200 clients at once",
    "test_process_life.py::test_ctrl_c_while_a_worker_is_busy": "a flood of short ones",
    "test_promises.py::test_queue_that_overflowed": "200 clients at once",
    "test_thread_cancel.py::test_many_requests_cancelled_at_once": "30 clients at once",
    "test_thread_drain.py::test_many_connections_end_at_once": "40 clients at once",
    "test_thread_drain.py::test_request_that_begins_at_the_very_moment_is_answered": (
        "30 clients at once"
    ),
    "test_threads.py::test_stuck_threads_leave_others_alone": "40 clients at once",
}
"""Tests that hold many descriptors on purpose, both ends of each connection, and why."""


def failures(where: Iterable[str], limit: int | None) -> tuple[int, set[str]]:
    """How many tests there were, and which of them failed, as ``file.py::test``."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={results}", *where]
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: prepare(limit),
        )
        if not results.exists():
            raise RuntimeError(
                f"pytest did not get far: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        cases = list(ET.parse(results).iter("testcase"))  # noqa: S314  (our own)
    failed = {
        name_of(case)
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    return len(cases), failed


def name_of(case: ET.Element) -> str:
    """``file.py::test``, without parameters."""
    file = case.attrib["classname"].rpartition(".")[2] or "?"
    return f"{file}.py::{case.attrib['name'].partition('[')[0]}"


def prepare(limit: int | None) -> None:
    """Have at most so many descriptors, and heed Ctrl-C, which a shell's background job ignores."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if limit is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", help="test files; all of them if none is given")
    parser.add_argument("--limit", type=int, default=64, help="descriptors")
    parser.add_argument("--fast", action="store_true", help="without the slow tests")
    options = parser.parse_args()
    files = options.files or sorted(map(str, (ROOT / "tests").glob("test_*.py")))
    which = [] if options.fast else ["-m", ""]
    unexpected = 0
    print("  tests  failed  seconds  file")
    for file in files:
        began = time.monotonic()
        count, failed = failures([str(Path(file).resolve()), *which], options.limit)
        print(f"{count:>7} {len(failed):>7} {time.monotonic() - began:>8.1f}  {Path(file).name}")
        for name in sorted(failed):
            if name in NEED_MORE:
                reason = f"needs more: {NEED_MORE[name]}"
            else:
                test = [f"{Path(file).resolve()}::{name.partition('::')[2]}"]
                if failures(test, None)[1]:
                    reason = "fails with the usual limit, too"
                elif not failures(test, options.limit)[1]:
                    reason = "passes alone: those before it hold on to theirs"
                else:
                    reason = "UNEXPECTED"
                    unexpected += 1
            print(f"{'':>25} {name}: {reason}", flush=True)
    print(f"FAILED: {unexpected} need more descriptors" if unexpected else "ok")
    sys.exit(1 if unexpected else 0)


if __name__ == "__main__":
    main()
