"""What a server and its workers say to each other, as values; and what a worker may become."""

import logging
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support import process_handlers as handlers

from trioserver import Outcome
from trioserver._modes.processes.protocol import frames as wire
from trioserver._modes.processes.protocol.channel import Channel
from trioserver._modes.processes.protocol.frames import FrameError, Frames, Message
from trioserver._modes.processes.protocol.log import as_facts, levels, log_here
from trioserver._modes.processes.protocol.replies import Replies, as_answer
from trioserver._modes.processes.protocol.result import Result
from trioserver._modes.processes.protocol.status import SharedStatus, new_shared_status
from trioserver._modes.processes.server.phase import Phase
from trioserver._modes.processes.server.worker_process import Worker
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
    """As soon as their length is known; and what is no frame, with what it began with."""
    head, frames = wire.frame(Message.LOG, bytes(size))[:5], Frames(longest)
    if size <= longest:
        assert frames.feed(head) == ([] if size else [(Message.LOG, b"")])
    else:
        with pytest.raises(FrameError, match=f"a frame of {size} bytes; {longest} are the most"):
            frames.feed(head)
    with pytest.raises(FrameError, match=r"no frame begins with b'\?'"):
        Frames().feed(b"?\0\0\0\0")


@given(st.binary())
def test_no_bytes_of_a_worker_break_the_server(body):
    """Whoever takes a worker over can say what he likes: it is facts, or refused, in words."""
    try:
        said, _ = wire.decode_facts(body)
    except FrameError:
        return
    assert isinstance(said, dict)
    for reader in (Result.from_facts, log_here):
        with pytest.raises(FrameError):
            reader(said)


def test_what_is_no_fact_is_refused():
    """Nor what is no address, on either side."""
    for line in (b"", b"5", b"[1, 2]", b"{", b"\xff", b"{}{}", b"completed", b"[" * 100_000):
        for body in (line, line + b"\n"):
            with pytest.raises(FrameError, match="not what a worker says"):
                wire.decode_facts(body)
    for value in (None, 5, object(), [("x", 1)], {"bytes": "zz"}):
        with pytest.raises(TypeError):
            wire.address_to_json(value)
        with pytest.raises(FrameError):
            wire.address_from_json(value)
    with pytest.raises(TypeError):
        wire.address_to_json((1.5,))


surrogates = st.text(st.characters(codec=None), min_size=1)
numbers = st.integers()
addresses = st.tuples(texts, numbers) | st.tuples(texts, *[numbers] * 3) | surrogates | st.binary()


@given(facts, addresses, st.binary())
def test_facts_and_a_payload_survive(said, address, payload):
    """Addresses of every family: names in undecodable bytes, abstract names, scope ids."""
    body = wire.encode_facts(payload, **{**said, "to": wire.address_to_json(address)})
    found, rest = wire.decode_facts(body)
    assert (wire.address_from_json(found.pop("to")), rest) == (address, payload)
    assert found == {name: value for name, value in said.items() if name != "to"}


@given(st.characters(codec=None), st.integers(0, 100_000))
def test_long_texts_are_cut(character, size):
    """In their middle, which is told; three of them go into a frame, whatever is in them."""
    text = character * size
    short = wire.shorten(text)
    assert 3 * len(wire.encode_facts(text=short)) < wire.LONGEST_FROM_WORKER
    assert short == text or "characters ..." in short


