import trio
import trioserver


class Upper(trioserver.StreamRequestHandler):
    async def handle(self):
        self.data = (await self.rfile.readline()).strip()
        print(f"{self.client_address[0]} wrote:")
        print(self.data)
        await self.wfile.write(self.data.upper())


async def main():
    async with trioserver.TCPServer(("localhost", 9999), Upper) as server:
        await server.serve_forever()


if __name__ == "__main__":
    trio.run(main)
