import ipaddress

import trioserver


async def hold(request, client_address, server):
    await request.recv(1)


async def busy(connection):
    await connection.send_all(b"421 too busy, try again later\r\n")


wait = trioserver.TCPServer(("localhost", 0), hold, limits=trioserver.Limits(requests=100))
refuse = wait.evolve(limits=trioserver.Limits(requests=100, when_full="refuse"))
explain = wait.evolve(limits=trioserver.Limits(requests=100, when_full=busy))
fair = wait.evolve(limits=trioserver.Limits(requests=100, per_client=5))
one_by_one = wait.evolve(limits=trioserver.Limits(requests=1))


class Private(trioserver.TCPServer):
    allowed = ipaddress.ip_network("10.0.0.0/8")

    async def verify_request(self, request, client_address):
        return ipaddress.ip_address(client_address[0]) in self.allowed


def strict(address, handler):
    return trioserver.TCPServer(
        address,
        handler,
        timeouts=trioserver.Timeouts(idle=30, request=120),
        limits=trioserver.Limits(line=1000, read=1_000_000),
    )


def ban(server, host):
    for info in server.requests:
        if info.client_address[0] == host:
            server.cancel_request(info.id, "banned")
