import ssl

import pytest
import trio
import trioserver
import trustme
from trioserver.testing import MemoryMixIn, TLSClient, open_test_server

import tls

AUTHORITY, MEMBERS = trustme.CA(), trustme.CA()


class InMemory(MemoryMixIn, trioserver.TCPServer):
    pass


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the snippets name."""
    monkeypatch.chdir(tmp_path)
    for name, host in (("", "example.org"), ("net-", "example.net")):
        issued = AUTHORITY.issue_cert(host)
        issued.private_key_pem.write_to_path(f"{name}key.pem")
        issued.cert_chain_pems[0].write_to_path(f"{name}cert.pem")
    MEMBERS.cert_pem.write_to_path("members-ca.pem")
    return tmp_path


async def by_tls(stream, name="example.org", unit=None):
    """The client of a server by TLS, who asks for a name; with a certificate of a unit."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    if unit is not None:
        MEMBERS.issue_cert("ada", organization_unit_name=unit).configure_cert(context)
    client = TLSClient(stream, context, name)
    await client.do_handshake()
    return client


async def test_by_tls(trio_server):
    server = await trio_server(tls.hello, tls=True)
    client = await server.connect()
    assert await client.receive_some() == b"hello by TLSv1.3\n"


async def test_hello(files, autojump_clock):
    """A server as it is told of."""
    async with open_test_server(tls.by_tls()) as server:
        client = await by_tls(await server.connect())
        assert await client.receive_some() == b"hello by TLSv1.3\n"


@pytest.mark.parametrize(("unit", "reply"), [("members", b"A\n"), ("guests", b"members only\n")])
async def test_members(unit, reply, files, autojump_clock):
    """It is decided by the certificate, before the handler."""
    served = tls.MembersServer(("", 1), tls.Mail, ssl_context=tls.make_context_for_members)
    async with open_test_server(served) as server:
        client = await by_tls(await server.connect(), unit=unit)
        assert await client.receive_some() == (b"220 ready\r\n" if unit == "members" else reply)
    async with open_test_server(served) as server:
        nobody = await by_tls(await server.connect())
        with pytest.raises(trio.BrokenResourceError):
            await nobody.receive_some()


@pytest.mark.parametrize("name", ["example.org", "example.net"])
async def test_names(name, files, autojump_clock):
    """Each gets the certificate of the name that it asks for."""
    served = InMemory(("m", 1), tls.hello, ssl_context=tls.make_contexts_by_name)
    async with served.serving() as server:
        client = await by_tls(await server.connect(), name)
        assert await client.receive_some() == b"hello by TLSv1.3\n"


async def test_reload_every_day(files, autojump_clock, capsys):
    """A bad file on one day changes nothing; the new one of the next day is used."""
    served = InMemory(("m", 1), tls.hello, ssl_context=tls.make_context)

    async def certificate():
        client = await by_tls(await served.connect())
        return client.ssl_object.getpeercert(binary_form=True)

    async with served.serving() as server, trio.open_nursery() as nursery:
        nursery.start_soon(tls.reload_every_day, server)
        first = await certificate()
        (files / "cert.pem").write_text("half of it")
        await trio.sleep(86_400 + 1)
        assert "the old certificate stays: certificate: cert.pem" in capsys.readouterr().err
        assert await certificate() == first
        renewed = AUTHORITY.issue_cert("example.org")
        renewed.private_key_pem.write_to_path("key.pem")
        renewed.cert_chain_pems[0].write_to_path("cert.pem")
        await trio.sleep(86_400 + 1)
        assert await certificate() != first
        nursery.cancel_scope.cancel()


async def test_mail(files, autojump_clock):
    """Nothing is done before it is protected."""
    async with open_test_server(tls.Mail) as server:
        stream = await server.connect()
        assert await stream.receive_some() == b"220 ready\r\n"
        for said, heard in (
            (b"MAIL", b"530 must issue STARTTLS first\r\n"),
            (b"STARTTLS", b"220 go ahead\r\n"),
        ):
            await stream.send_all(said + b"\r\n")
            assert await stream.receive_some() == heard
        client = await by_tls(stream)
        for said, heard in ((b"mail", b"250 MAIL\r\n"), (b"QUIT", b"221 bye\r\n")):
            await client.send_all(said + b"\r\n")
            assert await client.receive_some() == heard
        assert await client.receive_some() == b""


async def test_files(files, capfd):
    """In a thread it is an ``ssl.SSLSocket``."""
    context = tls.make_context()
    context.set_alpn_protocols(["lines"])
    served = trioserver.ThreadingTCPServer(("127.0.0.1", 0), tls.Files, ssl_context=context)
    async with open_test_server(served, transport="tcp") as server:
        client = await by_tls(await server.connect())
        await client.send_all(b"one\n")
        assert await client.receive_some() == b"ONE\n"
        await client.send_eof()
        assert await client.receive_some() == b""
    assert "agreed on None" in capfd.readouterr().err
