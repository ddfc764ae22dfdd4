"""TLS under many clients: stalled handshakes, new certificates while clients come, and drains.

python tests/soak/tls.py                       # all of it, in every mode: ten minutes
python tests/soak/tls.py stalled --mode thread
python tests/soak/tls.py reloads --reloads 1000
python tests/soak/tls.py drains
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import socket
import ssl
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import trio
import trustme
from support.kept_alive import Idle, KeptAlive, Lines, More
from support.scenes import in_memory, on_tcp
from support.tls import Peer
from support.tls_handlers import AsyncTalks, Talks, context_of

import trioserver
from trioserver import Limits, Timeouts
from trioserver.testing import ShutDown, sweep

MODES = {
    "task": (trioserver.TCPServer, AsyncTalks, {}),
    "thread": (trioserver.ThreadingTCPServer, Talks, {"max_threads": 900}),
    "process": (trioserver.ProcessTCPServer, Talks, {"max_children": 900, "min_children": 2}),
}
WHAT = ["stalled", "reloads", "drains"]
STALLED, DRIPPING, HANDSHAKE = 200, 500, 10.0


class Files:
    """The certificate in a folder, which is made anew, or broken."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self.authority = trustme.CA()
        self.client = ssl.create_default_context()
        self.authority.configure_trust(self.client)
        self.issue()
        peer = Peer(context=self.client)
        peer.shakes()
        self.hello = peer.output()

    def issue(self) -> None:
        """Make a new one."""
        issued = self.authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(self._folder / "key.pem")
        issued.cert_chain_pems[0].write_to_path(self._folder / "cert.pem")

    def spoil(self) -> None:
        """Write half of one."""
        (self._folder / "cert.pem").write_text("half of it")


def ask(address: tuple[str, int], client: ssl.SSLContext) -> float:
    """A client's whole conversation; how long it took."""
    began = time.monotonic()
    with socket.create_connection(address) as sock:
        with client.wrap_socket(sock, server_hostname="localhost") as tls:
            tls.sendall(b"one\n")
            assert tls.recv(10) == b"ONE\n"
    return time.monotonic() - began


async def stalled(mode: str, files: Files, folder: str) -> bool:
    """Clients that stall keep nobody waiting, and are gone in time; whether that is so."""
    kind, handler, fields = MODES[mode]
    server = kind(
        ("127.0.0.1", 0),
        handler,
        ssl_context=partial(context_of, folder),
        limits=Limits(requests=900),
        timeouts=Timeouts(handshake=HANDSHAKE),
        **fields,
    )
    async with server.serving():
        address = server.server_address
        silent = []
        for number in range(STALLED):
            sock = socket.create_connection(address)
            sock.sendall(files.hello[: number % 60])
            silent.append(sock)
        took = max([await trio.to_thread.run_sync(ask, address, files.client) for _ in range(20)])
        print(f"{mode}: beside {STALLED} stalled handshakes a client is served in {took:.3f} s")
        for sock in silent:
            sock.close()
        drips = [socket.create_connection(address) for _ in range(DRIPPING)]
        began = trio.current_time()
        for second in itertools.count():
            for sock in drips:
                with contextlib.suppress(OSError):
                    sock.send(files.hello[second : second + 1])
            await trio.sleep(0.5)
            if not server.requests or trio.current_time() - began > 2 * HANDSHAKE:
                break
            await trio.sleep(0.5)
        gone = trio.current_time() - began
        print(f"{mode}: {DRIPPING} with a byte a second are gone after {gone:.1f} s")
        for sock in drips:
            sock.close()
    return took < 0.2 and HANDSHAKE - 1 < gone < HANDSHAKE + 2


async def reloads(mode: str, files: Files, folder: str, number: int) -> bool:
    """Clients notice no reload, good or bad; whether that is so."""
    kind, handler, fields = MODES[mode]
    server = kind(("127.0.0.1", 0), handler, ssl_context=partial(context_of, folder), **fields)
    served = failed = kept = 0
    done = trio.Event()

    async def comes_again() -> None:
        nonlocal served, failed
        while not done.is_set():
            try:
                await trio.to_thread.run_sync(ask, server.server_address, files.client)
                served += 1
            except (OSError, AssertionError) as error:
                failed += 1
                print(f"{mode}: {error!r}")

    async with server.serving(), trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(comes_again)
        for turn in range(number):
            if is_bad := turn % 10 == 5:
                files.spoil()
            else:
                files.issue()
            before = server._run.credentials.context
            try:
                server.reload()
            except ValueError:
                assert is_bad
                kept += server._run.credentials.context is before
                files.issue()
            await trio.sleep(random.uniform(0, 0.004))
        done.set()
    print(f"{mode}: {number} reloads, {kept} of bad files; {served} clients served, {failed} not")
    return not failed and kept == number // 10


def drains() -> None:
    """Fifty keep-alive connections, drained after every step; raises what was lost."""
    for make, jump_after in ((in_memory, 0), (on_tcp, 0.02)):
        for handler in (Lines, More, Idle):
            scenario = KeptAlive(make, handler, 50, by_tls=True)
            swept = sweep(scenario, faults=[ShutDown(5)], seeds=(0,), jump_after=jump_after)
            print(f"{make.__name__}, {handler.__name__}: {swept.runs} drains")


async def under_load(what: list[str], modes: list[str], number: int) -> bool:
    """Do what was asked for with servers that run; whether all of it held."""
    held = True
    with tempfile.TemporaryDirectory() as folder:
        for mode in modes:
            files = Files(folder)
            if "stalled" in what:
                held &= await stalled(mode, files, folder)
            if "reloads" in what:
                held &= await reloads(mode, files, folder, number)
    return held


def main() -> bool:
    """Do what was asked for; whether all of it held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="*", help=f"of {', '.join(WHAT)}; all without")
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--reloads", type=int, default=1000)
    asked = parser.parse_args()
    what = asked.what or WHAT
    if unknown := set(what) - set(WHAT):
        parser.error(f"it does {', '.join(WHAT)}, and not {', '.join(unknown)}")
    modes = [asked.mode] if asked.mode else list(MODES)
    held = trio.run(under_load, what, modes, asked.reloads)
    if "drains" in what:
        drains()
    return held


if __name__ == "__main__":
    if not main():
        sys.exit("BROKEN")
    print("ok")
