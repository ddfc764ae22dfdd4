import socket

import trioserver


class Upper(trioserver.DatagramRequestHandler):
    async def handle(self):
        await self.wfile.write(self.packet.upper())


async def echo(request, client_address, server):
    await request.reply(request.data)


def answer(data, client_address, server):
    return data.upper() if data.isascii() else None


class Add(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            numbers = line.split()
            await self.wfile.write(b"%d\n" % sum(map(int, numbers)))


class Relay(trioserver.DatagramRequestHandler):
    async def handle(self):
        guests = self.server.guests
        if len(guests) < 100:
            guests.add(self.client_address)
        for address in guests - {self.client_address}:
            try:
                await self.socket.sendto(self.packet, address)
            except OSError:
                guests.discard(address)


async def in_parts(request, client_address, server):
    parts = [server.report[start : start + 1200] for start in range(0, len(server.report), 1200)]
    for number, part in enumerate(parts, 1):
        await request.reply(b"%d of %d\n" % (number, len(parts)) + part)


def on_both(address):
    return trioserver.TCPServer(address, Add), trioserver.UDPServer(address, Add)


def for_many(address, handler):
    return trioserver.UDPServer(
        address,
        handler,
        limits=trioserver.Limits(requests=200),
        socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)],
    )


def for_slow_readers(path, handler):
    return trioserver.UnixDatagramServer(
        path,
        handler,
        socket_options=[(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 2**20)],
    )


def in_order(address, handler):
    return trioserver.UDPServer(address, handler, limits=trioserver.Limits(requests=1))


async def busy(request):
    await request.reply(b"busy, ask again later\n")


def with_an_excuse(address, handler):
    return trioserver.UDPServer(
        address, handler, limits=trioserver.Limits(requests=200, when_full=busy)
    )


class TooLarge(trioserver.Observer):
    def accept_failed(self, server_address, error):
        print(error.strerror)


def main():
    trioserver.run(*on_both(("localhost", 9999)))


if __name__ == "__main__":
    main()