stream_states = st.builds(
    StreamState,
    **dict.fromkeys(("received", "sent"), st.integers(0)),
    **dict.fromkeys(
        ("at_eof", "output_ended", "ended_idle", "detached", "may_have_sent"), st.booleans()
    ),
    broken=st.none() | st.tuples(st.just(trio.BrokenResourceError), texts),
)
endings = st.builds(
    Result,
    outcome=st.sampled_from([one.value for one in Outcome]),
    stream=stream_states,
    **dict.fromkeys(("reason", "error", "traceback"), texts),
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


WHAT_RECORDS_TELL = (
    *("name", "levelname", "levelno", "pathname", "filename", "module", "lineno", "funcName"),
    *("created", "msecs", "thread", "threadName", "process", "processName", "stack_info"),
)


def passed_on(record):
    """Log it here, as it comes from a worker."""
    log_here(wire.decode_facts(wire.encode_facts(**as_facts(record)))[0])


def test_a_record_is_logged_as_it_was(caplog):
    """With its message, level, place, time and traceback; if the server's loggers want it."""
    log = logging.getLogger("tests.process.wire")
    with caplog.at_level(logging.INFO):
        try:
            raise ValueError("on purpose")
        except ValueError:
            log.warning("it is %s", "late", exc_info=True, stack_info=True)
        [sent] = caplog.records
        caplog.clear()
        sent.created -= 100.5  # or it would be now
        sent.relativeCreated -= 100_500
        sent.msecs = float(int(sent.created % 1 * 1000))
        with caplog.at_level(logging.ERROR, log.name):
            assert levels()[log.name] == logging.ERROR
            passed_on(sent)
        assert not caplog.records
        passed_on(sent)
    [record] = caplog.records
    for name in WHAT_RECORDS_TELL:
        assert getattr(record, name) == getattr(sent, name), name
    assert record.relativeCreated == pytest.approx(sent.relativeCreated)
    assert record.getMessage() == "it is late"
    assert record.exc_text is not None
    assert record.exc_text.endswith("ValueError: on purpose")


@pytest.mark.parametrize("by", ["a program that has logging leave out much", "makeLogRecord"])
def test_a_record_may_tell_little(by, monkeypatch, caplog):
    """What is not there stays away, and is no nonsense."""
    if by == "makeLogRecord":
        record = logging.makeLogRecord({"msg": "so little", "levelno": 40})
    else:
        monkeypatch.setattr(logging, "logThreads", False)
        monkeypatch.setattr(logging, "logProcesses", False)
        record = logging.LogRecord("app", logging.ERROR, "", 0, "so little", (), None, func=None)
    passed_on(record)
    [record] = caplog.records
    assert (record.getMessage(), record.levelno) == ("so little", logging.ERROR)


@given(st.characters(codec=None))
def test_a_record_fits_into_a_frame(character):
    """Whatever is in it, and wherever."""
    long = character * 100_000
    record = logging.LogRecord(long, logging.ERROR, long, 0, long, (), None, long)
    record.exc_text = record.stack_info = record.threadName = record.processName = long
    assert len(wire.encode_facts(**as_facts(record))) <= wire.LONGEST_FROM_WORKER


def test_a_record_that_a_filter_fails_on():
    """That the program's own filter raises is no reason for the server to end."""
    log = logging.getLogger("tests.process.filter")
    log.addFilter(lambda record: 1 // 0)
    passed_on(logging.makeLogRecord({"name": log.name, "levelno": logging.ERROR}))


def test_replies_of_many_threads():
    """One at a time, each thread gets its own answer.

    Nor is the answer another one's for which a thread has given up to wait, by a signal.
    """
    near, far = socket.socketpair()
    replies, given_up = Replies(Channel(near), None), threading.Event()

    def answers():
        frames = Frames(wire.LONGEST_FROM_WORKER)
        while data := far.recv(1000):
            for _, body in frames.feed(data):
                _, payload = wire.decode_facts(body)
                if payload == b"give up":
                    given_up.wait(10)
                far.sendall(wire.frame(Message.SENT, as_answer(ValueError(payload.decode()))))

    with ThreadPoolExecutor() as threads, near, far:
        threads.submit(answers)
        sends = [threads.submit(replies.send, b"%d" % number, "x") for number in range(20)]
        assert [str(send.exception(10)) for send in sends] == list(map(str, range(20)))
        before = signal.signal(signal.SIGALRM, lambda *_: handlers.fails(InterruptedError))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            replies.send(b"give up", "x")
        signal.signal(signal.SIGALRM, before)
        given_up.set()
        with pytest.raises(ValueError, match="next"):
            replies.send(b"next", "x")


def test_a_page_is_shared():
    """What one maps, another sees, and a closed one tells so, also while a worker is reaped."""
    number = new_shared_status()
    writer, reader = SharedStatus(number), SharedStatus(number)
    os.close(number)
    worker = Worker(SimpleNamespace(control=None, shared_status=reader))
    assert (reader.request, reader.received, reader.sent, reader.state) == (0, 0, 0, "working")
    writer.begin(7)
    writer.publish(2**40, 3, "idle")
    assert worker.facts(7) == (2**40, 3, "idle")
    writer.begin(8)  # of the request before, nothing is left to see
    assert (worker.facts(7), worker.facts(8)) == (None, (0, 0, "working"))
    writer.begin(9, 5, 6)
    assert worker.facts(9) == (5, 6, "working")
    writer.close()
    with pytest.raises(ValueError, match="released"):
        writer.request  # noqa: B018
    assert reader.request == 9
    reader.cells.release()  # another thread may be about to close it
    assert worker.facts(9) is None
    reader.close()
    assert worker.facts(9) is None


MAY = {
    *(("STARTING", "IDLE"), ("IDLE", "BUSY"), ("BUSY", "IDLE")),
    *(("IDLE", "LEAVING"), ("LEAVING", "IDLE"), ("ENDING", "GONE")),
    *((name, "ENDING") for name in ("STARTING", "IDLE", "BUSY", "LEAVING")),
}


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
def test_only_these_transitions(phase):
    """A worker that is busy is given no second request, and one that is gone never comes back."""
    for following in Phase:
        if (phase.name, following.name) in MAY:
            assert phase.to(following) is following
        else:
            with pytest.raises(RuntimeError, match=f"from {phase.name} to {following.name}"):
                phase.to(following)
