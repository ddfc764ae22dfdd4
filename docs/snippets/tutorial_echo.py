import trioserver


async def echo(request, client_address, server):
    print(client_address, "is here")
    while data := await request.recv(1024):
        await request.sendall(data)
    print(client_address, "is gone")


if __name__ == "__main__":
    trioserver.run(trioserver.TCPServer(("localhost", 9999), echo))
