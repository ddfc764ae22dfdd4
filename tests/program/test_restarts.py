"""Rolling restarts of workers: capacity never falls, nobody is lost, and bad code does no harm."""

import http.client
import os
import re

from support import plain_client
from support.listening import on_linux
from support.running_programs import guarded, heard, running_program, who_answers
from support.scenes import table
from support.workers import (
    a_program,
    all_end,
    busy_clients,
    clients_of,
    renews,
    workers_of,
)

pytestmark = on_linux

APPLICATION = """
import os
import trioserver

WHAT = b"{}"

async def handle(request, client_address, server):
    async for line in trioserver.RequestReader(request):
        await request.sendall(b"%d %s %s" % (os.getpid(), WHAT, line))

server = trioserver.TCPServer(("127.0.0.1", 0), handle)
"""


OTHER = """
import trioserver
async def handle(request, client_address, server): ...
server = trioserver.UnixStreamServer("socket", handle)
"""


def serves_application(folder, timeout=8):
    """A program whose server is in a module of its own."""
    (folder / "application.py").write_text(APPLICATION.format("old"))
    run = f'trioserver.run("application:server", workers=2, start_timeout={timeout})\n'
    return running_program(folder / "program.py", 'sys.path.insert(0, ".")\n' + guarded(run))


def answer(address):
    """What a new client is told that the code is."""
    with plain_client(address) as client:
        client.sendall(b"hello\n")
        return client.recv(100).split()[1]


def test_nobody_is_lost(tmp_path):
    """All workers are replaced while clients come and go, each of whom is answered."""
    with a_program(tmp_path) as program:
        address = program.address()
        before = workers_of(address)
        with busy_clients(address) as busy:
            for generation in (2, 3):
                program.order("SIGHUP")
                program.says(rf"all 2 workers were replaced \(generation {generation}\)")
        assert not busy.errors
        assert len(busy.answers) > 20
        all_end(before, 5)
        after = workers_of(address)
        assert not before & after
        assert len(after) == 2
        program.stops()


def test_who_stays(tmp_path):
    """A request that has begun is served to its end by the old worker; new ones, by new ones."""
    with a_program(tmp_path) as program:
        address = program.address()
        with plain_client(address) as client:
            client.sendall(b"hello\n")
            old = heard(client, b"hello\n")
            client.sendall(b"half a ")
            program.order("SIGHUP")
            program.says("all 2 workers were replaced")
            assert who_answers(address) != old
            client.sendall(b"line\n")
            assert heard(client, b"half a line\n") == old
            assert client.recv(100) == b""
        program.stops()


def test_new_code(tmp_path):
    """A worker of the next generation imports the application anew."""
    with serves_application(tmp_path) as program:
        address = program.address()
        assert answer(address) == b"old"
        (tmp_path / "application.py").write_text(APPLICATION.format("another"))
        renews(program)
        assert {answer(address) for _ in range(8)} == {b"another"}
        program.stops()


@table(
    ("code", "why"),
    {
        "it cannot be imported": ("raise ValueError('line 3 is wrong')", "ValueError: line 3"),
        "it hangs": ("import time; time.sleep(60)", r"not ready after 3 s \(start_timeout\)"),
        "it has other servers": (
            OTHER,
            "the servers TCPServer, and its code makes UnixStreamServer now",
        ),
    },
)
def test_bad_code(code, why, tmp_path):
    """The first new worker that does not get ready ends the restart, and the old ones stay."""
    with serves_application(tmp_path, 3 if "sleep" in code else 8) as program:
        address = program.address()
        workers = {int(who) for who in pids(address)}
        (tmp_path / "application.py").write_text(code)
        program.order("SIGHUP")
        program.says("the rolling restart ends, and the old workers stay")
        program.says(why)
        assert {answer(address) for _ in range(8)} == {b"old"}
        assert {int(who) for who in pids(address)} == workers
        program.stops()


def pids(address):
    """Who answers, of several clients that stay."""
    clients = [plain_client(address) for _ in range(8)]
    for client in clients:
        client.sendall(b"hello\n")
    found = {client.recv(100).split()[0] for client in clients}
    for client in clients:
        client.close()
    return found


def test_orders_that_come_meanwhile(tmp_path):
    """Of many restarts at once one more comes after the first; a SIGTERM ends all of it."""
    with a_program(tmp_path) as program:
        workers_of(program.address())
        program.order("SIGHUP")
        program.says("SIGHUP: 2 workers are replaced")
        for _ in range(5):
            program.order("SIGHUP")
        program.says(r"\(generation 3\)")
        program.order("SIGHUP")
        program.stops()
    assert not [line for line in program.said if "generation 5" in line or "Traceback" in line]


