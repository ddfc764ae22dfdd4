"""Work for the processor, in as many worker processes as there are cores: at least two.

    python examples/process_pool.py [PORT]

Send it a number, ``echo 100000 | nc localhost 9999``: it tells how many primes
are below it, and which process has counted them. Two clients at once are served
by two processes. One whose answer takes more than a minute does not get it: its
worker is killed, and replaced.
"""

import logging
import math
import os
import socketserver
import sys

import trio

import trioserver


class Primes(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        count = count_primes(int(self.rfile.readline(20)))
        self.wfile.write(b"%d, says process %d\n" % (count, os.getpid()))


def count_primes(below: int) -> int:
    return sum(is_prime(number) for number in range(2, below))


def is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def make_server(port: int) -> trioserver.ProcessTCPServer:
    cores = max(2, os.cpu_count() or 1)
    return trioserver.ProcessTCPServer(
        ("localhost", port),
        Primes,
        min_children=cores,
        max_children=cores,  # more would only take turns
        max_requests=1000,
        max_requests_jitter=100,
        timeouts=trioserver.Timeouts(idle=20, request=60),
    )


async def main(
    port: int,
    *,
    task_status: trio.TaskStatus[trioserver.ProcessTCPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port).serve_forever(task_status=task_status)


# Workers import this file, too, and must not serve by themselves.
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trioserver.run(make_server(int(sys.argv[1]) if len(sys.argv) > 1 else 9999))
