"""How people use trioserver, for type checkers only: this file is never run."""

from __future__ import annotations

import attrs
import trio

import trioserver


class Upper(trioserver.StreamRequestHandler):
    """A handler class."""

    timeout = 5.0

    async def setup(self) -> None:
        self.lines = 0

    async def handle(self) -> None:
        async for line in self.rfile:
            self.lines += 1
            await self.wfile.write(line.upper())
        self.cancel_scope.deadline += 1
        with self.idle():
            first: bytes = await self.rfile.readline()
        await self.wfile.writelines([first, *await self.rfile.readlines()])

    async def finish(self) -> None:
        print(self.info, self.lines)


async def echo(
    request: trioserver.Connection, client_address: object, server: trioserver.BaseServer
) -> None:
    """A function as a handler."""
    while data := await request.recv(4096):
        await request.sendall(data)


class Loud(trioserver.TCPServer):
    """A server with an override, a field of its own, and hooks."""

    request_queue_size = 100
    greeting: bytes = b"HELLO\n"

    async def verify_request(self, request: object, client_address: object) -> bool:
        return bool(self.greeting)

    async def service_actions(self) -> None:
        if self.statistics().accepted > 10:
            self.shutdown(grace=1)


@attrs.frozen
class Watcher(trioserver.Observer):
    """An observer."""

    ended: list[trioserver.Outcome] = attrs.field(factory=list)

    def request_finished(
        self,
        info: trioserver.RequestInfo,
        outcome: trioserver.Outcome,
        record: trioserver.RequestRecord,
    ) -> None:
        self.ended.append(outcome)


server = trioserver.TCPServer(
    ("localhost", 0),
    Upper,
    limits=trioserver.Limits(requests=10, when_full="refuse"),
    timeouts=trioserver.Timeouts(idle=60),
    observers=[Watcher()],
)
unix = trioserver.UnixStreamServer("/run/upper", echo, mode=0o600)
loud = Loud(("localhost", 0), echo, greeting=b"hi\n")
loud_copy: Loud = loud.evolve(limits=trioserver.Limits(requests=1))
other_copy: Loud = attrs.evolve(loud, greeting=b"")


async def serve() -> trioserver.ShutdownReport:
    """The ways to serve."""
    async with trio.open_nursery() as nursery:
        started: trioserver.TCPServer = await nursery.start(server.serve_forever)
        started.shutdown(grace=5)
        await server.wait_closed()
    async with unix.serving(grace=1):
        assert unix.fileno() >= 0
    async with loud:
        await loud.handle_request()
    return await server.serve_forever(poll_interval=1)


trioserver.run(server)
