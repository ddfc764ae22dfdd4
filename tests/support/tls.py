"""The peers of TLS servers: certificates, clients as functions of bytes, and real ones."""

import ssl
from contextlib import suppress
from functools import partial

import trioserver
from trioserver.testing import TestTLS
from trioserver.testing._running.tls import tls_for_tests


class Certificates:
    """An authority, and what servers and clients need of it."""

    @property
    def tls(self) -> TestTLS:
        return tls_for_tests()

    @property
    def context(self):
        """A function that makes the server's context, and pickles."""
        return partial(trioserver.server_context, self.tls.certificate, self.tls.key)

    def client_context(self, **attributes):
        """A client's context that trusts the authority."""
        context = ssl.create_default_context()
        self.tls.authority.configure_trust(context)
        for name, value in attributes.items():
            setattr(context, name, value)
        return context


SERVER = Certificates()


class Peer:
    """A client, as a function of bytes."""

    def __init__(self, version=ssl.TLSVersion.TLSv1_3, context=None):
        context = context or SERVER.client_context(maximum_version=version)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def shake_hands(self, records):
        """One more turn of a handshake with ``records``; whether both are done."""
        done = self.shakes()
        if ciphertext := self.output():
            records.feed(ciphertext)
        done &= records.shake_hands()
        self.takes(records.take_output())
        return done

    def shakes(self):
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def says(self, text):
        """Its ciphertext for a text."""
        self.tls.write(text)
        return self.output()

    def ends(self):
        """The ciphertext of its end."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.output()

    def output(self):
        """Its ciphertext that has still to go."""
        return self._outgoing.read()

    def takes(self, ciphertext):
        """Take in what the server has sent."""
        self._incoming.write(ciphertext)

    def hears(self, records):
        """The text that it gets, and whether there was an orderly end."""
        self.takes(records.take_output())
        return self.text()

    def text(self):
        """The text that it has got, and whether there was an orderly end."""
        text = b""
        while True:
            try:
                data = self.tls.read(65_536)
            except ssl.SSLWantReadError:
                return text, False
            except ssl.SSLZeroReturnError:
                return text, True
            if not data:
                return text, True
            text += data
