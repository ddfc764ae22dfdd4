"""What the page about what is stuck shows does what it says."""

import trio
from support.pages import MEMORY
from trioserver.testing import MemoryServer

import stuck

test_nothing_is_left = stuck.test_nothing_is_left


async def test_serve_and_look(autojump_clock, caplog, nursery):
    """A handler that swallows its cancellation is logged, and the looking ends with the server."""
    deaf = trio.Event()

    async def handle(request, client_address, server):
        with trio.CancelScope() as scope:
            scope.cancel(reason="no need for it")
            task = trio.lowlevel.current_task()
            deaf.set()
            nursery.start_soon(wake, task)
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    async def wake(task):
        await trio.sleep(10)
        trio.lowlevel.reschedule(task)

    server = MemoryServer(MEMORY, handle)
    async with trio.open_nursery() as tasks, server:
        tasks.start_soon(stuck.serve_and_look, server)
        client = await server.connect()
        await deaf.wait()
        await client.receive_some()
        server.shutdown()
    assert "swallowed-cancellation: task 'MemoryServer request 1 from" in caplog.text


async def test_look_twice(autojump_clock):
    """A child that was left behind is a line."""
    async with trio.open_nursery() as nursery:

        async def handle(request, client_address, server):
            nursery.start_soon(trio.sleep_forever)

        async with MemoryServer(MEMORY, handle).serving() as server:
            client = await server.connect()
            await client.receive_some()
            lines = await stuck.look_twice(server)
        nursery.cancel_scope.cancel(reason="the test is over")
    assert lines.startswith("child-outlives-request: task 'trio.sleep_forever' of request 1 from ")
    assert "\n" not in lines
