"""A chat room: what one client says, all hear; a slow one cannot hold up the others.

    python examples/chat.py [PORT]

Connect with `nc localhost 9999`, from several terminals.
"""

from __future__ import annotations

import logging
import sys

import attrs
import trio

import trioserver

INBOX = 20  # lines that may wait for a client; one further behind is dropped


class Room(trioserver.TCPServer):
    members: set[Member] = attrs.field(factory=set)

    def tell_all(self, line: bytes) -> None:
        for member in self.members:
            try:
                member.letterbox.send_nowait(line)
            except trio.WouldBlock:
                member.cancel_scope.cancel(reason="too slow for this room")


class Member(trioserver.StreamRequestHandler):
    server: Room

    async def setup(self) -> None:
        self.letterbox, self.inbox = trio.open_memory_channel[bytes](INBOX)
        self.server.members.add(self)

    async def handle(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.listen)
            try:
                while True:
                    with self.idle():  # when the server drains, this wait ends with Draining
                        line = await self.inbox.receive()
                    await self.wfile.write(line)
            except trio.EndOfChannel:
                pass  # the client has left
            except trioserver.Draining:
                await self.wfile.write(b"* the room closes, goodbye\n")

    async def listen(self) -> None:
        async for line in self.rfile:
            self.server.tell_all(b"guest %d: %s\n" % (self.info.id, line.strip()))
            await trio.sleep(0.05)  # nobody can talk faster than the others can listen
        self.leave()

    def leave(self) -> None:
        self.server.members.discard(self)
        self.letterbox.close()

    async def finish(self) -> None:
        self.leave()
        await super().finish()


def make_server(port: int) -> Room:
    timeouts = trioserver.Timeouts(idle=3600)  # some people only listen
    return Room(("localhost", port), Member, timeouts=timeouts)


async def main(port: int, *, task_status: trio.TaskStatus[Room] = trio.TASK_STATUS_IGNORED) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trioserver.run(make_server(int(sys.argv[1]) if len(sys.argv) > 1 else 9999))
