"""TLS as a function of bytes: ciphertext in, plain text out, and the other way round.

There is no socket here, and nothing waits. OpenSSL does the work, over two buffers in memory
(`ssl.SSLObject`); this is what it leaves open:

* `ssl.SSLSocket` over the kernel's socket would do it all by itself, and breaks four promises: its
  ``unwrap`` loses input that is pending; half a record that has left the kernel is seen nowhere,
  so that a begun request looks idle to a drain; a short send reports 0 with 212 992 bytes on
  the wire, and wants the very same buffer again; and it takes no ``MSG_DONTWAIT``.
* An end of the input without the peer's close_notify is never told to OpenSSL, which Python has
  take it for an orderly one (``OP_IGNORE_UNEXPECTED_EOF``). `read` tells the orderly end alone.
* A close_notify of ours is followed by a look for that of the peer, in which OpenSSL loses input
  that it has and nobody has read. So that is read before.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any

import attrs

from .._facts.tls import TLSInfo
from .client_hello import HANDSHAKE, HEADER
from .tls_errors import CUT_SHORT, NO_TLS, TLSError, in_words
from .transport import Data

_AHEAD = 65_536


@attrs.define(eq=False, weakref_slot=False)
class TLSRecords:
    """One side of one TLS connection: the server's.

    Attributes:
      has_begun: whether the peer has sent anything.
      speaks_tls: whether that may be TLS.
      is_agreed: whether the handshake is complete.
      held: output that is to go before anything else: the transport beneath has not taken it.
      owed: bytes of plain text that count as sent when that has gone.
      ends: whether the output beneath ends after it.
      has_said_goodbye: whether this side has ended its output.
      tls: OpenSSL's side of it.
    """

    _context: ssl.SSLContext
    _incoming: ssl.MemoryBIO = attrs.field(factory=ssl.MemoryBIO)
    _outgoing: ssl.MemoryBIO = attrs.field(factory=ssl.MemoryBIO)
    tls: ssl.SSLObject = attrs.field(init=False)
    _ahead: bytearray | None = None
    has_begun: bool = False
    is_agreed: bool = False
    held: bytes | memoryview = b""
    owed: int = 0
    ends: bool = False
    has_said_goodbye: bool = False
    speaks_tls: bool = True
    _has_ended: bool = False
    _failure: str = ""
    _is_wrong: bool = False
    _left: int = 0
    _header: bytes = b""

    def __attrs_post_init__(self) -> None:
        self.tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    # Ciphertext ----------------------------------------------------------------

    def feed(self, ciphertext: bytes) -> None:
        """Take in what the peer has sent, at least one byte."""
        if not self.has_begun:
            self.has_begun, self.speaks_tls = True, ciphertext[0] == HANDSHAKE
        self._follow(ciphertext)
        self._incoming.write(ciphertext)

    def _follow(self, ciphertext: bytes) -> None:
        """Follow where in a record the input has come to."""
        size, at = len(ciphertext), self._left
        if self._header:
            ciphertext = self._header + ciphertext
            size, at, self._header = len(ciphertext), 0, b""
        while at + HEADER <= size:
            at += HEADER + int.from_bytes(ciphertext[at + 3 : at + HEADER], "big")
        if at < size:
            self._header = ciphertext[at:]
        self._left = max(at - size, 0)

    @property
    def missing(self) -> int:
        """Bytes, at least one, that must still come of this record, or of the next one's header."""
        return self._left or HEADER - len(self._header)

    @property
    def is_mid_record(self) -> bool:
        """Whether the input ends within a record: the peer has begun to say something."""
        return bool(self._left or self._header)

    @property
    def unsent(self) -> int:
        """Bytes of ciphertext that nobody has taken yet."""
        return self._outgoing.pending

    def take_output(self) -> bytes:
        """The ciphertext to send, which is the caller's to send now."""
        return self._outgoing.read()

    # The handshake -------------------------------------------------------------

    def shake_hands(self) -> bool:
        """Go on with the handshake; whether it is complete.

        Raises:
          TLSError: it fails. There may be an alert to send.
        """
        if self._failure:
            raise TLSError(self._failure)
        if not self.speaks_tls:  # OpenSSL would wait for more, of most that is none
            raise TLSError(NO_TLS)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise self._failed(error) from error
        self.is_agreed = True
        return True

    def give_up(self) -> None:
        """Agree on nothing any more, whatever the peer has still to say."""
        self._failure = self._failure or CUT_SHORT

    def _failed(self, error: ssl.SSLError) -> TLSError:
        """What to raise for an error of OpenSSL's: of all that come, the first one."""
        self._failure = self._failure or in_words(error)
        return TLSError(self._failure)

    def info(self) -> TLSInfo:
        """What was agreed on in the handshake."""
        tls = self.tls
        return TLSInfo(
            version=tls.version() or "",
            cipher=(tls.cipher() or ("",))[0],
            alpn=tls.selected_alpn_protocol(),
            server_name=vars(tls).get(_SERVER_NAME),
            peer_certificate=tls.getpeercert() or None,
            session_reused=bool(tls.session_reused),
        )

    @property
    def version(self) -> str | None:
        """The version of the protocol, once it is agreed on."""
        return self.tls.version()

    @property
    def has_input(self) -> bool:
        """Whether the peer has said something, be it half a record, that nobody has read.

        As long as nothing is agreed on, that is so from the first byte on.
        """
        if not self.is_agreed:
            return self.has_begun
        return self.may_have_more or self.is_mid_record

    # Plain text ----------------------------------------------------------------

    @property
    def may_have_more(self) -> bool:
        """Whether `read` may have plain text, or the end, without any more input."""
        known = self._ahead or self._has_ended or self._is_wrong
        return bool(known) or self.tls.pending() > 0 or self._incoming.pending > 0

    def read(self, most: int) -> bytes | None:
        """Up to ``most`` bytes; ``b""`` at the peer's orderly end; None if more must come first.

        Raises:
          TLSError: what has come is wrong.
        """
        if self._ahead:
            data = bytes(self._ahead[:most])
            del self._ahead[:most]
            return data
        return self._read(most)

    def _read(self, most: int) -> bytes | None:
        if self._has_ended:
            return b""
        if self._is_wrong:  # OpenSSL says so once, and then that it wants more
            raise TLSError(self._failure)
        try:
            data = self.tls.read(most)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:  # said so once both have ended their output
            data = b""
        except ssl.SSLError as error:
            self._is_wrong = True
            raise self._failed(error) from error
        self._has_ended = not data
        return data

    def read_ahead(self) -> int:
        """Decipher all that has come; how many bytes `read` has without any more input."""
        ahead = self._ahead = bytearray() if self._ahead is None else self._ahead
        with suppress(TLSError):  # the next read but those tells of it
            while data := self._read(_AHEAD):
                ahead += data
        return len(ahead)

    def write(self, data: Data) -> None:
        """Have ``data`` be output, all of it.

        Raises:
          TLSError: there cannot be any more output, or not yet.
        """
        if not self.is_agreed:
            raise TLSError(self._failure or "nothing is agreed on yet")
        try:
            self.tls.write(data)
        except ssl.SSLError as error:
            raise self._failed(error) from error

    def write_end(self) -> None:
        """Have the end of the output, a close_notify, be output. Reading goes on."""
        self.has_said_goodbye = True
        try:
            self.read_ahead()
            self.tls.unwrap()
        except (TLSError, ssl.SSLError):
            pass  # it has looked for the peer's, which has not come; or nothing goes any more


_SERVER_NAME = "name_of_sni"


def learn_server_name(context: ssl.SSLContext) -> None:
    """Have the names that clients ask for be known, unless the context has its own use for them."""
    if context.sni_callback is None:
        context.sni_callback = _note_server_name


def _note_server_name(tls: Any, name: str | None, _context: ssl.SSLContext) -> None:
    setattr(tls, _SERVER_NAME, name)
