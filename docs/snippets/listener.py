import trioserver


class Tap:
    """A transport that shows what passes through another."""

    def __init__(self, transport):
        self._transport = transport

    def __getattr__(self, name):
        return getattr(self._transport, name)

    def receive_now(self, max_bytes):
        data = self._transport.receive_now(max_bytes)
        if data:
            print("<", data)
        return data

    def send_now(self, data):
        sent = self._transport.send_now(data)
        print(">", bytes(data[:sent]))
        return sent


class TappingListener:
    """A listener whose clients come through another one."""

    def __init__(self, listener):
        self._listener = listener

    def __getattr__(self, name):
        return getattr(self._listener, name)

    def accept_now(self):
        accepted = self._listener.accept_now()
        if accepted is None:
            return None
        transport, client_address = accepted
        return Tap(transport), client_address


class TappedServer(trioserver.TCPServer):
    async def server_bind(self):
        return [TappingListener(listener) for listener in await super().server_bind()]
