import http.server
import os
import re
import signal

import pytest
import trio

import adopt


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    def log_message(self, text, *values):
        pass


@pytest.fixture
def server():
    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)


async def test_beside_others(server, capsys):
    """An adopted server is a task of a nursery, and ends by its own shutdown."""
    with trio.fail_after(10):
        await adopt.beside_others(server)
    assert capsys.readouterr().out == "b'404'\n"
    assert server.fileno() == -1


async def test_serve_files(server, monkeypatch, capsys):
    """The first lines of the page serve, until shutdown, and print the report."""

    def build(address, handler):
        assert (address, handler) == (("localhost", 9999), http.server.SimpleHTTPRequestHandler)
        return server

    monkeypatch.setattr(http.server, "ThreadingHTTPServer", build)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt.serve_files)
            await adopt.talk_to(server.server_address)
            await trio.to_thread.run_sync(server.shutdown)
    assert re.match(r"b'404'\nshutdown\(\) was called: ended in ", capsys.readouterr().out)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
async def test_until_signal(server):
    """A signal of the program drains the server."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt.until_signal, server)
            await adopt.talk_to(server.server_address)
            os.kill(os.getpid(), signal.SIGTERM)
    assert server.fileno() == -1


async def test_within_bounds(server):
    """The bounds are in force: the eleventh client of one address is refused."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(adopt.within_bounds(server))
            clients = [await trio.open_tcp_stream(*server.server_address) for _ in range(10)]
            with pytest.raises((OSError, trio.BrokenResourceError)):
                async with await trio.open_tcp_stream(*server.server_address) as unlucky:
                    await unlucky.receive_some()
            for client in clients:
                await client.aclose()
            server.shutdown()
