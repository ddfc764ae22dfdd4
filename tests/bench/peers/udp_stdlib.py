"""`socketserver.UDPServer`, which answers one datagram after the other."""

from __future__ import annotations

import signal
import socketserver
import threading

from _common import Stopping, datagram_socket, ready, task


class Upper(socketserver.BaseRequestHandler):
    """Answer a datagram."""

    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(data.upper(), self.client_address)


def main() -> None:
    """Serve until SIGTERM."""
    times: list[Stopping] = []

    def stop(*_: object) -> None:
        times.append(Stopping())
        threading.Thread(target=server.shutdown, daemon=True).start()

    sock = datagram_socket(task())
    sock.setblocking(True)
    server = socketserver.UDPServer(sock.getsockname(), Upper, bind_and_activate=False)
    server.socket.close()
    server.socket = sock
    signal.signal(signal.SIGTERM, stop)
    ready(sock.getsockname())
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    times[0].done()


if __name__ == "__main__":
    main()
