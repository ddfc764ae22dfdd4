"""TLS contexts: what a wrong file, or a wrong context, is told, before any client comes."""

import pickle
import ssl
from functools import partial
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from support import Upper
from support.scenes import table
from support.tls import SERVER

import trioserver
from trioserver import ThreadingTCPServer, server_context
from trioserver.testing import MemoryServer

AUTHORITY = trustme.CA()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Files that are right, and others."""
    monkeypatch.chdir(tmp_path)
    mine, other = AUTHORITY.issue_cert("localhost"), AUTHORITY.issue_cert("localhost")
    mine.cert_chain_pems[0].write_to_path("cert.pem")
    mine.private_key_pem.write_to_path("key.pem")
    other.private_key_pem.write_to_path("other.pem")
    AUTHORITY.cert_pem.write_to_path("ca.pem")
    (tmp_path / "empty.pem").write_bytes(b"")
    whole, key = Path("cert.pem").read_bytes(), Path("key.pem").read_bytes()
    (tmp_path / "half.pem").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half-a-chain.pem").write_bytes(whole + whole[: len(whole) // 2])
    (tmp_path / "half-a-key.pem").write_bytes(key[: len(key) // 2])
    (tmp_path / "binary.pem").write_bytes(bytes(range(256)))
    return tmp_path


@table(
    ("arguments", "kind", "message"),
    {
        "no file there": (("no.pem", "key.pem"), FileNotFoundError, "'no.pem'"),
        "no key there": (("cert.pem", "no.pem"), FileNotFoundError, "'no.pem'"),
        "a folder": ((".", "key.pem"), IsADirectoryError, "'.'"),
        "no path": ((b"cert.pem", "key.pem"), TypeError, "certificate must be the path of a PEM"),
        "an empty file": (
            *(("empty.pem", "key.pem"), ValueError),
            "certificate: empty.pem must have a certificate in PEM, and has none",
        ),
        "no text": (
            *(("binary.pem", "key.pem"), ValueError),
            "certificate: binary.pem must have a certificate in PEM, and has none",
        ),
        "the two in the wrong order": (
            *(("key.pem", "cert.pem"), ValueError),
            "certificate: key.pem must have a certificate in PEM, and has none",
        ),
        "no key in it": (
            *(("cert.pem", "ca.pem"), ValueError),
            "key: ca.pem must have a private key in PEM, and has none",
        ),
        "another one's key": (
            *(("cert.pem", "other.pem"), ValueError),
            "key: other.pem is not the key of the first certificate in cert.pem",
        ),
        "half a certificate": (
            *(("half.pem", "key.pem"), ValueError),
            "certificate: half.pem must have whole certificates in PEM; it is damaged",
        ),
        "half a certificate after a whole one": (
            *(("half-a-chain.pem", "key.pem"), ValueError),
            "certificate: half-a-chain.pem must have whole certificates in PEM; it is damaged",
        ),
        "half a key": (
            *(("cert.pem", "half-a-key.pem"), ValueError),
            "key: half-a-key.pem must have a whole private key in PEM; it is damaged",
        ),
        "no name of a file": (("", "key.pem"), ValueError, "certificate must be the path of a PEM"),
        "no name that a file has": (
            *(("cert.pem", "key\0.pem"), ValueError),
            "key must be the path of a PEM file, not 'key",
        ),
    },
)
def test_wrong_files(arguments, kind, message, files):
    """TL-10: one line, which names the file and what was expected of it."""
    with pytest.raises(kind) as error:
        server_context(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_key_with_a_password(files):
    """Nobody is asked for it: that would be at the terminal."""
    password = serialised_with_a_password((files / "key.pem").read_bytes())
    (files / "locked.pem").write_bytes(password)
    with pytest.raises(ValueError, match=r"key: locked\.pem must have .* without a password"):
        server_context("cert.pem", "locked.pem")


def serialised_with_a_password(key):
    """The same key, locked."""
    private = serialization.load_pem_private_key(key, None)
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


@table(
    ("options", "kind", "message"),
    {
        "no authorities": (
            {"client_ca": "empty.pem"},
            ValueError,
            "client_ca: empty.pem must have certificates",
        ),
        "no file of them": ({"client_ca": "no.pem"}, FileNotFoundError, "no.pem"),
        "no protocols at all": ({"alpn": None}, TypeError, "not None"),
        "protocols that can be read once": ({"alpn": iter(["h2"])}, TypeError, "not <"),
        "protocols as one text": ({"alpn": "h2"}, TypeError, "not 'h2'"),
        "protocols as bytes": ({"alpn": [b"h2"]}, TypeError, "not [b'h2']"),
        "an empty protocol": ({"alpn": [""]}, ValueError, "1 to 255 ASCII characters"),
        "one that is too long": ({"alpn": ["x" * 256]}, ValueError, "1 to 255 ASCII characters"),
    },
)
def test_wrong_options(options, kind, message, files):
    """The argument is named."""
    with pytest.raises(kind) as error:
        server_context("cert.pem", "key.pem", **options)
    assert message in str(error.value)
    assert next(iter(options)) in str(error.value) or kind is FileNotFoundError


def test_settings(files):
    """Today's: no old version, no renegotiation; client certificates only if they are asked for."""
    context = server_context(files / "cert.pem", files / "key.pem")
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.verify_mode is ssl.CERT_NONE
    asks = server_context("cert.pem", "key.pem", client_ca="ca.pem")
    assert asks.verify_mode is ssl.CERT_REQUIRED


