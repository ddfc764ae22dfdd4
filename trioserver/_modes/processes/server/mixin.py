"""Processes: the mix-in under which handlers run in workers."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import attrs
import trio

from ...._facts.address import Address
from ...._facts.callables import has_yield, is_async_callable, parameters_if_not_for
from ...._facts.events import Mode
from ...._facts.processors import processors
from ...._facts.validators import LARGEST_INT, as_tuple, count, reject, seconds, true_or_false
from ...._requests.begin_tls import read_client_hello
from ...._requests.connection import Connection
from ...._requests.datagram import Datagram
from ...._servers.base import BaseServer
from ...._servers.fields import make_fields
from ...._servers.handler_checks import check_handler
from ...threads.handlers import check_sync_handler, is_asynchronous
from ..protocol.frames import pack
from ..protocol.setup import setup_of
from ..protocol.task import ArrivalTask, ConnectionTask, DatagramTask, WorkerTask, check_address
from .conclusion import conclude, error_of
from .job import Job, Outbox
from .passed_connection import PassedConnection
from .pool import Pool
from .pool_config import START_METHOD, PoolConfig
from .worker_process import Worker

ATTEMPTS = 3
"""Workers that a request is given to, if one after the other ends without having begun."""

_IN_WORKERS = ("trioserver._modes.processes.worker.preloaded",)

A_MOMENT = 0.5
"""Seconds for a worker to say that a time that it knows is over."""


def _valid_start_method(server: object, field: attrs.Attribute[Any], value: object) -> None:
    if value == "fork":
        expected = "'forkserver' or 'spawn' (a fork would copy a running loop)"
        reject(ValueError, server, field, expected, value)
    if value not in {None, "forkserver", "spawn"}:
        reject(ValueError, server, field, "'forkserver', 'spawn' or None", value)


def _valid_preload(server: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(name, str) for name in value):
        reject(TypeError, server, field, "a sequence of names of modules", value)


def _valid_init(server: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    runs = callable(value) and not is_async_callable(value) and not has_yield(value)
    if not runs or parameters_if_not_for(value):
        reject(TypeError, server, field, "a plain function without arguments or None", value)


@make_fields
class ProcessMixIn(BaseServer):
    """Runs each handler in a worker process: put it first in the bases of a server.

    Handlers are those of `socketserver`, plain functions, or asynchronous ones; they,
    and the server with them, have to pickle, since each worker has a copy of the
    server as its ``self.server``, made when it starts. What a handler changes there
    stays there. All else (hooks, time-outs, limits, the drain, records) is as
    without it, and runs in the server's own process.

    A request that is cancelled, for whatever reason, is ended by killing its worker,
    whatever that does: ``Outcome.KILLED``. A worker that ends by itself costs its own
    request and no other. Workers end with the server, however that ends.

    Args:
      max_children: how many workers at most, and requests at once; of it and
        ``limits.requests`` the smaller counts. A worker that is on its last request
        is not counted.
      min_children: how many workers are there before the first client; None: as
        many as there are processors that can be used.
      child_idle: seconds after which a worker that has nothing to do ends, if there
        are more than ``min_children``.
      max_requests: requests that a worker serves before it is replaced; None: any
        number.
      max_requests_jitter: up to how many more, by chance, so that not all are
        replaced at once.
      start_method: of `multiprocessing`, ``"forkserver"`` or ``"spawn"``; None is
        the former where the system's libraries allow it, which is not on macOS.
      preload: modules that the fork server imports once for all workers, besides
        this library and the module of the handler. A program has one fork server, and
        the first server that starts it decides. Workers import what it has not.
      child_init: called once in each worker, before its first request.
      start_timeout: seconds that a worker has to get ready, what it waits for the
        fork server included.
      forward_logging: have what is logged in workers be logged by the server.
      block_on_close: whether the end waits, at most ``timeouts.cleanup`` seconds,
        for workers to end by themselves; False: they are killed.
      ends_idle_reads: whether a drain ends a read of a synchronous handler that waits
        when nothing was read since the last write; see `ThreadingMixIn`.

    Raises:
      NotImplementedError: this system cannot pass descriptors on.
    """

    if TYPE_CHECKING:  # the same field, for handlers of either colour
        RequestHandlerClass: Callable[[Any, Address, Any], Any] = attrs.field(kw_only=False)

    max_children: int = attrs.field(
        default=40, validator=count(1, most=LARGEST_INT, unit="of workers ")
    )
    min_children: int | None = attrs.field(
        default=None, validator=count(0, most=LARGEST_INT, unit="of workers ", optional=True)
    )
    child_idle: float = attrs.field(default=60, validator=seconds())
    max_requests: int | None = attrs.field(default=None, validator=count(1, optional=True))
    max_requests_jitter: int = attrs.field(default=0, validator=count(0))
    start_method: str | None = attrs.field(default=None, validator=_valid_start_method)
    preload: Sequence[str] = attrs.field(default=(), converter=as_tuple, validator=_valid_preload)
    child_init: Callable[[], object] | None = attrs.field(default=None, validator=_valid_init)
    start_timeout: float = attrs.field(default=60, validator=seconds())
    forward_logging: bool = attrs.field(default=True, validator=true_or_false)
    block_on_close: bool = attrs.field(default=True, validator=true_or_false)
    ends_idle_reads: bool = attrs.field(default=True, validator=true_or_false)

    _mode: ClassVar[Mode] = "process"
    _connection_class: ClassVar[type[Connection]] = PassedConnection

    if not TYPE_CHECKING:

        def __init__(self, *arguments: Any, **fields: Any) -> None:
            if sys.platform == "win32":
                raise NotImplementedError("worker processes need POSIX: descriptors are passed on")
            super().__init__(*arguments, **fields)

    @property
    def active_children(self) -> list[int]:
        """The process ids of the workers."""
        pool = None if self._run is None else self._run.resources
        return pool.pids if isinstance(pool, Pool) else []

    async def finish_request(self, request: Any, client_address: Address) -> None:
        """Have a worker construct the handler, which handles the request."""
        check_address(client_address)
        if isinstance(request, PassedConnection):
            await request._flush()
            task = request._task(
                client_address,
                ends_idle=self.ends_idle_reads,
                ends_output=self._may_end_output_first(),
            )
            try:
                job = await self._serve_in_worker(task, request)
            finally:
                request._come_back()
        elif isinstance(request, Datagram):
            age = trio.current_time() - request.info.started
            job = await self._work(
                DatagramTask(request.info, age, client_address, request.data), request
            )
        else:
            raise TypeError(
                f"get_request returned {request!r}: a handler in another process needs the"
                " Connection or Datagram itself"
            )
        await conclude(job, request)

    async def _secure(self, request: Any) -> None:
        """Have a worker agree on TLS, and keep the connection until its handler is called."""
        credentials = self._bound_run().credentials
        if credentials is None:
            return
        # In this process, so that a silent client holds no worker.
        ciphertext = await read_client_hello(request)
        task = request._arrival_task(ciphertext, credentials.as_of)
        try:
            job = await self._work(task, request)
        except BaseException:
            request._let_go()
            request._come_back()
            raise
        if not job.arrived:
            request._come_back()
            await conclude(job, request)

    async def _serve_in_worker(self, task: ConnectionTask, request: PassedConnection) -> Job:
        worker = request._worker
        if worker is None:
            return await self._work(task, request)
        job = Job(task, worker.pid)
        async with self._killed_if_cut(worker, job, request):
            request._give_to(worker, job)
            await worker.go_on(job)
            await job.over.wait()
        return job

    def _may_end_output_first(self) -> bool:
        """Whether a worker may end the output before this process knows that the handler is done.

        Then a client does not wait for this process: half a millisecond instead of three
        quarters (bench, connect-c2). But a hook might have something to send, and a limit might
        refuse a client that comes again before its slot was given back.
        """
        limits = self.limits
        hooks = ("process_request", "shutdown_request", "close_request")
        return (
            limits.when_full == "wait"
            and limits.per_client is None
            and not any(map(self._overrides, hooks))
            and getattr(self.finish_request, "__func__", None) is ProcessMixIn.finish_request
        )

    async def _work(self, task: WorkerTask, request: PassedConnection | Datagram) -> Job:
        """Have the request handled; by another worker if one ends before it has begun."""
        pool = cast("Pool", self._bound_run().resources)
        left = ATTEMPTS
        while True:
            worker, left = await pool.take(), left - 1
            job = Job(task, worker.pid)
            async with self._killed_if_cut(worker, job, request):
                if isinstance(request, PassedConnection):
                    request._give_to(worker, job)
                    await worker.begin(job, request._wire.fileno())
                else:
                    await self._reply_for(worker, job, request)
                await job.over.wait()
            if job.begun or not left:
                return job

    @asynccontextmanager
    async def _killed_if_cut(
        self, worker: Worker, job: Job, request: PassedConnection | Datagram
    ) -> AsyncIterator[None]:
        """Have a worker work on a request in the block; it is killed if that is cut short."""
        try:
            yield
        except BaseException:
            if isinstance(job.task, ArrivalTask) and time.monotonic() >= job.task.until:
                with trio.move_on_after(A_MOMENT, shield=True):  # it knows, and says so itself
                    await job.over.wait()
            if not job.over.is_set():  # else the worker has another request by now
                worker.kill()
                with trio.move_on_after(self.timeouts.cleanup, shield=True):
                    await job.over.wait()
                if not job.over.is_set():
                    worker.note(job)
                request._was_killed = job.result is None
            raise

    async def _reply_for(self, worker: Worker, job: Job, request: Datagram) -> None:
        """Have a worker begin with a datagram, and send for it."""
        job.replies = replies = Outbox()
        await worker.begin(job, None)
        async for data, address in replies:
            send = partial(request.socket.sendto, data, address)
            worker.answer(await error_of(send))

    def _most_requests(self) -> int:
        return min(self.limits.requests, self.max_children)

    @classmethod
    def _check_handler(cls, handler: object) -> None:
        kind = getattr(cls, "socket_type", None)
        if is_asynchronous(handler):
            check_handler(handler, kind=kind)
        else:
            check_sync_handler(handler, kind=kind, where="in a worker process")

    def _handles_in_trio(self) -> bool:
        """Whether its handlers are asynchronous; for workers."""
        return is_asynchronous(self.RequestHandlerClass)

    # The workers ---------------------------------------------------------------

    @asynccontextmanager
    async def _resources(self, *, for_one_request: bool) -> AsyncIterator[Pool]:
        """The workers, in the block: the first ones are ready."""
        least = processors() if self.min_children is None else self.min_children
        least = 1 if for_one_request else min(least, self._most_requests())
        handler = getattr(self.RequestHandlerClass, "__module__", None)
        config = PoolConfig(
            at_least=least,
            at_most=self._most_requests(),
            idle=self.child_idle,
            max_requests=self.max_requests,
            max_requests_jitter=self.max_requests_jitter,
            start_method=self.start_method or START_METHOD,
            preload=("trioserver", *_IN_WORKERS, *filter(None, [handler]), *self.preload),
            start_timeout=self.start_timeout,
            patience=self.timeouts.cleanup if self.block_on_close else 0,
            stopped=self.timeouts.idle,
        )
        pool = Pool(config, pack(setup_of(self)), self._bound_run().requests.on_exit)
        async with pool.open():
            yield pool
