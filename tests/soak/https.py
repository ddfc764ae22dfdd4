"""Shut an adopted HTTPS server down under its clients, again and again.

    python tests/soak/https.py               # 200 shutdowns under 12 clients
    python tests/soak/https.py 20 --own      # TLS from get_request, not from the listener

Each client connects, agrees on TLS, asks for a page and reads it, one after the other,
until it is refused. Whoever was connected is answered, whole: whenever the drain comes,
and wherever the request is then, the kernel's queue and the first flight of TLS included.
"""

from __future__ import annotations

import argparse
import http.server
import json
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import trio
import trustme
from _common import Verdict, arguments, in_words, run

import trioserver

CLIENTS = 12
PAGE = b"<p>whatever was asked for</p>" * 100
PATIENCE = 10
GRACE = 8
"""Seconds: more than any request needs."""


class Pages(http.server.BaseHTTPRequestHandler):
    """Has one page, and takes a moment for it."""

    def do_GET(self) -> None:
        time.sleep(0.002)
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: Any) -> None: ...


class Server(http.server.ThreadingHTTPServer):
    """Ordinary; the TLS is the listening socket's, or of each connection."""

    request_queue_size = 128
    context: ssl.SSLContext
    own = False
    errors: Counter[str]

    def get_request(self) -> tuple[Any, Any]:
        request, client_address = super().get_request()
        if self.own:
            request = self.context.wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            )
        return request, client_address

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors[type(sys.exception()).__name__] += 1


def make_server(pem: str, *, own: bool, errors: Counter[str]) -> Server:
    """A server with a certificate."""
    server = Server(("127.0.0.1", 0), Pages)
    server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.context.load_cert_chain(pem)
    server.own, server.errors = own, errors
    if not own:
        server.socket = server.context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    return server


async def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """As many shutdowns as asked for."""
    authority = trustme.CA()
    pem, trusted = f"{folder}/server.pem", f"{folder}/authority.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    authority.cert_pem.write_to_path(trusted)
    errors: Counter[str] = Counter()
    connected = answered = 0
    lost: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    ends = []
    chance = random.Random(options.seed)
    for _ in range(options.shutdowns):
        server = make_server(pem, own=options.own, errors=errors)
        reports: list[trioserver.ShutdownReport] = []

        async def serve(*, task_status: Any, server: Any = server, reports: Any = reports) -> None:
            timeouts = trioserver.Timeouts(shutdown=GRACE)
            reports.append(
                await trioserver.adopt(server, timeouts=timeouts, task_status=task_status)
            )

        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            port = str(server.server_address[1])
            command = [sys.executable, str(Path(__file__)), "--clients", port, trusted]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220
            assert process.stdout is not None
            await trio.to_thread.run_sync(process.stdout.readline)
            await trio.sleep(chance.uniform(0, 0.1))
            server.shutdown()
        ends.append(reports[0].duration)
        outcomes.update(str(record.outcome) for record in reports[0].requests)
        outcomes.update(["unaccepted"] * len(reports[0].unaccepted))
        told = json.loads(await trio.to_thread.run_sync(process.stdout.read))
        process.wait()
        process.stdout.close()
        connected, answered = connected + told["connected"], answered + told["answered"]
        lost.update(told["lost"])
    print(f"{options.shutdowns} shutdowns: {connected} connected, {answered} answered")
    print(f"in a drain: {in_words(outcomes)}; it took {max(ends):.3f} s at most")
    verdict.promise(connected == answered, f"whoever was connected is answered: {dict(lost)}")
    verdict.promise(max(ends) < GRACE / 2, "a drain does not wait for what was lost")
    verdict.promise(not errors, f"no error: {in_words(errors)}")


def be_clients(port: int, trusted: str) -> None:
    """What the other process does."""
    context = ssl.create_default_context(cafile=trusted)
    told: dict[str, Any] = {"connected": 0, "answered": 0, "lost": Counter()}
    turn = threading.Lock()
    is_warm = threading.Barrier(CLIENTS + 1)

    def client() -> None:
        for number in range(100_000):
            if number == 1:
                is_warm.wait(PATIENCE)
            try:
                sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
            except ConnectionRefusedError:
                return
            with turn:
                told["connected"] += 1
            problem = ask(sock, context)
            with turn:
                told["answered"] += not problem
                told["lost"].update([problem] if problem else [])

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for one in clients:
        one.start()
    is_warm.wait(PATIENCE)
    print(flush=True)
    for one in clients:
        one.join()
    print(json.dumps(told))


def ask(sock: socket.socket, context: ssl.SSLContext) -> str:
    """One request and its answer; what was wrong with it."""
    try:
        with sock, context.wrap_socket(sock, server_hostname="localhost") as tls:
            tls.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with tls.makefile("rb") as file:
                return "" if file.read().endswith(PAGE) else "cut short"
    except OSError as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--clients"]:
        be_clients(int(sys.argv[2]), sys.argv[3])
    else:
        parser = arguments(__doc__)
        parser.add_argument("shutdowns", nargs="?", type=int, default=200)
        parser.add_argument("--own", action="store_true", help="TLS from get_request")
        parser.add_argument("--seed", type=int, default=0)
        run(soak, parser.parse_args())
