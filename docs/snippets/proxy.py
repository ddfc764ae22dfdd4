import trioserver


async def whoami(request, client_address, server):
    await request.sendall(f"you are {client_address[0]}\n".encode())
    if request.proxy is not None and request.proxy.tls is not None:
        await request.sendall(f"and came by {request.proxy.tls.version}\n".encode())


def behind_a_proxy():
    return trioserver.TCPServer(
        ("127.0.0.1", 4444),
        whoami,
        proxy_protocol=trioserver.ProxyProtocol(trusted=["127.0.0.1", "10.1.0.0/16"]),
        limits=trioserver.Limits(per_client=20),
    )
