import trio
import trioserver


class Timer(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            seconds, name = line.split(maxsplit=1)
            await trio.sleep(float(seconds))
            await self.wfile.write(name.strip() + b" is ready\n")


if __name__ == "__main__":
    trioserver.run(trioserver.TCPServer(("localhost", 9999), Timer))