def test_order_that_comes_before_there_are_workers(tmp_path):
    """It is obeyed when they are there."""
    definitions = """
import signal

def make():
    if __name__ == "__main__":
        signal.raise_signal(signal.SIGHUP)
    return trioserver.TCPServer(("127.0.0.1", 0), handle)
"""
    with a_program(tmp_path, "make, workers=2", "", definitions) as program:
        program.says(r"all 2 workers were replaced \(generation 2\)")
        workers_of(program.address())
        program.stops()


def test_handed_over(tmp_path):
    """A successor starts workers of its own on the same sockets; nobody is turned away."""
    with a_program(tmp_path, "server, workers=2, start_timeout=8") as program:
        address = program.address()
        before = workers_of(address)
        with busy_clients(address) as busy:
            new = program.hands_over()
            program.ends()
        assert not busy.errors
        after = workers_of(address)
        assert not before & after
        program.order("SIGTERM", new)
        program.has_gone(new)
        all_end(before | after, 1)


# What the program itself tells ---------------------------------------------------------------

LOOKS = """
def look(addresses):
    trio.lowlevel.spawn_system_task(looking)

async def looking():
    while server.statistics().active < 6:
        await trio.sleep(0.05)
    snapshot = server.snapshot()
    logging.info("it is %s, and has %d", snapshot.state, snapshot.statistics.active)
    for worker in snapshot.workers:
        logging.info("worker %d is %s with %d", worker.pid, worker.state, len(worker.requests))
    server.suspend()
    while {it.state for it in server.snapshot().workers} != {"suspended"}:
        await trio.sleep(0.05)
    logging.info("it is %s", server.snapshot().state)
    while not os.path.exists("go on"):
        await trio.sleep(0.05)
    server.resume()
    while server.statistics().accepted < 7:
        await trio.sleep(0.05)
    logging.info("all are counted")
"""


def test_looked_at_and_suspended(tmp_path):
    """The server in the program has the counts of all workers, and speaks to all of them."""
    run = "server, workers=2, on_ready=look"
    server = f'server = trioserver.TCPServer(("127.0.0.1", 0), handle)\n{LOOKS}'
    with a_program(tmp_path, run, server) as program:
        (address,) = program.says(r"listening on (.*)")
        host, _, port = address.rpartition(":")
        address = (host, int(port))
        with clients_of(address, 6) as (_, answers):
            program.says("it is serving, and has 6")
            program.says("is serving with", 2)
            workers = {int(pid) for pid, _ in found(program, r"worker (\d+) is serving with (\d)")}
            assert set(answers) <= workers
            for worker in set(answers):
                program.says(f"worker {worker} is serving with {answers.count(worker)}")
            program.says("it is suspended")
            with plain_client(address) as waits:
                waits.sendall(b"hello\n")
                (tmp_path / "go on").touch()
                assert heard(waits, b"hello\n") in workers
                program.says("all are counted")
        program.stops()


def found(program, pattern):
    """What it has said so far."""
    return [it.groups() for it in (re.search(pattern, line) for line in program.said) if it]


def test_health_and_tasks(tmp_path):
    """One answer for all of them; and their tasks are in the one log."""
    with a_program(tmp_path, 'server, workers=2, health="health"') as program:
        address = program.address()
        workers = workers_of(address)
        assert ready(tmp_path / "health") == (200, "ready")
        program.order("SIGUSR1")
        for worker in workers:
            program.says(f"{worker} SIGUSR1: the tasks of worker process {worker} are")
        program.stops()


def ready(path):
    """What a health check is answered."""
    with plain_client(str(path)) as client:
        client.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = http.client.HTTPResponse(client)
        answer.begin()
        return answer.status, answer.read().decode().strip()


def test_requests_in_the_log(tmp_path):
    """A record of a handler says whose request it is, in the log of the program."""
    definitions = """
logging.getLogger().handlers[0].addFilter(trioserver.RequestLogFilter())
logging.getLogger().handlers[0].setFormatter(
    logging.Formatter("%(process)d %(message)s for %(request_id)s")
)

async def logs(request, client_address, server):
    logging.getLogger("mine").info("works")
    await handle(request, client_address, server)
"""
    server = 'server = trioserver.TCPServer(("127.0.0.1", 0), logs)'
    with a_program(tmp_path, server=server, definitions=definitions) as program:
        (address,) = program.says(r"program serves (\S+)")
        pid = who_answers(("127.0.0.1", int(address.rpartition(":")[2])))
        program.says(f"{pid} works for 1")
        program.stops()
    assert os.getpid() != pid
    assert not [line for line in program.said if re.search("Traceback|Warning", line)]
