"""A server to practise on: each line that a client sends makes another thing go wrong.

    python examples/monitoring/stuck.py [PORT]

Connect with `nc localhost 9999`, and send `wait`, `swallow`, `clean`, `leak` or `block`; then read
what the program logs, or have it show its tasks: `kill -USR1 PID`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from functools import partial

import attrs
import trio

import trioserver
from trioserver.monitoring import Linter, Watchdog, log_findings


class Practice(trioserver.TCPServer):
    tasks: list[trio.Nursery] = attrs.field(factory=list)  # where handlers leave some running

    async def serve_forever(
        self,
        poll_interval: float = 0.5,
        *,
        task_status: trio.TaskStatus[Practice] = trio.TASK_STATUS_IGNORED,
    ) -> trioserver.ShutdownReport:
        linter = Linter(no_deadline=5)  # an hour is too long to practise
        async with trio.open_nursery() as nursery:
            self.tasks.append(nursery)
            with Watchdog(0.5, on_blocked=linter.note_blocked):
                nursery.start_soon(partial(log_findings, self, linter=linter))
                report = await super().serve_forever(poll_interval, task_status=task_status)
            nursery.cancel_scope.cancel(reason="the server has ended")
        return report


class Stuck(trioserver.StreamRequestHandler):
    server: Practice

    async def handle(self) -> None:
        async for line in self.rfile:
            match line.strip():
                case b"wait":
                    await self.wait_for_what_never_comes()
                case b"swallow":
                    await self.swallow_the_cancellation()
                case b"clean":
                    await self.clean_up_slowly()
                case b"leak":
                    self.leave_a_child_behind()
                case b"block":
                    time.sleep(2)  # noqa: ASYNC251  (this is what is wrong)
                case _:
                    await self.wfile.write(b"wait, swallow, clean, leak or block?\n")
                    continue
            await self.wfile.write(b"done\n")

    async def wait_for_what_never_comes(self) -> None:
        await trio.Event().wait()

    async def swallow_the_cancellation(self) -> None:
        end = trio.current_time() + 4
        with trio.move_on_after(0.5):
            while trio.current_time() < end:
                with contextlib.suppress(BaseException):  # Cancelled is none of its business
                    await trio.sleep(0.1)

    async def clean_up_slowly(self) -> None:
        with trio.move_on_after(0.5):
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):  # without a deadline
                    await trio.sleep(8)

    def leave_a_child_behind(self) -> None:
        self.server.tasks[-1].start_soon(self.talk_to_nobody)

    async def talk_to_nobody(self) -> None:
        await trio.sleep_forever()


def make_server(port: int) -> Practice:
    return Practice(("localhost", port), Stuck)


async def main(
    port: int, *, task_status: trio.TaskStatus[Practice] = trio.TASK_STATUS_IGNORED
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trioserver.run(make_server(int(sys.argv[1]) if len(sys.argv) > 1 else 9999))
