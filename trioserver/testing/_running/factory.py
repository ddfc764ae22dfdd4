"""Servers for one test, each in the background of it: what the fixtures of the plugin give."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import trio

from .open_server import bare
from .server import RunningServer


@attrs.define(eq=False)
class _Opened:
    """A server that is open, until it is told to leave."""

    leave: trio.Event = attrs.field(factory=trio.Event)
    closed: trio.Event = attrs.field(factory=trio.Event)
    error: Exception | None = None


class ServerFactory:
    """Opens servers, and closes them when the test is over, the last one first.

    Args:
      open_one: makes the context manager of a server, such as `open_test_server`.
      tasks: each server has a task in it.
    """

    def __init__(
        self,
        open_one: Callable[..., AbstractAsyncContextManager[RunningServer]],
        tasks: trio.Nursery,
    ) -> None:
        self._open_one = open_one
        self._tasks = tasks
        self._all: list[_Opened] = []

    async def __call__(self, *arguments: Any, **options: Any) -> RunningServer:
        """Open one more; the arguments are those of what opens it.

        Raises:
          Exception: it cannot be opened.
        """
        context = self._open_one(*arguments, **options)
        with bare():
            server: RunningServer = await self._tasks.start(self._serve, context)
        return server

    async def _serve(
        self,
        context: AbstractAsyncContextManager[RunningServer],
        *,
        task_status: trio.TaskStatus[RunningServer],
    ) -> None:
        one = _Opened()
        try:
            async with context as server:
                self._all.append(one)
                task_status.started(server)
                await one.leave.wait()
        except Exception as error:
            if not one.leave.is_set():
                raise  # the server, or its start, has failed: so does the test, at once
            one.error = error
        finally:
            one.closed.set()

    async def close(self) -> None:
        """Close all servers of the test, the newest first.

        Raises:
          ExceptionGroup: what is wrong with them; bare, if it is one.
        """
        errors = []
        for one in reversed(self._all):
            one.leave.set()
            await one.closed.wait()
            if one.error is not None:
                errors.append(one.error)
        if len(errors) > 1:
            raise ExceptionGroup("more than one server has failed the test", errors)
        if errors:
            raise errors[0]


@asynccontextmanager
async def servers_of_a_test(
    open_one: Callable[..., AbstractAsyncContextManager[RunningServer]],
) -> AsyncIterator[ServerFactory]:
    """Open servers in the block; they are closed at its end."""
    with bare():
        async with trio.open_nursery() as tasks:
            factory = ServerFactory(open_one, tasks)
            yield factory
            await factory.close()
