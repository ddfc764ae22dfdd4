"""The nursery that owns a run's requests: it starts their tasks, and notes how they end."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import trio

from .._facts.verdict import describe_error
from .._requests.schedule_points import begin_schedule_points
from .admission import TOO_MANY, Admission
from .registry import RequestRegistry
from .request_task import RequestTask
from .shutdown import Shutdown


@attrs.define(eq=False)
class RequestNursery:
    """Starts the tasks of requests, and notes each of their events once, in order.

    Args:
      server_name: the name of the server's class, for the names of tasks.

    Attributes:
      is_open: whether tasks can be started.
    """

    _server_name: str
    is_open: bool = False
    _registry: RequestRegistry = attrs.field(init=False)
    _admission: Admission = attrs.field(init=False)
    _ending: Shutdown = attrs.field(init=False)
    _nursery: trio.Nursery | None = None
    _context: contextvars.Context = attrs.field(factory=contextvars.Context)

    def connect(self, registry: RequestRegistry, admission: Admission, ending: Shutdown) -> None:
        """Set what is told of the requests. It needs this nursery, too, and so is made later."""
        self._registry, self._admission, self._ending = registry, admission, ending

    # The nursery -----------------------------------------------------------

    def open(self, nursery: trio.Nursery) -> None:
        """Start tasks in ``nursery`` from now on, in the context of this moment."""
        # The context of now has what a hook, or the block, has set since the bind.
        self._context = contextvars.copy_context()
        self._context.run(begin_schedule_points)
        self._nursery, self.is_open = nursery, True

    def close(self) -> None:
        """Start no more tasks: one tick before the nursery is over."""
        self.is_open = False

    def forget(self) -> None:
        """Forget the nursery, which is over."""
        self._nursery = None

    def spawn(self, task: RequestTask) -> None:
        """Start a request's task. Nothing waits in here, and nothing may fail."""
        if self._nursery is None or not self.is_open:
            raise RuntimeError("a client was let in while nothing serves")
        # In the server's context, as in a nursery: no request sees what another request
        # has set, or what the task that begins a drain has set.
        name = f"{self._server_name} {task.info}"
        self._context.run(partial(self._nursery.start_soon, task.serve, name=name))
        self._registry.opened(task)
        if self._admission.is_done:
            self._ending.accepting.cancel(reason="handle_request has its request")

    def call_in_context(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Call a function in the server's context, whichever task this is called from."""
        return self._context.copy().run(function, *arguments)

    def owns_current_task(self) -> bool:
        """Whether the calling task is, or runs under, a request or ``service_actions``."""
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        while task is not None and task.parent_nursery is not None:
            if task.parent_nursery is self._nursery:
                return True
            task = task.parent_nursery.parent_task
        return False

    def cancel(self, request_id: int, reason: str) -> None:
        """Cancel one request, if its outcome is open."""
        task = self._registry.active.get(request_id)
        if task is not None:
            task.cancel(reason)

    # What becomes of a request ---------------------------------------------

    def on_introduction(self, task: RequestTask) -> str:
        """Count the client, now that it is known; say why it is refused, or ``""``."""
        return "" if self._admission.count_client(task) else TOO_MANY

    def on_start(self, task: RequestTask) -> None:
        """Tell observers that the request has arrived."""
        self._registry.audience.tell("request_started", task.info)

    def on_fatal(self, task: RequestTask | None, reason: str) -> None:
        """Stop the server for what a request raises, before the request is closed."""
        if self._admission.takes_all:
            self._ending.fail(reason, culprit=task)
        else:
            self.close()
            self._admission.take_nobody()
            self._admission.empty_waiting_room()

    def on_exit(self, error: BaseException) -> None:
        """Stop the server for what an observer or a get_request has raised.

        They are called in the middle of other work, which must not be left half done, so
        a task of its own raises the error. Where there is no nursery yet, or none any
        more, nothing is half done, and the error is raised here.
        """
        if self._nursery is None:
            raise error
        self.on_fatal(None, why_it_ended(error))
        self._nursery.start_soon(_raise, error)

    def on_cancelled_from_outside(self) -> None:
        """Begin the report: a request may notice before `serve` that the server is cancelled."""
        if self._admission.takes_all:
            self._ending.begin_report()
            self._admission.empty_waiting_room()

    def on_outcome(self, task: RequestTask) -> None:
        """Write the one record, and give the slot back. Only then does the connection linger."""
        self._registry.settled(task)
        thread = task.request._left_behind
        if thread is None:
            self._admission.leave(task)
        else:
            thread.when_over(partial(self._admission.leave, task))
        self._registry.tell_of_end(task)
        if task.lingers:
            self._ending.end_oldest_linger()

    def on_close(self, task: RequestTask) -> None:
        """Note that the request's connection is closed."""
        self._registry.closed(task)


async def _raise(error: BaseException) -> None:
    raise error


def why_it_ended(error: BaseException) -> str:
    """Say why an error or a cancellation ends a run, for the report and the records."""
    if isinstance(error, trio.Cancelled):
        return error.reason or "serve_forever was cancelled"
    return f"the server failed: {describe_error(error)}"
