import os
import socket
import sys

import pytest
import trio

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
    """Sockets that a parent bound are found by their numbers, and served."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        monkeypatch.setattr(sockets, "FIRST", os.dup(bound.fileno()))
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        with trio.fail_after(10):
            async with sockets.inherited(stop.Upper).serving():
                await stop.talk_to(bound.getsockname())
    assert capsys.readouterr().out == "b'HELLO\\n'\n"
