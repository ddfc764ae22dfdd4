import socketserver
import threading

import trio
import trioserver
from support.adopting import ask

import porting_after
import porting_before


async def test_same_answer(capsys):
    """The example before and after porting answers and prints the same."""
    expected = b"HELLO WORLD", "127.0.0.1 wrote:\nb'hello world'\n"
    with socketserver.TCPServer(("127.0.0.1", 0), porting_before.Upper) as classic:
        thread = threading.Thread(target=classic.handle_request)
        thread.start()
        answer = ask(classic.server_address, b"hello world\n")
        thread.join()
    assert (answer, capsys.readouterr().out) == expected
    server = trioserver.TCPServer(("127.0.0.1", 0), porting_after.Upper)
    with trio.fail_after(10):
        async with server.serving():
            answer = await trio.to_thread.run_sync(ask, server.server_address, b"hello world\n")
    assert (answer, capsys.readouterr().out) == expected
