"""The TLS of a connection, as a value."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class TLSInfo:
    """What was agreed on in the TLS handshake of a connection.

    Attributes:
      version: of the protocol, as ``"TLSv1.3"``.
      cipher: the name of the cipher suite, as OpenSSL has it.
      alpn: the protocol that was agreed on by ALPN; None without one.
      server_name: the host name that the client has asked for by SNI. None if it has named none,
        and where the context has an ``sni_callback`` of its own, which alone is told.
      peer_certificate: the client's certificate, as `ssl.SSLSocket.getpeercert` gives it, if it
        was verified; else None.
      session_reused: whether the handshake went on with an earlier session.
    """

    version: str
    cipher: str
    alpn: str | None = None
    server_name: str | None = None
    peer_certificate: dict[str, Any] | None = None
    session_reused: bool = False
