"""An arrival, with a fault after every step: the request has one end, and its slot comes back."""

import itertools
from contextlib import suppress
from functools import partial
from typing import ClassVar

import attrs
import pytest
import trio
from support.sweeping import (
    NAMES,
    InMemory,
    OnTCP,
    OnUnix,
    Setting,
    WatchedMixIn,
    cancel,
    ctrl_c,
    shut_down,
    shut_down_at_once,
)
from support.tls import SERVER

import trioserver
from trioserver.testing import ResetClient, TLSClient, fire_at


class ArrivingMixIn(WatchedMixIn):
    """Waits twice while a request arrives, and has an info of its own for it meanwhile."""

    async def verify_request(self, request, client_address):
        await trio.lowlevel.checkpoint()
        request.info = attrs.evolve(request.info)
        await trio.lowlevel.checkpoint()
        return True

    async def process_request(self, request, client_address):
        if trioserver.current_request() is not request.info:
            self.books.errors.append(f"{request!r} was served before it had arrived")
        await super().process_request(request, client_address)


class BehindMixIn(WatchedMixIn):
    """Its clients come by way of a proxy, whose header comes in two portions."""

    FIELDS: ClassVar = {"proxy_protocol": trioserver.ProxyProtocol()}
    HEADER = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x05and\r\n"  # LOCAL: it keeps the address

    async def dial(self):
        stream, address = await super().dial()
        with suppress(trio.BrokenResourceError):  # it says so again
            await stream.send_all(self.HEADER[:7])
            await stream.send_all(self.HEADER[7:])
        return stream, address


class ByTLSMixIn(WatchedMixIn):
    """Its clients agree with it on TLS."""

    FIELDS: ClassVar = {"ssl_context": SERVER.context}

    async def dial(self):
        stream, address = await super().dial()
        client = TLSClient(stream, SERVER.tls.client_context)
        with suppress(trio.BrokenResourceError):  # it says so again
            await client.do_handshake()
        return client, address


class OnThisMachine(InMemory):
    """Whose clients have addresses that a server can trust."""

    async def dial(self):
        stream = await self.connect(("127.0.0.1", next(self.ports)))
        return stream, stream.client_address

    ports = itertools.count(1)


KINDS = [
    type(f"Arriving{kind.__name__}", (ArrivingMixIn, kind), {})
    for kind in (InMemory, OnTCP, OnUnix)
]
BEHIND = [
    type(f"Behind{kind.__name__}", (BehindMixIn, ArrivingMixIn, kind), {})
    for kind in (OnThisMachine, OnTCP, OnUnix)
]
BY_TLS = [
    type(f"ByTLS{kind.__name__}", (ByTLSMixIn, ArrivingMixIn, kind), {})
    for kind in (InMemory, OnTCP, OnUnix)
]
all_kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS + BEHIND + BY_TLS)
@pytest.mark.parametrize("fault", [cancel, ctrl_c, shut_down_at_once], ids=NAMES.get)
def test_arrival_cut_after_every_step(kind, fault):
    """CX-06: whatever ends the server amid an arrival leaves no slot and no connection."""
    assert Setting(kind, [fault]).sweep() > 60


FEW = trioserver.Limits(requests=2, per_client=2)


@pytest.mark.slow
@all_kinds
@pytest.mark.parametrize(
    ("fault", "limits", "least"),
    [
        (shut_down, trioserver.Limits(), 60),
        (shut_down, FEW, 60),
        (ResetClient(), trioserver.Limits(), 30),
    ],
    ids=["shutdown", "shutdown, few slots", "reset"],
)
def test_fault_in_an_arrival_loses_nothing(kind, fault, limits, least):
    """What was asked before a drain is answered; who leaves ends its own request alone."""
    assert Setting(kind, [fault], gentle=True, limits=limits).sweep() > least


@pytest.mark.slow
@pytest.mark.parametrize("kind", BEHIND + BY_TLS)
def test_drain_while_clients_are_introduced_loses_nothing(kind):
    """What was asked before a drain is answered, also by who is only being introduced."""
    assert Setting(kind, [shut_down], gentle=True).sweep() > 60


def cut_in_its_arrival(kind, step):
    """A server that cancels its first request after so many steps of that one's arrival."""

    class Fragile(kind):
        async def verify_request(self, request, client_address):
            arrival = super().verify_request(request, client_address)
            at = step if request.info.id == 1 else 0
            return bool(await fire_at(arrival, at, partial(self.cut, request)))

        def cut(self, request):
            if self.cancel_request(request.info.id, "swept"):
                self.books.cut.append(request.client_address)

    return Fragile


@all_kinds
def test_one_request_cancelled_at_every_step_of_its_arrival(kind):
    """It is cancelled, with a reason, and the others are served."""
    assert Setting(kind).sweep_one_request(cut=cut_in_its_arrival) >= 2 * 3
