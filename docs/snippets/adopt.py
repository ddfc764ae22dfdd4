import http.server
import signal
from functools import partial

import trio
import trioserver


async def serve_files():
    address, handler = ("localhost", 9999), http.server.SimpleHTTPRequestHandler
    report = await trioserver.adopt(http.server.ThreadingHTTPServer(address, handler))
    print(report)


async def beside_others(server):
    async with trio.open_nursery() as nursery:
        await nursery.start(trioserver.adopt, server)  # returns once it lets clients in
        await talk_to(server.server_address)
        server.shutdown()


async def until_signal(server):
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as arrived:
            await nursery.start(trioserver.adopt, server)
            async for _ in arrived:
                server.shutdown()
                break


def within_bounds(server):
    return partial(
        trioserver.adopt,
        server,
        max_threads=100,
        limits=trioserver.Limits(when_full="refuse", per_client=10),
        timeouts=trioserver.Timeouts(idle=20, request=300, shutdown=5),
    )


async def talk_to(address):
    async with await trio.open_tcp_stream(*address) as client:
        await client.send_all(b"GET / HTTP/1.0\r\n\r\n")
        print((await client.receive_some()).split()[1])


if __name__ == "__main__":
    trio.run(serve_files)
