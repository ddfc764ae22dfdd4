"""The beginning of TLS on a connection: at its start, or in the middle of it (STARTTLS).

The rules that this file keeps:

* What was received before the handshake, and nobody has read, may be an attacker's, who has
  injected it in plain text. It is never read as if it had come protected: the request ends.
* When the handshake fails, nothing is sent or read any more, in clear or otherwise.
"""

from __future__ import annotations

import contextlib
import ssl

import trio

from .._facts.errors import HandshakeFailed, IdleTimeout, PeerGone
from .._facts.events import LEFT_IN_SILENCE
from .._sockets.client_hello import missing_of_hello
from .._sockets.credentials import check_context
from .._sockets.tls_errors import (
    CUT_SHORT,
    INPUT_BEFORE_HANDSHAKE,
    MIDDLE_OF_HANDSHAKE,
    NO_HANDSHAKE_IN_TIME,
    TLSError,
)
from .._sockets.tls_records import learn_server_name
from .._sockets.tls_transport import TLSTransport
from .._sockets.transport import UncleanEnd, holds_output
from .served_stream import ServedStream

_BROKEN = trio.BrokenResourceError, f"TLS: {CUT_SHORT}"


async def start_tls(connection: ServedStream, context: ssl.SSLContext) -> None:
    """Agree on TLS in the middle of a connection; see `Connection.start_tls`."""
    learn_server_name(check_context("context", context))
    await trio.lowlevel.checkpoint()
    with trio.move_on_after(connection.timeouts.handshake):
        await begin_tls(connection, context)
        return
    raise IdleTimeout(NO_HANDSHAKE_IN_TIME, info=connection.info)


async def begin_tls(
    connection: ServedStream, context: ssl.SSLContext, ciphertext: bytes = b""
) -> None:
    """Send what is buffered, and agree on TLS with the peer.

    Args:
      connection: has no TLS yet.
      context: the server's.
      ciphertext: what the peer has sent for that already.

    Raises:
      HandshakeFailed: the peer does not agree, or has sent something before.
      PeerGone: the peer has left.
      Draining: the server drains, and nothing has come.
      RuntimeError: the connection has TLS.
      trio.ClosedResourceError, trio.BusyResourceError: see `Connection.send_all`.
    """
    await _flush(connection)
    tls = TLSTransport.over(connection._transport, context)
    if ciphertext:
        tls.records.feed(ciphertext)
    connection._speak_by(tls)
    broken, connection._stream.broken = connection._stream.broken, _BROKEN
    connection._receiver.busy = connection._sender.busy = True
    try:
        await _shake_hands(connection, tls)
        connection._stream.broken = broken
    except BaseException:
        tls.records.give_up()
        raise
    finally:
        connection._receiver.busy = connection._sender.busy = False


async def read_client_hello(connection: ServedStream) -> bytes:
    """Read the ciphertext with which a client begins, its ClientHello whole, for a worker.

    Raises as `begin_tls` does.
    """
    await _flush(connection)
    receiver, info = connection._receiver, connection.info
    try:
        while missing_of_hello(receiver.buffer):
            if not await receiver.fill(between_requests=True):
                raise PeerGone("its output has ended", info=info)
        return bytes(receiver.buffer)
    except PeerGone as error:
        why = MIDDLE_OF_HANDSHAKE if receiver.buffer else LEFT_IN_SILENCE
        raise PeerGone(f"TLS: {why}", info=info) from error
    except TLSError as error:
        receiver.end_input(error)
        raise HandshakeFailed(str(error), info=info) from error
    finally:  # they are no input, and nobody's to read as such
        receiver.stream.received -= len(receiver.buffer)
        receiver.buffer.clear()


async def _flush(connection: ServedStream) -> None:
    """Send what is buffered, and see to it that TLS can begin now."""
    sender, receiver = connection._sender, connection._receiver
    if connection._tls is not None:
        raise RuntimeError("TLS has begun on this connection: it begins once")
    receiver.check()
    await sender.flush()
    receiver.check()
    sender.check()
    if receiver.buffer:
        connection.reset()
        raise HandshakeFailed(INPUT_BEFORE_HANDSHAKE, info=connection.info)


async def _shake_hands(connection: ServedStream, tls: TLSTransport) -> None:
    receiver, info = connection._receiver, connection.info
    try:
        while not tls.shake_hands_now():
            if holds_output(tls):
                await tls.wait_writable()
            else:
                await receiver.wait_for_input()
    except TLSError as error:
        _say_no_more(connection, tls, error)
        raise HandshakeFailed(str(error), info=info) from error.__cause__ or error
    except (PeerGone, IdleTimeout):
        raise
    except OSError as error:
        unclean = isinstance(error, UncleanEnd)
        message = str(error) if unclean else f"TLS: the peer is gone: {error.strerror or error}"
        if not (tls.records.has_begun or receiver.stream.received):
            message = f"TLS: {LEFT_IN_SILENCE}"  # in order or by a reset, as port checks do
        raise PeerGone(message, info=info) from error


def _say_no_more(connection: ServedStream, tls: TLSTransport, error: OSError) -> None:
    """End the output after the alert, in order: a reset would take that back."""
    stream = connection._stream
    stream.broken, stream.output_ended = None, True
    connection._receiver.end_input(error)
    with contextlib.suppress(OSError):
        tls.beneath.send_eof()
