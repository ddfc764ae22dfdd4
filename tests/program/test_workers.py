"""Servers that several processes serve: who serves whom, and what becomes of one that ends."""

import os
import signal
import socket
import time
from contextlib import ExitStack

from support import plain_client
from support.listening import is_there, on_linux
from support.process_state import is_running
from support.running_programs import heard, who_answers
from support.scenes import table
from support.workers import (
    a_program,
    all_end,
    busy_clients,
    clients_of,
    renews,
    share_of,
    worker_processes,
    workers_of,
)

pytestmark = on_linux  # whoever is the last to have a socket is looked for in /proc

PLAIN = """
import socketserver

class Plain(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"%d %s" % (os.getpid(), line))
"""
REPLY = """
def reply(data, client_address, server):
    return b"%d %s" % (os.getpid(), data)
"""
IN_THREADS = 'server = trioserver.ThreadingTCPServer(("127.0.0.1", 0), Plain)'
IN_PROCESSES = 'server = trioserver.ProcessTCPServer(("127.0.0.1", 0), Plain, min_children=1)'
ON_A_PATH = 'server = trioserver.UnixStreamServer("socket", handle)'
GIVEN = """
import socket
server = trioserver.TCPServer(socket.create_server(("127.0.0.1", 0)), handle)
"""


# Who serves whom -------------------------------------------------------------------


@table(
    "server",
    {
        "in tasks": 'server = trioserver.TCPServer(("127.0.0.1", 0), handle)',
        "in threads": IN_THREADS,
        "in processes of their own": IN_PROCESSES,
        "on a path": ON_A_PATH,
        "on a socket that was given": GIVEN,
    },
)
def test_every_mode(server, tmp_path):
    """Two workers serve, each from the one socket; and nothing is left of them."""
    with a_program(tmp_path, server=server, definitions=PLAIN) as program:
        address = program.address()
        workers = workers_of(address)
        assert program.process.pid not in workers
        program.stops()
        assert not any(map(is_running, workers))
        assert not is_there(address)
    assert not [line for line in program.said if "Warning" in line or "Traceback" in line]


def test_datagrams(tmp_path):
    """Each is answered by one of the workers."""
    server = 'server = trioserver.UDPServer(("127.0.0.1", 0), reply)'
    with a_program(tmp_path, server=server, definitions=REPLY) as program:
        address = program.address()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect(address)
            for number in range(50):
                client.send(b"%d" % number)
                pid, _, rest = client.recv(100).partition(b" ")
                assert rest == b"%d" % number
                assert int(pid) != program.process.pid
        program.stops()


def test_datagrams_on_a_path(tmp_path):
    """They are answered, too, and the file is removed at the end."""
    server = 'server = trioserver.UnixDatagramServer("socket", reply)'
    with a_program(tmp_path, server=server, definitions=REPLY) as program:
        address = program.address()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.bind("")  # a name that the kernel chooses
            client.connect(address)
            client.send(b"hello")
            assert client.recv(100).endswith(b" hello")
        program.stops()
        assert not is_there(address)


def test_tls_behind_a_proxy(authority, trusting, tmp_path):
    """Each worker makes the context of its own, anew in each generation, and reads the header."""
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate")
    definitions = """
from functools import partial

async def who(request, client_address, server):
    await request.sendall(b"%d %s %s" % (
        os.getpid(), client_address[0].encode(), request.tls.version.encode()
    ))
"""
    server = """
server = trioserver.TCPServer(
    ("127.0.0.1", 0),
    who,
    ssl_context=partial(trioserver.server_context, "certificate", "key"),
    proxy_protocol=trioserver.ProxyProtocol(trusted=("127.0.0.0/8",)),
)
"""
    with a_program(tmp_path, server=server, definitions=definitions) as program:
        address = program.address()
        before = worker_processes(program.process.pid)
        pid, *rest = is_told_who_it_is(address, trusting)
        assert (int(pid) in before, rest) == (True, [b"192.0.2.1", b"TLSv1.3"])
        renews(program)
        pid, *rest = is_told_who_it_is(address, trusting)
        assert (int(pid) in before, rest) == (False, [b"192.0.2.1", b"TLSv1.3"])
        program.stops()


