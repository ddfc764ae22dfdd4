import socketserver
import time
from pathlib import Path

import trio
import trioserver


class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


def main():
    trioserver.run(trioserver.ThreadingTCPServer(("localhost", 9999), Upper))


def slow(request, client_address, server):
    time.sleep(1)  # only this client waits
    request.sendall(b"sorry for the delay\n")


class Guarded(trioserver.ThreadingMixIn, trioserver.TCPServer):
    max_threads = 100
    guest_list: Path  # an annotation makes it a field of the server

    async def verify_request(self, request, client_address):
        return await trio.to_thread.run_sync(self.is_guest, client_address[0])

    def is_guest(self, host):
        return host in self.guest_list.read_text().split()


class SmallestFactor(socketserver.StreamRequestHandler):
    def handle(self):
        number = int(self.rfile.readline())
        for factor in range(2, number + 1):
            trio.from_thread.check_cancelled()
            if number % factor == 0:
                self.wfile.write(b"%d\n" % factor)
                break


class Door(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(trio.from_thread.run(ring, line))


async def ring(bell):
    with trio.move_on_after(5):  # the request's own end would not end this
        return await somebody_opens(bell)
    return b"nobody is at home\n"


async def somebody_opens(bell):
    await trio.sleep(3 if bell == b"front\n" else 3600)
    return b"come in\n"


class Mail(trioserver.ThreadingTCPServer):
    ends_idle_reads = False


class UpperPacket(socketserver.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.packet.upper())


def on_datagrams(address):
    return trioserver.ThreadingUDPServer(address, UpperPacket)


if __name__ == "__main__":
    main()
