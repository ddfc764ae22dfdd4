"""TLS for servers under test: an authority of their own, and clients that trust it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import trio
from trio.lowlevel import checkpoint

import trioserver

from .._memory.client_end import PORTION, portion_of

NAMES = ("localhost", "127.0.0.1", "::1")
"""For whom the certificates of servers under test are."""


@attrs.frozen
class TestTLS:
    """What TLS needs in a test; one for all tests, as keys take time to make.

    Attributes:
      authority: a ``trustme.CA``, whom clients trust, and who issues client certificates, too.
      certificate: the file with the server's certificate, for localhost and its addresses.
      key: the file with its key.
      client_context: trusts the authority. To be changed for one test, make one of your own:
        ``authority.configure_trust(context)``.
    """

    authority: Any
    certificate: Path
    key: Path
    client_context: ssl.SSLContext
    _folder: TemporaryDirectory[str] = attrs.field(repr=False)

    __test__ = False  # pytest takes it for a test otherwise, by its name


@cache
def tls_for_tests() -> TestTLS:
    """Make it, once in a process.

    Raises:
      RuntimeError: trustme is not installed.
    """
    try:
        import trustme  # noqa: PLC0415  (an extra)
    except ImportError:
        raise RuntimeError(
            "tls=True makes certificates with trustme: pip install trioserver[test]"
        ) from None
    authority = trustme.CA()
    issued = authority.issue_cert(*NAMES)
    folder = TemporaryDirectory(prefix="trioserver-")  # until the end of the process
    certificate, key = Path(folder.name) / "certificate.pem", Path(folder.name) / "key.pem"
    certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    client_context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    authority.configure_trust(client_context)
    return TestTLS(authority, certificate, key, client_context, folder)


@contextmanager
def with_tls(server: trioserver.BaseServer) -> Iterator[TestTLS]:
    """Have ``server`` speak TLS in the block.

    Raises:
      TypeError: it has no TLS, or one of its own.
    """
    name = type(server).__name__
    if not isinstance(server, trioserver.TCPServer):
        raise TypeError(f"tls=True: a {name} has no TLS; connections of TCP and Unix servers have")
    if server.ssl_context is not None:
        raise TypeError(f"tls=True: the {name} has an ssl_context already; leave one of them out")
    tls = tls_for_tests()
    server.ssl_context = partial(trioserver.server_context, tls.certificate, tls.key)
    try:
        yield tls
    finally:
        server.ssl_context = None


class TLSClient(trio.abc.HalfCloseableStream):
    """A client's end of a TLS connection, which can end its output and read on.

    Attributes:
      transport_stream: the stream for the ciphertext.
      ssl_object: what was agreed on, as `ssl.SSLObject` tells it.

    An end of the server's without close_notify is a `trio.BrokenResourceError`, as an error of
    TLS is.
    """

    def __init__(
        self,
        transport_stream: trio.abc.Stream,
        context: ssl.SSLContext,
        server_hostname: str | None = NAMES[0],
    ) -> None:
        self.transport_stream = transport_stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl_object: ssl.SSLObject = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_hostname
        )
        self._ahead = bytearray()
        self._has_ended = False

    async def do_handshake(self) -> None:
        """Agree on TLS; to be called once, first.

        Raises:
          trio.BrokenResourceError: one of both does not agree.
        """
        while True:
            try:
                self.ssl_object.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed()
            except ssl.SSLError as error:
                await self._flush()  # the alert
                raise trio.BrokenResourceError(str(error)) from error
            else:
                await self._flush()
                return

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive bytes; ``b""`` at the server's close_notify."""
        most = portion_of(max_bytes)
        await checkpoint()
        while (data := self._read(most)) is None:
            await self._feed()
        return data

    def _read(self, most: int) -> bytes | None:
        """Plain text; ``b""`` at the orderly end; None if more ciphertext must come first."""
        if self._ahead:
            data = bytes(self._ahead[:most])
            del self._ahead[:most]
            return data
        return self._decipher(most)

    def _decipher(self, most: int) -> bytes | None:
        try:
            return self.ssl_object.read(most)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def _feed(self) -> None:
        ciphertext = await self.transport_stream.receive_some(PORTION)
        if not ciphertext:
            raise trio.BrokenResourceError("the server's output has ended without close_notify")
        self._incoming.write(ciphertext)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``."""
        if self._has_ended:
            raise trio.ClosedResourceError("this side has ended its output")
        with memoryview(data).cast("B") as view:
            for at in range(0, len(view), PORTION):
                self._encipher(view[at : at + PORTION])
                await self._flush()
        await checkpoint()

    def _encipher(self, data: memoryview) -> None:
        try:
            self.ssl_object.write(data)
        except ssl.SSLError as error:  # its handshake has failed, too
            raise trio.BrokenResourceError(str(error)) from error

    async def _flush(self) -> None:
        await self.transport_stream.send_all(self._outgoing.read())

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until bytes can be sent."""
        await self.transport_stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """End the output by a close_notify; twice is once."""
        self._say_goodbye()
        await self._flush()

    def _say_goodbye(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        try:
            # It looks for the server's, and what has come before that would be lost.
            while data := self._decipher(PORTION):
                self._ahead += data
            self.ssl_object.unwrap()
        except (ssl.SSLError, trio.BrokenResourceError):
            pass

    async def aclose(self) -> None:
        """Close, after a close_notify; cancelled, without one."""
        try:
            await self.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await self.transport_stream.aclose()
