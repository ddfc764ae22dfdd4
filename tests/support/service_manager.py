"""A stand-in for systemd: it hears what programs say of themselves, and keeps what they pass."""

import os
import socket
import threading
from contextlib import contextmanager

MOST_PASSED = 16


class StandIn:
    """A service manager that writes down what it hears.

    Attributes:
      kept: the descriptors that it keeps for the next start, each with its name.
    """

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)
        self.kept = []
        self._heard = []
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._listener = threading.Thread(target=self._listen)

    @property
    def heard(self):
        """All messages so far, a dictionary each."""
        with self._lock:
            while True:
                try:
                    data, passed, _, _ = socket.recv_fds(self.socket, 4096, MOST_PASSED)
                except BlockingIOError:
                    return list(self._heard)
                message = dict(line.split("=", 1) for line in data.decode().splitlines())
                self._heard.append(message)
                self._keep(message, passed)

    def listen(self):
        """Make room all the time: the kernel keeps ten messages, and who comes then has to wait."""
        self._listener.start()

    def _listen(self):
        while not self._is_over.wait(0.01):
            _ = self.heard

    def _keep(self, message, passed):
        name = message.get("FDNAME")
        if "FDSTOREREMOVE" in message:
            for it in [it for it in self.kept if it[0] == name]:
                self.kept.remove(it)
                os.close(it[1])
        for number in passed:
            if any(os.path.sameopenfile(number, other) for _, other in self.kept):
                os.close(number)  # as systemd does
            else:
                self.kept.append((name, number))

    def values(self, name):
        """All that it has heard of a variable."""
        return [message[name] for message in self.heard if name in message]

    def close(self):
        """Let go of everything."""
        self._is_over.set()
        if self._listener.is_alive():
            self._listener.join()
        self.socket.close()
        for _, number in self.kept:
            os.close(number)


@contextmanager
def stand_in(address, monkeypatch, *, listens=True, **variables):
    """One that says where it is in the environment."""
    manager = StandIn(address)
    if listens:
        manager.listen()
    told = address if isinstance(address, str) else "@" + address[1:].decode()
    for name, value in {"NOTIFY_SOCKET": told, **variables}.items():
        monkeypatch.setenv(name, value)
    try:
        yield manager
    finally:
        manager.close()