@table(
    ("value", "kind"),
    {
        "a path": ("cert.pem", TypeError),
        "a client's context": (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ValueError),
        "a function that wants something": (lambda server: None, TypeError),
        "an async function": (Upper.handle, TypeError),
    },
)
def test_wrong_context(value, kind):
    """It is refused when the server is built, by the field's name."""
    with pytest.raises(kind, match=r"^TCPServer\.ssl_context must be .*, not "):
        trioserver.TCPServer(("localhost", 0), Upper, ssl_context=value)


@table(
    ("make", "error"),
    {
        "it raises": (partial(server_context, "no.pem", "no.pem"), FileNotFoundError),
        "it returns nothing": (lambda: None, TypeError),
        "a client's context": (lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ValueError),
    },
)
async def test_function_that_fails(make, error, autojump_clock):
    """TL-10: the server does not start; a reload raises it, and the old context stays."""
    server = MemoryServer(("m", 1), Upper, ssl_context=make)
    with pytest.raises(error):
        await server.serve_forever()
    made = [SERVER.context]
    server = MemoryServer(("m", 1), Upper, ssl_context=lambda: made[-1]())  # noqa: PLW0108  (of then)
    with pytest.raises(RuntimeError, match="not bound"):
        server.reload()
    async with server.serving():
        before = server._run.credentials.context
        made.append(make)
        with pytest.raises(error):
            server.reload()
        assert server._run.credentials.context is before
        made.append(SERVER.context)
        server.reload()
        assert server._run.credentials.context is not before


async def test_reload_amid_a_reload(autojump_clock):
    """TL-11: one by a signal handler, say. It has seen the newer files, so its context holds."""
    made = []

    def make():
        number = len(made)
        made.append(SERVER.context())
        if number == 1:
            server.reload()
        return made[number]

    server = MemoryServer(("m", 1), Upper, ssl_context=make)
    async with server.serving():
        server.reload()
        assert len(made) == 3
        assert server._run.credentials.context is made[2]


@table(
    ("value", "message"),
    {
        "nothing": (None, "there is nothing to reload: MemoryServer.ssl_context is None"),
        "a context": (SERVER.context(), "MemoryServer.ssl_context is a context, and would be"),
    },
)
async def test_nothing_to_reload(value, message, autojump_clock):
    """It is said in words."""
    server = MemoryServer(("m", 1), Upper, ssl_context=value)
    async with server.serving():
        with pytest.raises(RuntimeError, match=f"^{message}"):
            server.reload()


def test_pickle():
    """A function that is at the top of a module comes along; a context cannot, but copies can."""
    server = ThreadingTCPServer(("localhost", 0), print, ssl_context=SERVER.context)
    twin = pickle.loads(pickle.dumps(server))  # noqa: S301
    assert twin.ssl_context() is not None
    server = server.evolve(ssl_context=SERVER.context())
    assert server.evolve(max_threads=3).ssl_context is server.ssl_context
    with pytest.raises(TypeError, match=r"ThreadingTCPServer\.ssl_context is an ssl\.SSLContext"):
        pickle.dumps(server)


async def test_workers_need_a_function():
    """A context that cannot get to a worker is refused when the server starts."""
    server = trioserver.ProcessTCPServer(("127.0.0.1", 0), print, ssl_context=SERVER.context())
    with pytest.raises(TypeError, match=r"ProcessTCPServer\.ssl_context does not pickle"):
        await server.serve_forever()
