"""What a server and its workers say to each other, as values."""

import logging
import os

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from trioserver import Outcome
from trioserver._modes.processes.protocol import frames as wire
from trioserver._modes.processes.protocol.frames import FrameError, Frames, Message
from trioserver._modes.processes.protocol.log import as_facts, levels, log_here
from trioserver._modes.processes.protocol.result import Result
from trioserver._modes.processes.protocol.status import SharedStatus, new_shared_status
from trioserver._requests.stream_state import StreamState

kinds = st.sampled_from(list(Message))
texts = st.text()
facts = st.dictionaries(texts, st.none() | st.integers() | texts | st.lists(texts))


@given(st.lists(st.tuples(kinds, st.binary())), st.lists(st.integers(0, 50)))
def test_frames_do_not_depend_on_segments(said, cuts):
    """However the bytes arrive, the same frames come out, in order."""
    stream = b"".join(wire.frame(kind, body) for kind, body in said)
    frames, heard = Frames(), []
    for cut in cuts:
        portion, stream = stream[:cut], stream[cut:]
        heard += frames.feed(portion)
    assert heard + frames.feed(stream) == said


@given(st.integers(0, 30), st.integers(0, 30))
def test_frames_that_are_too_long_are_refused(size, longest):
    """As soon as their length is known."""
    head = wire.frame(Message.LOG, bytes(size))[:5]
    frames = Frames(longest)
    if size <= longest:
        assert frames.feed(head) == ([] if size else [(Message.LOG, b"")])
    else:
        with pytest.raises(FrameError, match=f"a frame of {size} bytes; {longest} are the most"):
            frames.feed(head)


def test_what_is_no_frame_is_refused():
    """With what it began with."""
    with pytest.raises(FrameError, match=r"no frame begins with b'\?'"):
        Frames().feed(b"?\0\0\0\0")


@given(facts, st.binary())
def test_a_worker_tells_facts_and_a_payload(said, payload):
    """Of whatever bytes."""
    assert wire.decode_facts(wire.encode_facts(payload, **said)) == (said, payload)


@given(st.binary())
def test_no_bytes_of_a_worker_break_the_server(body):
    """Whoever takes a worker over can say what he likes: it is facts, or refused."""
    try:
        said, _ = wire.decode_facts(body)
    except FrameError:
        return
    assert isinstance(said, dict)
    for reader in (Result.from_facts, log_here):
        with pytest.raises(FrameError):
            reader(said)


@pytest.mark.parametrize("body", [b"", b"\n", b"5\n", b"[]\n", b"{\n", b"\xff\n", b"{}{}\n"])
def test_what_is_no_fact_is_refused(body):
    """In words."""
    with pytest.raises(FrameError, match="not what a worker says"):
        wire.decode_facts(body)


surrogates = st.text(st.characters(codec=None), min_size=1)
addresses = (
    st.tuples(texts, st.integers())
    | st.tuples(texts, st.integers(), st.integers(), st.integers())
    | surrogates
    | st.binary()
)


@given(addresses)
def test_addresses_survive(address):
    """Of every family: names in undecodable bytes, abstract names, scope ids."""
    body = wire.encode_facts(to=wire.address_to_json(address))
    assert wire.address_from_json(wire.decode_facts(body)[0]["to"]) == address


@pytest.mark.parametrize("value", [None, 5, object(), [("x", 1)], (1.5,), {"bytes": "zz"}])
def test_what_is_no_address_is_refused(value):
    """On either side."""
    with pytest.raises(TypeError):
        wire.address_to_json(value)
    if not isinstance(value, tuple):
        with pytest.raises(FrameError):
            wire.address_from_json(value)


@given(st.characters(codec=None), st.integers(0, 100_000))
def test_long_texts_are_cut(character, size):
    """In their middle, which is told; three of them go into a frame, whatever is in them."""
    text = character * size
    short = wire.shorten(text)
    assert 3 * len(wire.encode_facts(text=short)) < wire.LONGEST_FROM_WORKER
    assert short == text or "characters ..." in short


endings = st.builds(
    Result,
    outcome=st.sampled_from([one.value for one in Outcome]),
    reason=texts,
    stream=st.builds(
        StreamState,
        received=st.integers(0),
        sent=st.integers(0),
        at_eof=st.booleans(),
        output_ended=st.booleans(),
        broken=st.none() | st.tuples(st.just(trio.BrokenResourceError), texts),
        ended_idle=st.booleans(),
        detached=st.booleans(),
        may_have_sent=st.booleans(),
    ),
    error=texts,
    traceback=texts,
)


@given(endings)
def test_an_ending_survives(ending):
    """Whatever it is; what is as ever goes without saying."""
    said = ending.as_facts()
    assert Result.from_facts(wire.decode_facts(wire.encode_facts(**said))[0]) == ending
    ever = attrs.asdict(Result())
    assert [name for name, value in said.items() if value == ever[name]] in ([], ["outcome"])


