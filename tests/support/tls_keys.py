"""A TLS 1.3 client that makes its own records after the handshake; `ssl` asks for no keys."""

import hmac
import ssl
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .tls import SERVER, Peer

_HASH, _KEY, _TAG = "sha384", 32, 16  # of TLS_AES_256_GCM_SHA384
_APPLICATION_DATA, _HANDSHAKE, _KEY_UPDATE = 23, 22, 24


class OwnRecords(Peer):
    """A client whose records, once it has agreed, come from here (RFC 8446, 5.2 and 7)."""

    def __init__(self, folder):
        self._log = folder / "keys"
        context = SERVER.client_context(minimum_version=ssl.TLSVersion.TLSv1_3)
        context.keylog_filename = str(self._log)
        super().__init__(context=context)

    def takes_over(self):
        """Make the records here from now on."""
        assert self.tls.cipher()[0] == "TLS_AES_256_GCM_SHA384"
        lines = [line.split() for line in self._log.read_text().splitlines()]
        found = {line[0]: line[2] for line in lines if len(line) == 3}
        self._use(bytes.fromhex(found["CLIENT_TRAFFIC_SECRET_0"]))

    def _use(self, secret):
        self._secret, self._number = secret, 0
        self._cipher = AESGCM(_expanded(secret, b"key", _KEY))
        self._nonce = int.from_bytes(_expanded(secret, b"iv", 12))

    def says(self, text):
        """The record of a text."""
        return self._record(_APPLICATION_DATA, text)

    def changes_keys(self, *, asks_too):
        """The record that announces a new key; whether the server is to have one, too."""
        record = self._record(_HANDSHAKE, bytes([_KEY_UPDATE, 0, 0, 1, asks_too]))
        self._use(_expanded(self._secret, b"traffic upd", 48))
        return record

    def _record(self, kind, content):
        content += bytes([kind])
        header = b"\x17\x03\x03" + struct.pack("!H", len(content) + _TAG)
        nonce = (self._nonce ^ self._number).to_bytes(12)
        self._number += 1
        return header + self._cipher.encrypt(nonce, content, header)


def _expanded(secret, label, size):
    """HKDF-Expand-Label, with nothing for a context."""
    label = b"tls13 " + label
    info = struct.pack("!HB", size, len(label)) + label + b"\0"
    found = block = b""
    while len(found) < size:
        block = hmac.digest(secret, block + info + bytes([len(found) // 48 + 1]), _HASH)
        found += block
    return found[:size]
