import trio

import listener
import stop


async def test_tap(capsys):
    """A server over wrapped transports serves as before, and what passes is shown."""
    server = listener.TappedServer(("127.0.0.1", 0), stop.Upper)
    with trio.fail_after(10):
        async with server.serving():
            await stop.talk_to(server.server_address)
    assert capsys.readouterr().out == "< b'hello\\n'\n> b'HELLO\\n'\nb'HELLO\\n'\n"
