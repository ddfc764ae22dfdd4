"""Programs whose servers are served by workers, and what their clients see of those."""

import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import attrs

from . import plain_client
from .process_state import children_of, is_running
from .running_programs import SECONDS, guarded, heard, running_program, who_answers

SERVER = 'server = trioserver.TCPServer(("127.0.0.1", 0), handle)'


def a_program(folder, run="server, workers=2", server=SERVER, definitions=""):
    """A program of one server, which two workers serve unless it says otherwise."""
    source = definitions + guarded(f"{server}\ntrioserver.run({run})\n")
    return running_program(folder / "program.py", source)


@contextmanager
def clients_of(address, count):
    """So many clients that stay connected, each of whom has an answer; and whose it is."""
    clients = []
    try:
        for _ in range(count):
            clients.append(plain_client(address))
            clients[-1].sendall(b"hello\n")
        yield clients, [heard(client, b"hello\n") for client in clients]
    finally:
        for client in clients:
            client.close()


def workers_of(address, count=2):
    """The processes of the workers, as soon as so many have answered."""
    found = set()
    until = time.monotonic() + SECONDS / 2
    while len(found) < count:
        assert time.monotonic() < until, found
        with clients_of(address, 4) as (_, answers):
            found |= set(answers)
    return found


def worker_processes(pid):
    """The processes of a program's workers; `multiprocessing` has one beside them."""
    return {it for it in children_of(pid) if b"resource_tracker" not in _command_of(it)}


def _command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b"resource_tracker"


def renews(program):
    """Have all workers of a program be replaced, and wait until none of the old ones is left."""
    before = worker_processes(program.process.pid)
    program.order("SIGHUP")
    program.says("all 2 workers were replaced")
    all_end(before, 5)


def all_end(pids, seconds):
    """Wait for the end of processes, for so long at most."""
    until = time.monotonic() + seconds
    while any(map(is_running, pids)):
        assert time.monotonic() < until
        time.sleep(0.01)


def share_of(answers, workers):
    """The most that one worker has, as a multiple of what each would have in the mean."""
    return max(Counter(answers).values()) * workers / len(answers)


@attrs.define
class Busy:
    """Clients that come one after the other, each with one line, as long as a block lasts.

    Attributes:
      answers: by whom they were answered.
      errors: what any of them met instead.
    """

    answers: list[int] = attrs.field(factory=list)
    errors: list[Exception] = attrs.field(factory=list)


@contextmanager
def busy_clients(address, count=4):
    """Have so many at a time."""
    busy, over = Busy(), threading.Event()

    def come_again_and_again():
        while not over.is_set():
            try:
                busy.answers.append(who_answers(address))
            except Exception as error:  # noqa: BLE001  (whatever it is, the test looks)
                busy.errors.append(error)

    threads = [threading.Thread(target=come_again_and_again) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield busy
    finally:
        over.set()
        for thread in threads:
            thread.join()
