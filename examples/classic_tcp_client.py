"""The client of the classic first server: a plain blocking socket, without Trio.

python examples/classic_tcp_client.py [--port PORT] WORD...
"""

import argparse
import socket

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=9999)
parser.add_argument("words", nargs="+")
options = parser.parse_args()
data = " ".join(options.words)

with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
    client.connect(("localhost", options.port))
    client.sendall(f"{data}\n".encode())
    received = client.recv(1024).decode()

print(f"Sent: {data}")
print(f"Received: {received}")
