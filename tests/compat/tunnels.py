"""Cases: sshtunnel. Who connects to it speaks with the application at the other end of SSH."""

import logging
import socket
import threading
from contextlib import suppress
from functools import partial

import paramiko
from case import HOST, OURS, PATIENCE, App, Case, anew, make
from sshtunnel import SSHTunnelForwarder

KEY = paramiko.ECDSAKey.generate()
APPLICATION = ("application", 1)


class Gateway(App, paramiko.ServerInterface):
    """An SSH server for one client; what this one has it connect to answers line by line."""

    def __init__(self, folder):
        super().__init__(folder)
        self._listening = socket.create_server((HOST, 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def forwarder(self, *, threaded):
        """Forwards a port of its own to the application."""
        self._forwarder = SSHTunnelForwarder(
            self._listening.getsockname(),
            ssh_username="somebody",
            ssh_pkey=KEY,
            ssh_host_key=KEY,
            ssh_config_file=None,
            allow_agent=False,
            host_pkey_directories=[],
            remote_bind_address=APPLICATION,
            local_bind_address=(HOST, 0),
            threaded=threaded,
            logger=logging.getLogger("sshtunnel"),
        )
        return self._forwarder

    def close(self):
        self._forwarder._transport.close()

    def get_allowed_auths(self, username):
        return "publickey"

    def check_auth_publickey(self, username, key):
        return paramiko.AUTH_SUCCESSFUL if key == KEY else paramiko.AUTH_FAILED

    def check_channel_direct_tcpip_request(self, number, origin, to):
        return paramiko.OPEN_SUCCEEDED

    def _serve(self):
        with self._listening:
            connection, _ = self._listening.accept()
        with paramiko.Transport(connection) as transport:
            transport.add_server_key(KEY)
            transport.start_server(server=self)
            while channel := transport.accept(PATIENCE):
                threading.Thread(target=self._answer, args=[channel], daemon=True).start()

    def _answer(self, channel):
        # Its client may be gone, and the connection with it, before the channel is closed.
        with suppress(EOFError), channel, channel.makefile() as lines:
            for line in lines:
                channel.sendall(b"%d\n" % self.answer(int(line)))


def their_tunnel(app, *, threaded):
    forwarder = app.forwarder(threaded=threaded)
    forwarder._create_tunnels()
    (server,) = forwarder._server_list
    return server


def our_tunnel(app):
    forwarder = app.forwarder(threaded=True)
    forwarder._connect_to_gateway()
    return make(OURS, forwarder._make_ssh_forward_handler_class(APPLICATION))


def ask_line(connection, number):
    connection.sendall(b"%d\n" % number)
    with connection.makefile("rb") as file:
        line = file.readline()
    if not line:
        raise ConnectionResetError("no answer")
    return int(line)


def client(address, app):
    with socket.create_connection(address, PATIENCE) as connection:
        yield partial(ask_line, connection)


@anew
def client_without_threads(address, app, number):
    with socket.create_connection(address, PATIENCE) as connection:
        return ask_line(connection, number)


CASES = [
    Case(
        "sshtunnel",
        partial(their_tunnel, threaded=True),
        client,
        our_tunnel,
        app=Gateway,
        clients_leave=True,  # it waits with select(), for both of its sides
    ),
    Case(
        "sshtunnel without threads",
        partial(their_tunnel, threaded=False),
        client_without_threads,
        app=Gateway,
    ),
]
