import os
import socket
import sys

import pytest
import trio
import trioserver

import sockets
import stop


@pytest.mark.skipif(sys.platform != "linux", reason="needs peer credentials")
async def test_unix(tmp_path):
    """A Unix server knows its clients, has the mode it was given, and leaves no file."""
    path = tmp_path / "whoami"
    async with sockets.on_a_path(path).serving():
        assert path.stat().st_mode & 0o777 == 0o660
        with trio.fail_after(10):
            async with await trio.open_unix_socket(path) as client:
                assert await client.receive_some() == b"you are user %d\n" % os.getuid()
    assert not path.exists()


async def test_inherited(monkeypatch, capsys):
    """Sockets that were passed by this name are served; without any, it binds its own."""
    assert sockets.inherited(stop.Upper).server_address == ("127.0.0.1", 8000)
    bound = socket.create_server(("127.0.0.1", 0))
    passed = {"web": (bound,)}
    monkeypatch.setattr(trioserver, "inherited_sockets", passed.get)
    with trio.fail_after(10):
        async with sockets.inherited(stop.Upper).serving() as server:
            await stop.talk_to(server.server_address)
    assert capsys.readouterr().out == "b'HELLO\\n'\n"


async def test_next_server(capsys):
    """The next server has the port of the first, whose clients notice nothing."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            first = trioserver.TCPServer(("127.0.0.1", 0), stop.Upper)
            await nursery.start(first.serve_forever)
            where = first.server_address
            second = await sockets.succeed(nursery, first, stop.Upper)
            assert second.server_address == where
            await stop.talk_to(where)
            second.shutdown()
    assert (await second.wait_closed()).statistics.accepted == 1
    assert capsys.readouterr().out == "b'HELLO\\n'\n"


async def test_suspended():
    """In the block nobody is let in."""
    async with trioserver.TCPServer(("127.0.0.1", 0), stop.Upper).serving() as server:
        with sockets.without_new_clients(server):
            assert server.snapshot().state == "suspended"
        assert server.snapshot().state == "serving"