@given(endings, st.sampled_from([field.name for field in attrs.fields(Result)]))
def test_half_an_ending_is_refused(ending, name):
    """And one with something else in it."""
    said = ending.as_facts()
    wrong = [{**said, "more": 1}, {**said, "more": None}, {**said, name: 1.5}, {**said, name: None}]
    del said["outcome"]
    for facts in (*wrong, said):
        with pytest.raises(FrameError, match="not how a request ends"):
            Result.from_facts(facts)


def test_an_error_is_told_in_words():
    """Also one that cannot be told."""

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    ending = Result()
    try:
        raise Mute
    except Mute as error:
        ending.note_error(error)
    assert (ending.outcome, ending.error) == ("failed", "Mute")
    assert "in test_an_error_is_told_in_words" in ending.traceback


WHAT_RECORDS_TELL = (
    *("name", "levelname", "levelno", "pathname", "filename", "module", "lineno", "funcName"),
    *("created", "msecs", "thread", "threadName", "process", "processName", "stack_info"),
)


def test_a_record_is_logged_as_it_was(caplog):
    """With its message, level, place, time and traceback."""
    log = logging.getLogger("tests.process.wire")
    with caplog.at_level(logging.INFO):
        try:
            raise ValueError("on purpose")
        except ValueError:
            log.warning("it is %s", "late", exc_info=True, stack_info=True)
        [sent] = caplog.records
        caplog.clear()
        for name in ("created", "relativeCreated"):  # or it would be now
            setattr(sent, name, getattr(sent, name) - (100.5 if name == "created" else 100_500))
        sent.msecs = float(int(sent.created % 1 * 1000))
        log_here(wire.decode_facts(wire.encode_facts(**as_facts(sent)))[0])
    [record] = caplog.records
    for name in WHAT_RECORDS_TELL:
        assert getattr(record, name) == getattr(sent, name), name
    assert record.relativeCreated == pytest.approx(sent.relativeCreated)
    assert record.getMessage() == "it is late"
    assert record.exc_text is not None
    assert record.exc_text.endswith("ValueError: on purpose")


def test_a_record_below_the_level_is_not_logged(caplog):
    """The server's loggers decide."""
    log = logging.getLogger("tests.process.wire")
    with caplog.at_level(logging.INFO):
        log.info("seen")
        [sent] = caplog.records
        caplog.clear()
        with caplog.at_level(logging.ERROR, "tests.process.wire"):
            assert levels()["tests.process.wire"] == logging.ERROR
            log_here(as_facts(sent))
    assert not caplog.records


def _make_nothing(monkeypatch):
    """A record of a program that has told `logging` to leave out what it does not need."""
    monkeypatch.setattr(logging, "logThreads", False)
    monkeypatch.setattr(logging, "logProcesses", False)
    return logging.LogRecord("app", logging.ERROR, "", 0, "so little", (), None, func=None)


@pytest.mark.parametrize(
    "made", [_make_nothing, lambda _: logging.makeLogRecord({"msg": "so little", "levelno": 40})]
)
def test_a_record_may_tell_little(made, monkeypatch, caplog):
    """What is not there stays away, and is no nonsense."""
    log_here(wire.decode_facts(wire.encode_facts(**as_facts(made(monkeypatch))))[0])
    [record] = caplog.records
    assert (record.getMessage(), record.levelno) == ("so little", logging.ERROR)


@settings(deadline=None)  # it is much, and the machine may be busy
@given(st.characters(codec=None))
def test_a_record_fits_into_a_frame(character):
    """Whatever is in it, and wherever."""
    long = character * 100_000
    record = logging.LogRecord(long, logging.ERROR, long, 0, long, (), None, long)
    record.exc_text = record.stack_info = record.threadName = record.processName = long
    assert len(wire.encode_facts(**as_facts(record))) <= wire.LONGEST_FROM_WORKER


def test_a_record_that_a_filter_fails_on():
    """That the program's own filter raises is no reason for the server to end."""

    def fails(record):
        raise LookupError

    log = logging.getLogger("tests.process.filter")
    log.addFilter(fails)
    log_here(as_facts(logging.makeLogRecord({"name": log.name, "levelno": logging.ERROR})))


def test_a_page_is_shared():
    """What one maps, another sees, and a closed one tells so."""

    def seen():
        return reader.request, reader.received, reader.sent, reader.state

    number = new_shared_status()
    writer, reader = SharedStatus(number), SharedStatus(number)
    os.close(number)
    assert seen() == (0, 0, 0, "working")
    writer.begin(7)
    writer.publish(2**40, 3, "idle")
    assert seen() == (7, 2**40, 3, "idle")
    writer.begin(8)  # of the request before, nothing is left to see
    assert seen() == (8, 0, 0, "working")
    writer.begin(9, 5, 6)
    assert seen() == (9, 5, 6, "working")
    writer.close()
    with pytest.raises(ValueError, match="released"):
        writer.request  # noqa: B018
    assert reader.request == 9
    reader.close()
