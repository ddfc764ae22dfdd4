"""What is said of TLS that cannot go on: errors, and why, in words."""

from __future__ import annotations

import ssl

# What OpenSSL says of a context without a certificate, of TLS 1.2 and 1.3.
_OF_NO_CERTIFICATE = ("no shared cipher", "no suitable signature algorithm")

# What it says of what is no TLS at all, from the first bytes.
_OF_PLAIN_TEXT = ("http request", "https proxy request", "wrong version number")

NO_TLS = "the peer speaks no TLS"

NO_HANDSHAKE_IN_TIME = "TLS: no handshake in time (handshake)"
INPUT_BEFORE_HANDSHAKE = "TLS: input came before the handshake, in plain text"
BEFORE_HANDSHAKE = "the peer left before the handshake"
MIDDLE_OF_HANDSHAKE = "the peer left in the middle of the handshake"
CUT_SHORT = "the handshake was cut short"


def in_words(error: ssl.SSLError) -> str:
    """What OpenSSL says of a peer, without its file and line."""
    why = (error.reason or str(error)).replace("_", " ").lower()
    if why in _OF_PLAIN_TEXT:
        return NO_TLS
    more = getattr(error, "verify_message", "")
    if why in _OF_NO_CERTIFICATE:
        more = "or the context has no certificate"
    return f"{why}: {more}" if more else why


class TLSError(OSError):
    """TLS with this peer cannot go on; says why, in words."""

    def __init__(self, why: str) -> None:
        super().__init__(None, f"TLS: {why}")

    def __str__(self) -> str:
        return str(self.strerror)
