"""Behind a real HAProxy and a real nginx: who the client is, in every mode, and by TLS."""

import json
import socket
import subprocess
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from support import read_to_end, until
from support.installed import where_is
from support.scenes import table
from support.tls import SERVER
from support.tls_handlers import AsyncWho, Who

import trioserver
from trioserver import ProxyProtocol
from trioserver.testing import TLSClient, open_test_server

FROM = "127.0.0.7"
"""The client's host, which is not the proxy's."""

MODULES = Path("/usr/lib/nginx/modules")

HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend front
    bind fd@{front} {bind}
    default_backend back
backend back
    server app 127.0.0.1:{port} {send}
"""

NGINX = """
load_module {modules}/ngx_stream_module.so;
daemon off;
master_process off;
error_log stderr;
pid {folder}/pid;
events {{}}
stream {{
    server {{
        listen 127.0.0.1:{port_of_front} reuseport;
        proxy_pass 127.0.0.1:{port};
        proxy_protocol on;
    }}
}}
"""


PROXIES = "haproxy nginx-light libnginx-mod-stream"


@asynccontextmanager
async def proxying(kind, port, **settings):
    """A proxy in front of a server at ``port``; its own address.

    HAProxy inherits a socket that listens already. For nginx the port is kept by one that
    does not listen, so it is ready when it lets somebody in.
    """
    with TemporaryDirectory() as folder, socket.socket() as front:
        front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        front.bind(("127.0.0.1", 0))
        address = front.getsockname()
        facts = {"port": port, "port_of_front": address[1], "front": front.fileno()}
        facts |= {"bind": "", "send": "", "folder": folder, "modules": MODULES} | settings
        config = Path(folder) / "config"
        if kind == "haproxy":
            front.listen()
            command = [where_is("haproxy", PROXIES), "-db", "-f", config]
        else:
            command = [where_is("nginx", PROXIES), "-c", config, "-p", folder]
        config.write_text((HAPROXY if kind == "haproxy" else NGINX).format(**facts))
        process = subprocess.Popen(  # noqa: ASYNC220  (takes no time)
            command, pass_fds=[front.fileno()], stderr=subprocess.PIPE
        )
        try:
            await until(partial(lets_in, address))
            yield address
        finally:
            process.kill()
            _, said = process.communicate()
            assert process.returncode == -9, said


def lets_in(address):
    """Whether somebody listens there, who is told nothing."""
    with socket.socket() as sock:
        return sock.connect_ex(address) == 0


async def connect(address, host=FROM):
    """A client's stream from a host of its own."""
    sock = trio.socket.socket()
    await sock.bind((host, 0))
    await sock.connect(address)
    return trio.SocketStream(sock), sock.getsockname()


MODES = {
    "task": (trioserver.TCPServer, AsyncWho),
    "thread": (trioserver.ThreadingTCPServer, Who),
    "process": (trioserver.ProcessTCPServer, Who),
}


def serving(mode, *, tls=False):
    """A server that trusts the proxy's host, in a mode."""
    kind, handler = MODES[mode]
    fields = {"min_children": 1} if mode == "process" else {}
    proxies = ProxyProtocol(["127.0.0.1"])
    server = kind(("127.0.0.1", 0), handler, proxy_protocol=proxies, **fields)
    return open_test_server(server, transport="tcp", tls=tls)


PROXIES = {
    "HAProxy, version 1": ("haproxy", {"send": "send-proxy"}, 1),
    "HAProxy, version 2": ("haproxy", {"send": "send-proxy-v2"}, 2),
    "nginx, version 1": ("nginx", {}, 1),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS behind it"])
@table(("kind", "settings", "version"), PROXIES)
async def test_client_address(kind, settings, version, tls, mode):
    """It is the client's, and the peer is the proxy; TLS comes after the header."""
    async with serving(mode, tls=tls) as server:
        async with proxying(kind, server.port, **settings) as address:
            client, own = await connect(address)
            if tls:
                client = TLSClient(client, SERVER.tls.client_context)
                await client.do_handshake()
            told = json.loads(await read_to_end(client))
            await client.aclose()
            assert told == {"client": [*own], "peer": "127.0.0.1", "version": version, "tls": None}
            await until(lambda: own in [one.info.client_address for one in server.exchanges])


async def test_tls_at_the_proxy():
    """HAProxy speaks TLS with the client, and says so."""
    pem = SERVER.tls.certificate.read_bytes() + SERVER.tls.key.read_bytes()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "both.pem"
        file.write_bytes(pem)
        settings = {"bind": f"ssl crt {file}", "send": "send-proxy-v2-ssl"}
        async with serving("task") as server:
            async with proxying("haproxy", server.port, **settings) as address:
                stream, own = await connect(address)
                client = TLSClient(stream, SERVER.tls.client_context)
                await client.do_handshake()
                told = json.loads(await read_to_end(client))
                await client.aclose()
    assert (told["client"], told["tls"]) == ([*own], "TLSv1.3")


@pytest.mark.parametrize("mode", MODES)
async def test_forged_header(mode):
    """From a peer that is no proxy it says nothing, whatever it says."""
    async with serving(mode) as server:
        stream, own = await connect(server.address)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 443\r\n")
            await read_to_end(stream)
            raise trio.BrokenResourceError  # an end will do, too
        await stream.aclose()
        [exchange] = await server.wait_requests()
    assert exchange.record.reason == "PROXY: the peer is not trusted"
    assert exchange.info.client_address == own
