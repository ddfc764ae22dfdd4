"""What holds for every test."""

import signal
import ssl
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from trioserver.testing import open_descriptors

pytest.register_assert_rewrite("support")  # what they compare is told when it fails, too

# How long an example takes is the machine's affair. All else is as usual, or as usual in CI.
settings.register_profile("patient", settings(), deadline=None)
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def signals_are_heeded():
    """Also in a background job of a shell, or under nohup, whose children ignore them, too."""
    usual = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    usual = {getattr(signal, name): usual[name] for name in usual if hasattr(signal, name)}
    ignored = [number for number in usual if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True, scope="session")
def timelines_go_away(tmp_path_factory):
    """Those of the findings of sweeps, of which tests make many, and look at few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIOSERVER_TIMELINES", str(tmp_path_factory.getbasetemp() / "timelines"))
        yield


@pytest.fixture
def nothing_stays_open():
    """Whatever a test does with servers, all descriptors are closed at its end."""
    before = open_descriptors()
    yield
    assert not open_descriptors() - before  # fewer: a collection has found those of other tests


@pytest.fixture
def folder():
    """A folder with a short name, as socket addresses are short."""
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        yield Path(name)


# TLS. trustme is imported when the first test needs it: most do not.


@pytest.fixture(scope="session")
def authority():
    """Who signs the server's certificate."""
    import trustme  # noqa: PLC0415

    return trustme.CA()


@pytest.fixture(scope="session")
def context(authority):
    """What a server needs to prove who it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def trusting(authority):
    """What a client needs to believe it."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
