import time

from trioserver.testing import serve_in_thread


async def blocks(request, client_address, server):
    await request.sendall(b"welcome\n")
    time.sleep(3600)


def test_handler_that_blocks():
    with serve_in_thread(blocks, patience=1) as server:
        assert server.connect().recv(100) == b"welcome\n"
