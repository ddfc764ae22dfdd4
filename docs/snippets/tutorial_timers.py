import trio
import trioserver


class Timers(trioserver.StreamRequestHandler):
    timeout = 3600

    async def handle(self):
        self.bell = trio.Lock()
        async with trio.open_nursery() as nursery:
            async for line in self.rfile:
                nursery.start_soon(self.ring, line)

    async def ring(self, line):
        seconds, name = line.split(maxsplit=1)
        await trio.sleep(float(seconds))
        async with self.bell:
            await self.wfile.write(name.strip() + b" is ready\n")


server = trioserver.TCPServer(("localhost", 9999), Timers)

if __name__ == "__main__":
    (report,) = trioserver.run(server)
    print(report)
