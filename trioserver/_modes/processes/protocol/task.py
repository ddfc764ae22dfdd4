"""What a worker is told of its request: values that pickle.

A task goes over the line as a tuple, and so do the parts of it that have fields of their own.
As attrs has its classes pickle, by name, it took a worker 20 us instead of 3, a seventh of all
it does for a request.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, TypeAlias

import attrs

from ...._facts.address import Address, describe
from ...._facts.events import RequestInfo
from ...._requests.stream_state import StreamState
from .frames import Message, pack, unpack


@attrs.frozen
class ConnectionTask:
    """A connection to serve.

    Attributes:
      info: the facts of the request.
      age: seconds since its accept.
      client_address: as the handler is to get it.
      kind: family, type and protocol of its socket.
      stream: what is known of its bytes so far.
      idle: seconds that a read waits for a byte.
      write: seconds that a write waits for room.
      ends_idle: whether a drain may end waits between requests.
      ends_output: whether to end the output by itself when the handler has returned.
      new_until: until when, by `time.monotonic`, a drain waits for a first byte.
    """

    info: RequestInfo
    age: float
    client_address: Address
    kind: tuple[int, int, int]
    stream: StreamState
    idle: float
    write: float
    ends_idle: bool
    ends_output: bool
    new_until: float


@attrs.frozen
class ArrivalTask:
    """A connection with whose client to agree on TLS, before it is served.

    Attributes:
      info: the facts of the request.
      age: seconds since its accept.
      kind: family, type and protocol of its socket.
      ciphertext: what the client has sent so far.
      as_of: when the server's TLS context was made, by `time.monotonic`.
      until: when the time for it is over, by `time.monotonic`.
      new_until: until when, by `time.monotonic`, a drain waits for the client.
    """

    info: RequestInfo
    age: float
    kind: tuple[int, int, int]
    ciphertext: bytes
    as_of: float
    until: float
    new_until: float


@attrs.frozen
class DatagramTask:
    """A datagram to serve; see `ConnectionTask`."""

    info: RequestInfo
    age: float
    client_address: Address
    data: bytes


WorkerTask: TypeAlias = ArrivalTask | ConnectionTask | DatagramTask

_KINDS: dict[Message, type[WorkerTask]] = {
    Message.ARRIVAL: ArrivalTask,
    Message.CONNECTION: ConnectionTask,
    Message.GO_ON: ConnectionTask,
    Message.DATAGRAM: DatagramTask,
}


_PARTS: dict[str, type[attrs.AttrsInstance]] = {"info": RequestInfo, "stream": StreamState}
"""The fields of a task that have fields of their own."""

_names: dict[type, list[str]] = {
    kind: [field.name for field in attrs.fields(kind)]
    for kind in (ArrivalTask, ConnectionTask, DatagramTask, *_PARTS.values())
}
_values_of = {kind: attrgetter(*names) for kind, names in _names.items()}
_parts_of = {
    kind: [(place, _PARTS[name]) for place, name in enumerate(_names[kind]) if name in _PARTS]
    for kind in _KINDS.values()
}


def pack_task(task: WorkerTask) -> bytes:
    """The body of the frame that brings ``task``."""
    values = list(_values_of[type(task)](task))
    for place, part in _parts_of[type(task)]:
        values[place] = _values_of[part](values[place])
    return pack(values)


def unpack_task(kind: Message, body: bytes) -> Any:
    """The `WorkerTask` of a frame; for workers alone."""
    values = unpack(body)
    for place, part in _parts_of[_KINDS[kind]]:
        values[place] = part(**dict(zip(_names[part], values[place], strict=True)))
    return _KINDS[kind](*values)


def check_address(address: Address) -> None:
    """Refuse a client's address that a ``get_request`` has made up, and no worker can have.

    Raises:
      TypeError: it does not pickle.
    """
    try:
        pack(address)
    except Exception as error:
        raise TypeError(
            f"the address of a client, {describe(address)}, does not pickle, so no worker process"
            f" can have it ({error}): have get_request return another one"
        ) from error
