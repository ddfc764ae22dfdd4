"""TLS over whatever moves bytes: its operations, and a transport that has them.

The rules that this file keeps:

* What was sent has gone: bytes count when the record that they are in is with what is beneath,
  whole. Output that has not gone is held, and goes before anything else.
* The end of the output is a close_notify, and after it the end of the output beneath. The end
  of the input without one is `UncleanEnd`, so that half a message does not look like a whole.
* To close says nothing: it is for who has said it before, or has not ended in order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

import attrs
from trio.lowlevel import checkpoint

from .._facts.address import Address
from .._facts.config import LARGEST_PORTION
from .._facts.tls import TLSInfo
from .client_hello import HEADER
from .tls_errors import BEFORE_HANDSHAKE, MIDDLE_OF_HANDSHAKE, TLSError
from .tls_records import TLSRecords
from .transport import Data, PeerCredentials, Transport, UncleanEnd, wakes_reader

_MOST_AT_ONCE = 16 * LARGEST_PORTION
"""Bytes that one send takes, a millisecond's work: a client that reads as fast as that would let
no other task run, else."""

_MOST_ANSWERS = 65_536
"""Bytes of what TLS itself says to a peer (new keys, say) that may wait until that takes them."""

_PIECE = 256
"""Bytes of a handshake that are received at once, and never more than are missing of a record:
what comes after the handshake is left to who reads it. OpenSSL's buffer for input keeps the size
that it once had, in each idle connection: a ClientHello of 1.8 kB would leave 2.4 kB."""


class Wire(Protocol):
    """What moves ciphertext: the part of a `Transport` that does not wait."""

    def receive_now(self, max_bytes: int) -> bytes | None: ...
    def send_now(self, data: Data) -> int: ...
    def send_eof(self) -> None: ...


W = TypeVar("W", bound=Wire)


@attrs.define(eq=False, weakref_slot=False)
class TLSOperations(Generic[W]):
    """What can be done at once on a TLS connection, on the server's side.

    Attributes:
      beneath: moves the ciphertext.
      records: what TLS makes of it.
    """

    beneath: W
    records: TLSRecords

    def shake_hands_now(self) -> bool:
        """Do of the handshake what can be done at once; whether it is complete.

        Raises:
          TLSError: the peer does not agree. It was told so, where TLS has a word for that.
          UncleanEnd: the peer has ended its output.
          OSError: the peer is gone.
        """
        try:
            return self._is_complete() if self.records.is_agreed else self._shake_hands()
        except TLSError:
            with contextlib.suppress(OSError):
                self.flush_now()  # the alert
            raise

    def _shake_hands(self) -> bool:
        records = self.records
        while not records.shake_hands():
            if not self.flush_now() or not self._take_in():
                return False
        return self._is_complete()

    def _take_in(self) -> bool:
        """Take in a piece of a record; whether there was one."""
        records = self.records
        while ciphertext := self.beneath.receive_now(min(_PIECE, records.missing)):
            records.feed(ciphertext)
            if len(ciphertext) != HEADER or not (records.speaks_tls and records.is_mid_record):
                return True  # else a header, of which OpenSSL could make nothing
        if ciphertext is not None:
            why = MIDDLE_OF_HANDSHAKE if records.has_begun else BEFORE_HANDSHAKE
            raise UncleanEnd(f"TLS: {why}")
        return False

    def _is_complete(self) -> bool:
        """Whether what is left of the output has gone, once both have agreed."""
        # Of TLS 1.3 it is but tickets for later sessions. They go with the first output: a
        # system call less, and nothing for a peer that only ever writes.
        return self.records.version == "TLSv1.3" or self.flush_now()

    def receive_now(self, max_bytes: int) -> bytes | None:
        """As `Transport.receive_now`; `UncleanEnd` at an end without a close_notify.

        None also after input without any text: who sends much of that keeps no task from running.
        """
        records = self.records
        if not records.is_agreed and not self.shake_hands_now():
            return None
        data = self._read(max_bytes) if records.may_have_more else None
        if data is not None:
            return data
        ciphertext = self.beneath.receive_now(LARGEST_PORTION)
        if ciphertext is None:
            return None
        if not ciphertext:
            if records.is_mid_record:
                raise TLSError("its output has ended in the middle of a record")
            raise UncleanEnd("its output has ended without a TLS close_notify")
        records.feed(ciphertext)
        return self._read(max_bytes)

    def _read(self, max_bytes: int) -> bytes | None:
        """As `TLSRecords.read`. What TLS itself says to what was read goes at once."""
        before = self.records.unsent
        try:
            return self.records.read(max_bytes)
        finally:
            self._answer(before)

    def pending_now(self) -> int:
        """Bytes that `receive_now` has without any more input."""
        before = self.records.unsent
        ahead = self.records.read_ahead()
        self._answer(before)
        return ahead

    def _answer(self, before: int) -> None:
        """Have what TLS itself has said go, if there is more of it than before."""
        if self.records.unsent <= before:
            return
        with contextlib.suppress(OSError):  # the next send meets it
            self.flush_now()
        if self.records.unsent > _MOST_ANSWERS:
            raise TLSError("the peer asks for new keys again and again, and takes no answer")

    @property
    def holds_output(self) -> bool:
        """Whether a part of what `send_now` was given, and has not counted, is on its way."""
        return len(self.records.held) > 0 or self.records.owed > 0

    def send_now(self, data: Data) -> int:
        """As `Transport.send_now`."""
        if not self.flush_now():
            return 0
        records = self.records
        if records.has_said_goodbye and len(data):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        sent, records.owed = records.owed, 0
        with memoryview(data) as whole, whole[:_MOST_AT_ONCE] as view:
            while sent < len(view):
                portion = view[sent : sent + LARGEST_PORTION]
                records.write(portion)
                if not self.flush_now():
                    records.owed = len(portion)
                    break
                sent += len(portion)
        return sent

    def send_eof(self) -> None:
        """As `Transport.send_eof`; as long as it `holds_output`, the end has not gone."""
        self.records.write_end()
        self.records.ends = True
        self.flush_now()

    def flush_now(self) -> bool:
        """Have output go; whether all of it has. What a send was given counts only in a send."""
        records = self.records
        while held := records.held or records.take_output():
            records.held = held  # whatever the send raises
            sent = self.beneath.send_now(held)
            if sent < len(held):
                records.held = memoryview(held)[sent:]
                return False
            records.held = b""
        if records.ends:
            records.ends = False
            self.beneath.send_eof()
        return True


@attrs.define(eq=False, weakref_slot=False)
class TLSTransport(TLSOperations[Transport]):
    """A transport for the plain text of a TLS connection, over one for its ciphertext."""

    _info: TLSInfo | None = None

    @classmethod
    def over(cls, beneath: Transport, context: ssl.SSLContext) -> TLSTransport:
        """One whose handshake has still to begin."""
        return cls(beneath, TLSRecords(context))

    @property
    def info(self) -> TLSInfo | None:
        """What was agreed on; None before it is."""
        if self._info is None and self.records.is_agreed:
            self._info = self.records.info()
        return self._info

    @property
    def local_address(self) -> Address:
        return self.beneath.local_address

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        return self.beneath.peer_credentials

    def has_input(self) -> bool:
        # Half a record may be half a request. What is no plain text (a close_notify, say) counts,
        # too: who waits for it sees it next.
        return self.records.has_input or self.beneath.has_input()

    # No coroutines of their own; see `SocketTransport`.

    def wait_readable(self) -> Coroutine[Any, Any, None]:
        if self.records.is_agreed and self.records.may_have_more:
            return checkpoint()  # noqa: ASYNC105
        return self.beneath.wait_readable()

    @property
    def wake_reader(self) -> Callable[[], None] | None:
        """What the transport beneath has for that."""
        return wakes_reader(self.beneath)

    def wait_writable(self) -> Coroutine[Any, Any, None]:
        return self.beneath.wait_writable()

    def close(self) -> None:
        self.beneath.close()

    def reset(self) -> None:
        self.beneath.reset()

    def fileno(self) -> int:
        return self.beneath.fileno()
