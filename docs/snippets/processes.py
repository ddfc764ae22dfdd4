import logging
import signal
import socketserver
import sqlite3
import sys
from functools import partial

import trioserver


class Primes(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"%d\n" % count_primes(int(line)))


class PrimesInTrio(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(b"%d\n" % count_primes(int(line)))


def count_primes(below):
    return sum(all(number % d for d in range(2, number)) for number in range(2, below))


def main():
    trioserver.run(trioserver.ProcessTCPServer(("localhost", 9999), Primes))


class Greeter(trioserver.ProcessTCPServer):
    greeting: str = "hello"  # an annotation makes it a field of the server


def greet(request, client_address, server):
    request.sendall(server.greeting.encode())


database = None


def open_database(path):
    global database  # this process's own
    database = sqlite3.connect(path)


class Dictionary(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            found = database.execute(
                "SELECT meaning FROM words WHERE word = ?", [line.decode().strip()]
            )
            self.wfile.write("; ".join(meaning for (meaning,) in found).encode() + b"\n")


def dictionary(address, path):
    return trioserver.ProcessTCPServer(address, Dictionary, child_init=partial(open_database, path))


def bounded(address):
    return trioserver.ProcessTCPServer(
        address,
        Primes,
        min_children=2,  # there from the beginning
        max_children=8,  # as many as that when clients come
        child_idle=30,  # and down to two again
        max_requests=1000,  # then a worker is replaced...
        max_requests_jitter=100,  # ...but not all of them at once
        timeouts=trioserver.Timeouts(request=60),  # who computes for longer is killed
    )


class Watched(trioserver.ProcessTCPServer):
    async def handle_error(self, request, client_address):
        error = sys.exception()
        if isinstance(error, trioserver.WorkerCrashed) and error.status == -signal.SIGKILL:
            logging.getLogger("primes").critical("worker %d: out of memory?", error.pid)
        else:
            await super().handle_error(request, client_address)


if __name__ == "__main__":
    main()
