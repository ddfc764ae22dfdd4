import socketserver


class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        self.data = self.rfile.readline().strip()
        print(f"{self.client_address[0]} wrote:")
        print(self.data)
        self.wfile.write(self.data.upper())


if __name__ == "__main__":
    with socketserver.TCPServer(("localhost", 9999), Upper) as server:
        server.serve_forever()
