import signal
import sys

import trio
import trioserver


class Upper(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(line.upper())


class Polite(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(line.upper())
        if self.server.draining:
            await self.wfile.write(b"BYE\n")


class Stoppable(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            if line == b"stop the server\n":
                self.server.shutdown(grace=1)
            await self.wfile.write(line.upper())


async def echo(request, client_address, server):
    while True:
        with request.idle():
            data = await request.recv(1024)
        if not data:
            break
        await request.sendall(data)


def behind_a_balancer(server, checks=("127.0.0.1", 8081)):
    trioserver.run(server, ready_off=10, health=checks)


async def as_a_task(server):
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)  # returns once it listens
        await talk_to(server.server_address)
        server.shutdown(grace=5)
        report = await server.wait_closed()
    print(report)


async def as_a_block(server):
    async with server.serving(grace=5):
        await talk_to(server.server_address)
    print(await server.wait_closed())


async def several(first, second):
    async with trio.open_nursery() as nursery:
        for server in (first, second):
            await nursery.start(server.serve_forever)
        await talk_to(first.server_address)
        await talk_to(second.server_address)
        for server in (first, second):
            server.shutdown(grace=5)


async def by_signal(server):
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        with trio.open_signal_receiver(signal.SIGUSR2) as arrived:
            async for _ in arrived:
                server.shutdown()
                break


async def talk_to(address):
    async with await trio.open_tcp_stream(*address) as client:
        await client.send_all(b"hello\n")
        print(await client.receive_some())


def main():
    server = trioserver.TCPServer(
        ("localhost", 9999), Upper, timeouts=trioserver.Timeouts(shutdown=20, cleanup=5)
    )
    (report,) = trioserver.run(server)
    print(report)
    sys.exit(0 if report.clean else 1)


if __name__ == "__main__":
    main()
