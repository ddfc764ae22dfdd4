import random
import socket

import trio
import trioserver

GROUP, PORT = "239.255.76.67", 7667


async def here(request, client_address, server):
    if request.data == b"who is there?":
        await trio.sleep(random.random() / 10)  # not all at once
        await request.reply(socket.gethostname().encode())


async def serve_group(
    group, port, handler, interface="0.0.0.0", *, task_status=trio.TASK_STATUS_IGNORED
):
    server = trioserver.UDPServer(
        ("", port), handler, address_family=socket.AF_INET, allow_reuse_address=True
    )
    async with server:
        membership = socket.inet_aton(group) + socket.inet_aton(interface)
        server.socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        await server.serve_forever(task_status=task_status)


def who_is_there(group, port, interface="0.0.0.0", seconds=1):
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(seconds)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        client.sendto(b"who is there?", (group, port))
        try:
            while True:
                name, (address, _) = client.recvfrom(1024)
                yield address, name.decode()
        except TimeoutError:
            pass


if __name__ == "__main__":
    trio.run(serve_group, GROUP, PORT, here)
