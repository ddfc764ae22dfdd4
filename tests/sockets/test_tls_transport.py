"""What TLS does at once with the bytes beneath it: how much it takes, what it sends by itself."""

import ssl

import attrs
import pytest
from support.tls import SERVER, Peer
from support.tls_keys import OwnRecords

from trioserver._sockets.tls_errors import TLSError
from trioserver._sockets.tls_records import TLSRecords
from trioserver._sockets.tls_transport import TLSOperations
from trioserver._sockets.transport import UncleanEnd


@attrs.define(eq=False)
class Wire:
    """Bytes that wait to be received, and those that were sent, for which there is room."""

    incoming: bytes = b""
    sent: bytes = b""
    room: float = float("inf")
    has_ended: bool = False
    receives: int = 0

    def receive_now(self, max_bytes):
        self.receives += 1
        data, self.incoming = self.incoming[:max_bytes], self.incoming[max_bytes:]
        return data or (b"" if self.has_ended else None)

    def send_now(self, data):
        taken = int(min(len(data), self.room))
        self.sent += bytes(data[:taken])
        self.room -= taken
        return taken

    def taken(self):
        """What was sent since."""
        sent, self.sent = self.sent, b""
        return sent


def begun(peer=None):
    """The operations, the wire beneath, and a client that has said its first words."""
    wire, peer = Wire(), peer or Peer()
    operations = TLSOperations(wire, TLSRecords(SERVER.context()))
    peer.shakes()
    wire.incoming += peer.output()
    assert not operations.shake_hands_now()
    peer.takes(wire.taken())
    peer.shakes()
    return operations, wire, peer


def agreed(peer=None):
    """The same, when both have agreed."""
    operations, wire, peer = begun(peer)
    wire.incoming += peer.output()
    assert operations.shake_hands_now()
    peer.takes(wire.taken())
    assert peer.shakes()
    return operations, wire, peer


def test_handshake_takes_nothing_that_comes_after_it():
    """What the client says at once is left where a handler may wait for it."""
    operations, wire, peer = begun()
    wire.incoming += peer.output()
    wire.incoming += (said := peer.says(b"at once"))
    assert operations.shake_hands_now()
    assert wire.incoming == said
    assert operations.receive_now(100) == b"at once"


def test_last_flight_that_finds_no_room():
    """In TLS 1.2 the server has the last word: the handshake is complete when that has gone."""
    operations, wire, peer = begun(Peer(ssl.TLSVersion.TLSv1_2))
    wire.incoming += peer.output()
    wire.room = 10
    for _ in range(2):
        assert not operations.shake_hands_now()
        assert operations.holds_output
    wire.room = 10_000
    assert operations.shake_hands_now()
    peer.takes(wire.taken())
    assert peer.shakes()


def test_input_without_text_keeps_nobody_waiting(tmp_path):
    """However much of it there is: one receive a time, and then others have their turn."""
    operations, wire, peer = agreed(OwnRecords(tmp_path))
    peer.takes_over()
    updates = b"".join(peer.changes_keys(asks_too=False) for _ in range(5000))
    assert len(updates) > 2 * 65_536
    wire.incoming = updates + peer.says(b"at last")
    answers = []
    while not (answers and answers[-1]):
        before = wire.receives
        answers.append(operations.receive_now(100))
        assert wire.receives == before + 1
    assert answers == [None, None, b"at last"]


def test_answers_go_at_once(tmp_path):
    """Who is asked for new keys has them, also where a handler only reads.

    OpenSSL makes the answer to one such word when it reads the next one.
    """
    operations, wire, peer = agreed(OwnRecords(tmp_path))
    peer.takes_over()
    for number in range(3):
        wire.incoming = peer.changes_keys(asks_too=True)
        assert operations.receive_now(100) is None
        if number:
            assert wire.taken()
            assert operations.records.unsent == 0


def test_answers_that_nobody_takes(tmp_path):
    """They are bounded: what asks for more, and reads none of it, is told off."""
    operations, wire, peer = agreed(OwnRecords(tmp_path))
    peer.takes_over()
    wire.room = 0
    with pytest.raises(TLSError, match="again and again, and takes no answer"):
        for _ in range(10_000):
            wire.incoming = peer.changes_keys(asks_too=True)
            assert operations.receive_now(100) is None
    assert operations.records.unsent < 2 * 65_536


def test_send_has_an_end():
    """A client that reads as fast as the server writes lets others have their turn, too."""
    operations, wire, _ = agreed()
    sent = operations.send_now(bytes(10_000_000))
    assert 65_536 <= sent <= 2**20
    assert len(wire.sent) < 1.1 * 2**20


def test_answer_amid_a_send(tmp_path):
    """What a read has had go counts in the send alone; until it does, the send is half done."""
    operations, wire, peer = agreed(OwnRecords(tmp_path))
    peer.takes_over()
    assert operations.flush_now()
    wire.room = 10
    assert operations.send_now(b"a" * 20_000) == 0
    wire.room = 1_000_000
    for _ in range(2):
        wire.incoming = peer.changes_keys(asks_too=True)
        assert operations.receive_now(100) is None
    assert not operations.records.held
    assert operations.holds_output
    assert operations.send_now(b"a" * 20_000) == 20_000
    assert not operations.holds_output


def test_wrong_record_stays_wrong():
    """Also when somebody has looked ahead, and whatever comes then: it is never an end."""
    operations, wire, peer = agreed()
    wrong = bytearray(peer.says(b"wrong"))
    wrong[-1] ^= 1
    wire.incoming, wire.has_ended = bytes(wrong), True
    operations.records.feed(operations.beneath.receive_now(1000))
    assert operations.pending_now() == 0
    assert wire.sent  # the alert
    for _ in range(2):
        with pytest.raises(TLSError, match="bad record mac"):
            operations.receive_now(100)


@pytest.mark.parametrize("size", [0, 3, 20])
def test_end_of_the_wire(size):
    """In the middle of a record it cuts something; between two, it may be how somebody leaves."""
    operations, wire, peer = agreed()
    wire.incoming, wire.has_ended = peer.says(b"half a record")[:size], True
    if size:
        assert operations.receive_now(100) is None
    kind = TLSError if size else UncleanEnd
    with pytest.raises(kind, match="in the middle of a record" if size else "close_notify"):
        operations.receive_now(100)


def test_handshake_that_was_given_up():
    """Nothing is agreed on any more, whatever the client says then."""
    operations, wire, peer = begun()
    operations.records.give_up()
    wire.incoming += peer.output() + peer.says(b"secret")
    for attempt in (operations.shake_hands_now, lambda: operations.receive_now(100)):
        with pytest.raises(TLSError, match="cut short"):
            attempt()
    with pytest.raises(TLSError, match="cut short"):
        operations.send_now(b"secret")
