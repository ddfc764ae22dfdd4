"""What the page about what is stuck shows."""

import trio
import trioserver
from trioserver.monitoring import Linter, Watchdog, as_text, log_findings, task_tree
from trioserver.testing import no_findings


async def serve_and_look(server: trioserver.BaseServer) -> None:
    linter = Linter(no_deadline=600, swallowed_cancellation=5)
    async with trio.open_nursery() as nursery:
        with Watchdog(0.5, on_blocked=linter.note_blocked):
            nursery.start_soon(lambda: log_findings(server, linter=linter))
            await server.serve_forever()
        nursery.cancel_scope.cancel(reason="the server has ended")


async def look_twice(server: trioserver.BaseServer) -> str:
    linter = Linter()
    linter.look(task_tree(), [server.snapshot()])
    await trio.sleep(10)
    return as_text(linter.look(task_tree(), [server.snapshot()]))


async def test_nothing_is_left(trio_server, autojump_clock):
    async def upper(request, client_address, server):
        await request.sendall((await request.recv()).upper())

    server = await trio_server(upper)
    async with no_findings(server):
        client = await server.connect()
        await client.send_all(b"hello")
        assert await client.receive_some() == b"HELLO"
        await trio.sleep(60)