def is_told_who_it_is(address, trusting):
    """What a client hears by TLS, of whom a proxy has told."""
    with plain_client(address) as client:
        client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n")
        with trusting.wrap_socket(client, server_hostname="localhost") as protected:
            return protected.recv(100).split()


def test_signals_to_a_worker(tmp_path):
    """They do nothing there: a service manager sends them to all processes."""
    with a_program(tmp_path) as program:
        address = program.address()
        workers = workers_of(address)
        for worker in workers:
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
                program.order(name, worker)
        assert workers_of(address) == workers
        program.stops()
    assert not [line for line in program.said if "replaced" in line]


@table("pause", {"3 ms apart": 0.003, "in a burst": 0})
def test_shares(pause, tmp_path):
    """No worker has much more than another one of the connections that stay."""
    with a_program(tmp_path, "server, workers=4") as program:
        address = program.address()
        workers_of(address, 4)
        clients = []
        for _ in range(100):
            clients.append(plain_client(address))
            time.sleep(pause)
        for client in clients:
            client.sendall(b"hello\n")
        assert share_of([heard(client, b"hello\n") for client in clients], 4) <= 1.3
        for client in clients:
            client.close()
        program.stops()


def test_total_requests(tmp_path):
    """They are divided: the fourth of four clients that stay is served, and the fifth waits."""
    with a_program(tmp_path, "server, workers=2, total_requests=4") as program:
        address = program.address()
        with clients_of(address, 4) as (clients, answers), plain_client(address) as fifth:
            assert sorted(map(answers.count, set(answers))) == [2, 2]
            fifth.sendall(b"hello\n")
            clients[0].close()
            assert heard(fifth, b"hello\n") == answers[0]
        program.stops()


# Ends ------------------------------------------------------------------------------


def test_worker_that_ends(tmp_path):
    """It is replaced, and everybody else is served meanwhile: the port is never closed."""
    with a_program(tmp_path) as program:
        address = program.address()
        killed, *_ = workers_of(address)
        with busy_clients(address) as busy:
            os.kill(killed, signal.SIGKILL)
            program.says(f"worker {killed} is replaced: it has ended by itself")
            workers = workers_of(address)
        assert killed not in workers
        # Whoever it had accepted, and had not answered, has seen its end.
        assert len(busy.errors) <= 4
        program.stops()
    assert len(busy.answers) > 20


def test_program_that_is_killed(tmp_path):
    """Its workers end with it, and theirs, and the port is free."""
    with a_program(tmp_path, server=IN_PROCESSES, definitions=PLAIN) as program:
        address = program.address()
        handlers = workers_of(address)
        workers = worker_processes(program.process.pid)
        program.order("SIGKILL")
        program.ends(-signal.SIGKILL)
        all_end(handlers | workers, 1)
        # A process counts as ended when its first thread has; its sockets close with the last.
        until = time.monotonic() + 1
        while is_listened_at(address):
            assert time.monotonic() < until


def is_listened_at(address):
    """Whether a client gets through."""
    try:
        plain_client(address).close()
    except ConnectionRefusedError:
        return False
    return True


def test_handler_that_ends_its_worker(tmp_path):
    """An exit of a handler is its worker's alone; the log has the traceback."""
    definitions = """
async def handle_or_leave(request, client_address, server):
    async for line in trioserver.RequestReader(request):
        if line == b"leave\\n":
            raise SystemExit("it wants to")
        await request.sendall(b"%d %s" % (os.getpid(), line))
"""
    server = 'server = trioserver.TCPServer(("127.0.0.1", 0), handle_or_leave)'
    with a_program(tmp_path, server=server, definitions=definitions) as program:
        address = program.address()
        workers_of(address)
        with plain_client(address) as client:
            client.sendall(b"leave\n")
            assert client.recv(100) == b""
        program.says("SystemExit: it wants to")
        workers_of(address)
        program.stops()


def test_worker_that_ends_at_once(tmp_path):
    """One that ends soon after it was ready is replaced again and again, after pauses."""
    definitions = """
class Ends(trioserver.TCPServer):
    calls = 0

    async def service_actions(self):
        self.calls += 1
        if self.calls == 2:
            os._exit(0)
"""
    server = 'server = Ends(("127.0.0.1", 0), handle)'
    with a_program(tmp_path, server=server, definitions=definitions) as program:
        program.says("it has ended by itself", 4)
        plain_client(program.address()).close()
        program.stops()
    assert not [line for line in program.said if "Traceback" in line]


