"""What tests of handlers in threads, and of those in processes, share."""

import os
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import trio

import trioserver
from support import Witness, connect, read_to_end, running, until
from support.pipes import ERRORS, literals
from support.process_handlers import Upper  # noqa: F401  (of threads, too)

THERE = ("127.0.0.1", 0)


def does(steps, **names):
    """A handler that does these steps, told as in `support.pipes`.

    They are its socket's, its server's, or functions of these names; or it ``sends`` so many bytes.
    """

    def handler(request, client_address, server):
        sends = SimpleNamespace(sends=lambda size: request.sendall(bytes(size)), **names)
        for step in steps.split("; "):
            call, _, expected = step.partition(" -> ")
            name, _, arguments = call.partition(" ")
            owner = next(it for it in (sends, request, server) if hasattr(it, name))
            error = ERRORS.get(expected)
            with pytest.raises(error) if error else nullcontext():
                result = getattr(owner, name)(*literals(arguments))
                assert error or not expected or [result] == literals(expected), step

    return handler


def raising(error, at=b"x"):
    """A handler that raises it when its client has said that, or nothing more: ``b""``."""

    def fails(request, client_address, server):
        if request.recv(1) == at:
            raise error

    return fails


def tried(function, *arguments):
    """What comes of it: its result, or the kind and number of its error."""
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001  (that is what is compared)
        return type(error), getattr(error, "errno", None)


# Servers ----------------------------------------------------------------------------


def on_tcp(handler, kind=trioserver.ThreadingTCPServer, **fields):
    """A server on the loopback interface."""
    return kind(THERE, handler, **fields)


def of_both_families(ip, unix, **fields):
    """A fixture that makes servers of the one class, and of the other, in turn."""

    @pytest.fixture(params=["ip", "unix"])
    def make(request, folder):
        if request.param == "ip":
            return partial(ip, THERE, **fields)
        return partial(unix, str(folder / "server"), **fields)

    return make


def hooked(kind, **hooks):
    """A class of servers, or of handlers, with these methods."""
    return type("Hooked", (kind,), hooks)


@asynccontextmanager
async def witnessed(server):
    """Serve on a real socket, and write down what happens."""
    witness = Witness()
    server.observers = [*server.observers, witness]
    async with running(server):
        yield witness


@asynccontextmanager
async def met(server, says=b""):
    """The same, and a client, who may say something at once."""
    async with witnessed(server) as witness, await connect(server) as client:
        await client.send_all(says)
        yield client, witness


# Clients ----------------------------------------------------------------------------


@asynccontextmanager
async def crowd(server, number):
    """So many clients, who are gone in the end."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(await connect(server)) for _ in range(number)]


async def ask(server, data=b""):
    """What a new client is answered, up to the end, who says all that he has to say at once."""
    async with await connect(server) as client:
        await client.send_all(data)
        await client.send_eof()
        return await read_to_end(client)


async def asked(server, data=b"", answer=b""):
    """The record of the only request of a server, whose client says this, and is answered that."""
    async with witnessed(server) as witness:
        assert await ask(server, data) == answer
        await until(lambda: witness.records)
    [record] = witness.records
    return record


async def ask_by_datagram(server, data, answers=1):
    """What a new client is answered, in so many datagrams."""
    with trio.socket.socket(server.socket.family, socket.SOCK_DGRAM) as client:
        udp = client.family == socket.AF_INET
        await client.bind(THERE if udp else f"{server.server_address}-client")
        await client.sendto(data, server.server_address)
        got = [await client.recvfrom(100_000) for _ in range(answers)]
    if not udp:
        os.unlink(f"{server.server_address}-client")  # noqa: PTH108
    assert {sender for _, sender in got} == {server.server_address}
    return b"".join(answer for answer, _ in got)


async def say(client, words):
    """Say something that is answered at once, in upper case."""
    await client.send_all(words)
    answer = b""
    while len(answer) < len(words):
        answer += await client.receive_some()
    assert answer == words.upper()


# What is done, and seen -------------------------------------------------------------


async def cancelled(server):
    """Cancel the first request, and wait until no request is left."""
    assert server.cancel_request(1, "enough")
    await until(lambda: not server.requests)


async def drained(server, grace=8):
    """Begin the drain, and wait until all requests have their outcome."""
    server.shutdown(grace)
    await until(lambda: not server.requests)


async def shows(server, **facts):
    """Wait until a snapshot shows the only request like that: its ``state``, its bytes."""

    def is_so():
        requests = server.snapshot().requests
        return [{name: getattr(it, name) for name in facts} for it in requests] == [facts]

    await until(is_so)


@contextmanager
def takes(most, least=0):
    """The block takes so many seconds."""
    began = time.perf_counter()
    yield
    assert least <= time.perf_counter() - began < most


def outcomes(report):
    """Those of all requests that were there when the drain began."""
    return [str(it.outcome) for it in report.requests]
