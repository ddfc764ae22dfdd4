from support import read_to_end
from trioserver.testing import MemoryServer

from tutorial_echo import echo


async def test_echoes(autojump_clock, capsys):
    """The first server of the tutorial echoes, and says who is there."""
    async with MemoryServer(("memory", 1), echo).serving() as server:
        client = await server.connect(("you", 1))
        await client.send_all(b"hello")
        assert await client.receive_some() == b"hello"
        await client.send_eof()
        assert await read_to_end(client) == b""
    assert capsys.readouterr().out == "('you', 1) is here\n('you', 1) is gone\n"
