from contextlib import contextmanager

import trioserver


async def whoami(request, client_address, server):
    user = request.peer_credentials.uid
    await request.sendall(f"you are user {user}\n".encode())


def on_a_path(path):
    return trioserver.UnixStreamServer(path, whoami, mode=0o660)


def inherited(handler):
    address = trioserver.inherited_sockets("web") or ("127.0.0.1", 8000)
    return trioserver.TCPServer(address, handler)


async def succeed(nursery, server, next_handler):
    successor = trioserver.TCPServer(server.hand_over(), next_handler)
    return await nursery.start(successor.serve_forever)


@contextmanager
def without_new_clients(server):
    server.suspend()
    try:
        yield
    finally:
        server.resume()
