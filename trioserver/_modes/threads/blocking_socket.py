"""What a handler in a thread gets as its connection: a blocking socket that tells what it does.

It is a `socket.socket` for the descriptor that the server has, too, and that the server
closes; by TLS an `ssl.SSLSocket`. Its methods are those of `Accounting`.
"""

from __future__ import annotations

import socket
import ssl
from typing import ClassVar, Self

from ..._facts.cpython import require_private_names
from ..._facts.errors import HandshakeFailed
from ..._sockets.credentials import check_context
from ..._sockets.making import RESET_ON_CLOSE, Kind, kind_of, object_of
from ..._sockets.tls_errors import INPUT_BEFORE_HANDSHAKE
from ..._sockets.tls_records import TLSRecords
from .accounting import Accounting
from .loan import Loan
from .tls_socket import TLSAccounting


class BlockingSocket(Accounting):
    """A blocking socket for a descriptor of the server's."""

    _loan: Loan
    _by_tls: ClassVar[type[BlockingTLSSocket]]

    @classmethod
    def over(cls, sock: socket.socket, loan: Loan) -> Self:
        """One for the descriptor of ``sock``, which stays its owner's.

        Raises:
          PythonHasChanged: see `require_private_names`.
        """
        return cls.of(kind_of(sock), sock.fileno(), loan)

    @classmethod
    def of(cls, kind: Kind, number: int, loan: Loan) -> Self:
        """One for a descriptor of this family, type and protocol; see `over`."""
        require_private_names()
        ours = object_of(cls, kind, number)
        ours._loan = loan
        if loan.records is not None:
            ours._speak_by(loan.records)
        return ours

    def _speak_by(self, records: TLSRecords) -> None:
        self.__class__ = self._by_tls
        TLSAccounting.cipher_by(self, records)  # type: ignore[arg-type]

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Begin TLS, as the server; see `Connection.start_tls`, which raises the same.

        The socket is an `ssl.SSLSocket` from then on, and files made of it go on.
        """
        context, loan = check_context("context", context), self._loan
        info, stream = loan.terms.info, loan.stream
        if loan.records is not None:
            raise RuntimeError("TLS has begun on this connection: it begins once")
        if loan.state.hides_input:
            raise RuntimeError(
                'a file of makefile("r") may hold what came in plain text, and it would be read as'
                ' if it came by TLS: make such files after start_tls, or use makefile("rb")'
            )
        loan.state.flush_files()
        if stream.pending or loan.state.held:
            super().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            stream.broken = HandshakeFailed, INPUT_BEFORE_HANDSHAKE
            raise HandshakeFailed(INPUT_BEFORE_HANDSHAKE, info=info)
        loan.records = TLSRecords(context)
        self._speak_by(loan.records)
        TLSAccounting.shake_hands(self)  # type: ignore[arg-type]


class BlockingTLSSocket(TLSAccounting, BlockingSocket):  # type: ignore[misc]
    """The same by TLS, which is an `ssl.SSLSocket`, too."""


BlockingSocket._by_tls = BlockingTLSSocket
