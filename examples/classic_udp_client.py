"""The client of the classic first server, over UDP: a plain blocking socket, without Trio.

python examples/classic_udp_client.py [--port PORT] WORD...
"""

import argparse
import socket

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=9999)
parser.add_argument("words", nargs="+")
options = parser.parse_args()
data = " ".join(options.words)

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(5)  # a datagram can be lost, and nobody would say so
    client.sendto(f"{data}\n".encode(), ("localhost", options.port))
    received = client.recv(1024).decode()

print(f"Sent: {data}")
print(f"Received: {received}")
