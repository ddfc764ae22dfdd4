"""What people type: addresses and times."""

import argparse
import math

import pytest
from support.scenes import table

from trioserver._cli import values

FINE = {
    "a host and a port": ("127.0.0.1:8000", ("127.0.0.1", 8000)),
    "a name": ("localhost:80", ("localhost", 80)),
    "a service": ("localhost:http", ("localhost", "http")),
    "IPv6": ("[::1]:8000", ("::1", 8000)),
    "every interface": (":8000", ("", 8000)),
    "any port": ("127.0.0.1:0", ("127.0.0.1", 0)),
    "a port alone is on this machine": ("8000", ("127.0.0.1", 8000)),
    "a path": ("unix:/run/x.sock", "/run/x.sock"),
    "a path from here": ("unix:x:1", "x:1"),
    "an abstract name": ("unix:@name", "\0name"),
}
WRONG = ["", "host", "::1:80", "[::1]", "host:", "a:b:c", "1.2.3.4:65536", "unix:", "999999"]


@table(("text", "expected"), FINE)
def test_addresses(text, expected):
    """Each is what a server takes as its address."""
    assert values.address(text) == expected
    assert values.bind(text) == values.Bind(text, expected)


@pytest.mark.parametrize("text", WRONG)
def test_wrong_addresses(text):
    """They are shown, with what was expected."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected|at most") as caught:
        values.address(text)
    assert repr(text) in str(caught.value)


@table(
    ("text", "name"),
    {
        "a number": ("fd://3", "fd://3"),
        "a name": ("inherited:web", "web"),
        "all that there are": ("inherited:", ""),
    },
)
def test_inherited(text, name):
    """Sockets that were passed have a name, or a number."""
    assert values.bind(text) == values.Bind(text, inherited=name)


@pytest.mark.parametrize("text", ["fd://", "fd://x", "fd://-1"])
def test_wrong_descriptors(text):
    """It has to be a number."""
    with pytest.raises(argparse.ArgumentTypeError, match="as in fd://3, not"):
        values.bind(text)


@table(
    ("text", "seconds"),
    {
        "seconds": ("2.5", 2.5),
        "with the unit": ("10s", 10),
        "milliseconds": ("300ms", 0.3),
        "minutes": ("5m", 300),
        "hours": (".5h", 1800),
        "for ever": ("inf", math.inf),
        "none": ("0", 0),
    },
)
def test_times(text, seconds):
    """They are seconds."""
    assert values.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1", "5 parsecs", "1e3", "nan", "s", "1,5", "5min"])
def test_wrong_times(text):
    """They are shown, with what was expected."""
    with pytest.raises(argparse.ArgumentTypeError, match="a time was expected") as caught:
        values.seconds(text)
    assert repr(text) in str(caught.value)


@table(
    ("text", "number"),
    {
        "bytes": ("4096", 4096),
        "with a unit": ("64KiB", 65_536),
        "a larger one": ("16MiB", 16 * 1024 * 1024),
    },
)
def test_sizes(text, number):
    """They are bytes, and are shown as they can be typed."""
    assert values.size(text) == number
    assert values.size(values.shown_size(number)) == number


@pytest.mark.parametrize("text", ["", "64k", "1 MiB", "1.5MiB", "-1", "KiB", "1GiB"])
def test_wrong_sizes(text):
    """They are shown, with what was expected."""
    with pytest.raises(argparse.ArgumentTypeError, match="a number of bytes was exp") as caught:
        values.size(text)
    assert repr(text) in str(caught.value)


@table(
    ("address", "text", "typed"),
    {
        "IPv4": (("127.0.0.1", 80), "127.0.0.1:80", ("127.0.0.1", 80)),
        "IPv6": (("::1", 80, 0, 0), "[::1]:80", ("::1", 80)),
        "a path": ("/run/x", "unix:/run/x", "/run/x"),
        "an abstract name": (b"\0name", "unix:@name", "\0name"),
    },
)
def test_shown(address, text, typed):
    """They can be typed again."""
    assert values.shown(address) == text
    assert values.address(text) == typed