def test_handler_that_shuts_its_server_down(tmp_path):
    """It drains its worker, which is replaced; the others go on."""
    definitions = """
async def handle_or_drain(request, client_address, server):
    async for line in trioserver.RequestReader(request):
        if line == b"drain\\n":
            server.shutdown()
        await request.sendall(b"%d %s" % (os.getpid(), line))
"""
    server = 'server = trioserver.TCPServer(("127.0.0.1", 0), handle_or_drain)'
    with a_program(tmp_path, server=server, definitions=definitions) as program:
        address = program.address()
        with plain_client(address) as client:
            client.sendall(b"drain\n")
            drained = heard(client, b"drain\n")
        program.says(f"worker {drained} is replaced: a server was shut down there")
        assert drained not in workers_of(address)
        program.stops()


def test_one_of_several_servers_that_ends(tmp_path):
    """Its worker is replaced as soon as that: no port is left without anybody."""
    definitions = """
async def drains(request, client_address, server):
    server.shutdown()
    await handle(request, client_address, server)
"""
    server = """
server = trioserver.TCPServer(("127.0.0.1", 0), handle)
other = trioserver.TCPServer(("127.0.0.1", 0), drains)
"""
    run = "server, other, workers=2"
    with a_program(tmp_path, run, server, definitions) as program:
        ended = [who_answers(program.address(1)) for _ in range(6)]
        for worker in set(ended[:-1]):
            program.says(f"worker {worker} is replaced: a server was shut down there")
        assert who_answers(program.address())
        program.stops()


SLOW = """
async def slowly(request, client_address, server):
    async for line in trioserver.RequestReader(request):
        if line == b"hold\\n":
            await request.sendall(b"held\\n")
            try:
                await trio.sleep_forever()
            finally:
                logging.info("is cancelled")
        await request.sendall(b"%d %s" % (os.getpid(), line))
"""
ON_SLOW = 'server = trioserver.TCPServer(("127.0.0.1", 0), slowly{})'


def hold(address):
    """A client whose request lasts."""
    client = plain_client(address)
    client.sendall(b"hold\n")
    assert client.recv(100) == b"held\n"
    return client


def test_grace_that_is_over(tmp_path):
    """Requests are cancelled, in order, when it is; the log says how many."""
    server = ON_SLOW.format("")
    with a_program(tmp_path, "server, workers=2, grace=0.1", server, SLOW) as program:
        with hold(program.address()):
            program.stops()
        program.says("is cancelled")
        program.says("the grace of 0.1 s was over: TCPServer has cancelled 1 requests")


def test_second_signal(tmp_path):
    """It cancels what is left in all workers, which end in order."""
    with a_program(tmp_path, server=ON_SLOW.format(""), definitions=SLOW) as program:
        with hold(program.address()):
            program.order("SIGTERM")
            program.says("SIGTERM: the program drains")
            program.order("SIGTERM")
            program.ends(128 + signal.SIGTERM)
        program.says("is cancelled")
        program.says(r"cancelled \(a second signal: SIGTERM\)")


def test_third_signal(tmp_path):
    """It ends the program on the spot, and so its workers, whatever they do."""
    definitions = """
async def hangs(request, client_address, server):
    await request.sendall(b"held\\n")
    time.sleep(60)
"""
    server = 'server = trioserver.TCPServer(("127.0.0.1", 0), hangs)'
    with a_program(tmp_path, server=server, definitions=definitions) as program:
        with hold(program.address()):
            program.order("SIGTERM")
            program.says("SIGTERM: the program drains")
            program.order("SIGINT")
            program.order("SIGTERM")
            program.ends(-signal.SIGINT, -signal.SIGTERM)  # Python tells which of them came last


def test_worker_that_hangs(tmp_path):
    """One that does not end within its grace, and the time for cleaning up, is killed."""
    definitions = """
async def hangs(request, client_address, server):
    await request.sendall(b"held\\n")
    time.sleep(60)
"""
    server = """
timeouts = trioserver.Timeouts(cleanup=0.1)
server = trioserver.TCPServer(("127.0.0.1", 0), hangs, timeouts=timeouts)
"""
    with a_program(tmp_path, "server, workers=2, grace=0.1", server, definitions) as program:
        with hold(program.address()):
            program.stops()
        program.says(r"worker \d+ has not ended 1.1 s after its grace, and is killed")


