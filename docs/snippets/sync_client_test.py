import socket
import unittest

import pytest
from trioserver.testing import serve_in_thread

from client_test import Dictionary


def look_up(address, word):
    """The client under test, which knows nothing of Trio."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(word + b"\n")
        with connection.makefile("rb") as answers:
            return answers.readline().strip()


def test_look_up():
    with serve_in_thread(Dictionary) as server:
        assert look_up(server.address, b"cat") == b"chat"
        [exchange] = server.wait_requests()
        assert exchange.record.bytes_received == 4


class DictionaryTest(unittest.TestCase):
    def setUp(self):
        self.server = self.enterContext(serve_in_thread(Dictionary))

    def test_look_up(self):
        assert look_up(self.server.address, b"cat") == b"chat"


@pytest.fixture(scope="session")
def one_for_all():
    with serve_in_thread(Dictionary) as server:
        yield server


@pytest.fixture
def dictionary(one_for_all):
    yield one_for_all
    one_for_all.wait_idle()
    one_for_all.check()


def test_known_word(dictionary):
    assert look_up(dictionary.address, b"dog") == b"chien"


def test_unknown_word(dictionary):
    with dictionary.expect_error(KeyError):
        assert look_up(dictionary.address, b"cow") == b""
