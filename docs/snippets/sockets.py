import os
import socket

import trioserver


async def whoami(request, client_address, server):
    user = request.peer_credentials.uid
    await request.sendall(f"you are user {user}\n".encode())


def on_a_path(path):
    return trioserver.UnixStreamServer(path, whoami, mode=0o660)


FIRST = 3  # of the descriptors that systemd passes, as of sd_listen_fds(3)


def inherited(handler):
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        raise RuntimeError("no sockets were passed to this process")
    count = int(os.environ["LISTEN_FDS"])
    sockets = [socket.socket(fileno=FIRST + number) for number in range(count)]
    return trioserver.TCPServer(sockets, handler)