EARLY = """
class Early(trioserver.Observer):
    def server_listening(self, addresses):
        if __name__ == "__main__":
            server.{}

"""


def test_shut_down_before_there_are_workers(tmp_path):
    """The program ends as soon as it is bound."""
    definitions = EARLY.format("shutdown()")
    server = 'server = trioserver.TCPServer(("127.0.0.1", 0), handle, observers=[Early()])'
    with a_program(tmp_path, server=server, definitions=definitions) as program:
        program.says("listening on")
        program.ends()
    assert not [line for line in program.said if "Traceback" in line]


def test_suspended_before_there_are_workers(tmp_path):
    """They accept nobody until it is resumed, which reaches all of them."""
    definitions = (
        EARLY.format("suspend()")
        + """
async def resume():
    while not os.path.exists("go on"):
        await trio.sleep(0.01)
    server.resume()

def begin(addresses):
    logging.info("all are there")
    trio.lowlevel.spawn_system_task(resume)
"""
    )
    server = 'server = trioserver.TCPServer(("127.0.0.1", 0), handle, observers=[Early()])'
    run = "server, workers=2, on_ready=begin"
    with a_program(tmp_path, run, server, definitions) as program:
        (address,) = program.says("listening on (.*)")
        program.says("all are there")
        host, _, port = address.rpartition(":")
        with plain_client((host, int(port))) as client:
            client.sendall(b"hello\n")
            (tmp_path / "go on").touch()
            assert heard(client, b"hello\n")
        program.stops()


def test_one_of_several_servers_that_is_closed(tmp_path):
    """Closing it in the program ends it in all workers, and waits for no other one."""
    definitions = """
def close(addresses):
    trio.lowlevel.spawn_system_task(closing)

async def closing():
    while other.statistics().accepted < 1:
        await trio.sleep(0.01)
    await other.server_close()
    logging.info("closed it: %s", other.statistics().accepted)
"""
    server = """
server = trioserver.TCPServer(("127.0.0.1", 0), handle)
other = trioserver.TCPServer(("127.0.0.1", 0), handle)
"""
    run = "server, other, workers=2, on_ready=close"
    with a_program(tmp_path, run, server, definitions) as program:
        places = [program.says("listening on (.*):(.*)", times) for times in (1, 2)]
        stays, closes = [(host, int(port)) for host, port in places]
        assert who_answers(closes)
        program.says("closed it: 1")
        assert who_answers(stays)
        program.stops()
    assert not [line for line in program.said if "Traceback" in line]


def test_end_while_workers_start(tmp_path):
    """They are ended at once, whatever they do: there is nothing that they would have to finish."""
    definitions = "import multiprocessing\nif multiprocessing.parent_process(): time.sleep(60)\n"
    server = """
timeouts = trioserver.Timeouts(cleanup=60)
server = trioserver.TCPServer(("127.0.0.1", 0), handle, timeouts=timeouts)
"""
    with a_program(tmp_path, server=server, definitions=definitions) as program:
        program.says("listening on")
        while len(worker_processes(program.process.pid)) < 2:
            time.sleep(0.01)
        program.stops()
    assert not [line for line in program.said if "Traceback" in line]


def test_queue_at_the_end(tmp_path):
    """Whoever is queued when the program drains is served, by the last one that has the socket."""
    server = """
limits = trioserver.Limits(requests=3)
server = trioserver.TCPServer(("127.0.0.1", 0), handle, limits=limits)
"""
    with a_program(tmp_path, server=server) as program:
        address = program.address()
        with clients_of(address, 6) as (held, answers), ExitStack() as at_the_end:
            queued = [at_the_end.enter_context(plain_client(address)) for _ in range(3)]
            for client in queued:
                client.sendall(b"hello\n")
            program.order("SIGTERM")
            program.says("SIGTERM: the program drains")
            for client in held:
                client.close()
            last = {heard(client, b"hello\n") for client in queued}
        assert len(last) == 1
        assert last <= set(answers)
        program.ends()
