"""`rfile` and `wfile`: what they return, what they leave behind, when they let others run."""

import io
import itertools
import math
from array import array
from collections import deque
from collections.abc import Iterable
from functools import partial, wraps

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pipes import Dialogue, does, end_over, pipe, waiting
from support.scenes import Scene, table

import trioserver
from trioserver.testing import memory_pipe


class Segments:
    """A transport whose input comes in the given segments, with a wait before all but the first.

    Its end comes ``after`` a wait, ``with`` the last segment, or ``never``;
    ``interrupted_by`` is awaited the first time that somebody waits for a segment.
    """

    def __init__(self, segments, *, ends="after"):
        self.interrupted_by = trio.lowlevel.checkpoint
        self._near, self.far = memory_pipe()
        self._visits = 0
        self._queue = deque()
        for segment in filter(None, segments):
            self._queue += [segment, None]
        if ends == "with" and self._queue:
            self._queue.pop()
        if ends != "never":
            self._queue.append(b"")

    def __getattr__(self, name):
        return getattr(self._near, name)  # output goes into a pipe

    def receive_now(self, max_bytes):
        if not self._queue or self._queue[0] is None:
            return None
        segment = self._queue.popleft()
        if segment[max_bytes:] or not segment:
            self._queue.appendleft(segment[max_bytes:])
        return segment[:max_bytes]

    async def wait_readable(self):
        self._visits += 1
        if self._visits == 1:
            await self.interrupted_by()
        await trio.lowlevel.checkpoint()
        self._visits = 0
        if self._queue and self._queue[0] is None:
            self._queue.popleft()
        if not self._queue:
            await trio.sleep_forever()


def cut(data, cuts):
    """``data`` in segments, cut at the given positions."""
    bounds = [0, *sorted({at for at in cuts if at < len(data)}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


@attrs.frozen
class Input:
    """What there is to read: where it is cut, how it ends, and under what limits."""

    data: bytes
    cuts: Iterable[int] = ()
    ends: str = "after"
    limits: trioserver.Limits = attrs.field(factory=trioserver.Limits)

    def end(self, portion=None, wbufsize=0):
        """The end of a connection that has it."""
        transport = Segments(cut(self.data, self.cuts), ends=self.ends)
        end = end_over(transport, limits=self.limits, wbufsize=wbufsize)
        if portion is not None:
            end.request._receiver.portion = portion
        return end


async def outcome(operation):
    """What an operation returns, or the kind of what it raises, with what was read."""
    try:
        return await operation
    except trioserver.IncompleteRead as error:
        return trioserver.IncompleteRead, error.partial
    except (trioserver.LimitExceeded, trioserver.IdleTimeout, StopAsyncIteration) as error:
        return type(error)


# What reads return, for any input -----------------------------------------------------


class Expected:
    """What every read must do, said of the whole input at once: there are no segments here."""

    def __init__(self, given):
        self._file = io.BytesIO(given.data)
        self._ended = given.ends != "never"
        self._limits = given.limits

    def of(self, name, *arguments):
        before = self._file.tell()
        result = getattr(self, name)(*arguments)
        if isinstance(result, type):
            self._file.seek(before)  # an error takes nothing
        return result

    def read(self, size=None):
        data = self._file.read(size)
        if size is None and len(data) > self._limits.read:
            return trioserver.LimitExceeded
        return data if self._ended or len(data) == size else trioserver.IdleTimeout

    fill = read

    def readexactly(self, size):
        data = self.read(size)
        short = isinstance(data, bytes) and len(data) < size
        return (trioserver.IncompleteRead, data) if short else data

    def readline(self, size=None):
        line = self._file.readline(size)
        if size is None and len(line) > self._limits.line:
            return trioserver.LimitExceeded
        complete = self._ended or line.endswith(b"\n") or len(line) == size
        return line if complete else trioserver.IdleTimeout

    def readuntil(self, delimiter):
        rest = self._file.read()
        before, found, after = rest.partition(delimiter)
        if len(before + found) > self._limits.line:
            return trioserver.LimitExceeded
        self._file.seek(-len(after), io.SEEK_CUR)
        if found:
            return before + found
        return (trioserver.IncompleteRead, rest) if self._ended else trioserver.IdleTimeout

    def readlines(self, hint=None):
        if hint is None:
            data = self.read()
            return data if isinstance(data, type) else data.splitlines(keepends=True)
        lines = []
        while sum(map(len, lines)) < hint and (line := self.readline()) != b"":
            if isinstance(line, type):
                return line
            lines.append(line)
        return lines

    def more(self):
        there = self._file.read(1) != b""
        self._file.seek(-there, io.SEEK_CUR)
        return there or (False if self._ended else trioserver.IdleTimeout)

    def __anext__(self):
        return self.readline() or StopAsyncIteration


# Only \n ends a line, and only a whole delimiter counts.
WORDS = st.sampled_from([b"a", b"ab", b";", b"\n", b"a\n", b"ab;\n", b"\n;\n", b"abab"])
DELIMITERS = st.sampled_from([b"\n", b";", b"ab", b"\n;\n", b"abab"])
INPUT = st.builds(
    Input,
    st.lists(WORDS, max_size=12).map(b"".join),
    st.lists(st.integers(1, 32), max_size=16),
    st.sampled_from(["after", "with", "never"]),
    st.builds(trioserver.Limits, line=st.integers(1, 8), read=st.integers(1, 32)),
)
NAMES, SIZES = st.sampled_from, st.integers(0, 12)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(NAMES(["read", "readline", "fill", "readexactly"]), SIZES),
        st.tuples(NAMES(["readlines"]), st.integers(1, 24)),
        st.tuples(NAMES(["readuntil"]), DELIMITERS),
        st.tuples(NAMES(["read", "readline", "readlines", "more", "__anext__"])),
    ),
    min_size=1,
    max_size=8,
)


def in_virtual_time(function):
    """An async function, as a plain one that hypothesis can call."""

    @wraps(function)
    def run(*arguments, **named):
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(partial(function, *arguments, **named), clock=clock)

    return run


@pytest.mark.slow
@settings(max_examples=450)
@given(
    *(INPUT, st.sampled_from([1, 2, 5, 65_536]), OPERATIONS),
    st.sampled_from(["not interrupted", "cancelled", "timed out"]),
)
@in_virtual_time
async def test_reads_do_not_depend_on_segments(given, portion, operations, how):
    """CM-04, CM-05, BP-08: what reads return or raise depends on the bytes and the limits alone.

    Those that are cancelled or time out at every wait and are tried again lose nothing.
    """
    end, expected = given.end(portion), Expected(given)
    interrupted = False

    async def interrupt():
        nonlocal interrupted
        interrupted = True
        if how == "cancelled":
            scope.cancel()
        else:
            await trio.sleep_forever()

    if how != "not interrupted":
        end.request._transport.interrupted_by = interrupt
    for operation in operations:
        wanted, result, interrupted = expected.of(*operation), None, True
        while interrupted:
            interrupted = False
            with trio.CancelScope() as scope:
                result = await outcome(end.do(*operation))
        assert (operation, result) == (operation, wanted)


@pytest.mark.parametrize(
    ("segments", "lines"),
    [
        ([b"one\n"], [b"one\n"]),
        ([b"one\ntwo\n"], [b"one\n", b"two\n"]),
        ([b"one\nt", b"wo\nthree\n"], [b"one\n", b"two\n", b"three\n"]),
        ([b"one\n", b"\n", b"two"], [b"one\n", b"\n", b"two"]),
        ([b"12345678\n"], [trioserver.LimitExceeded]),
        ([b"1234567\n", b"12345678\n"], [b"1234567\n", trioserver.LimitExceeded]),
    ],
    ids=str,
)
async def test_lines_are_the_same_in_whatever_they_come(segments, lines, autojump_clock):
    """Also where a segment is a whole line, which is handed on past the buffer."""
    at = itertools.accumulate(map(len, segments))
    end = Input(b"".join(segments), cuts=at, limits=trioserver.Limits(line=8)).end()
    assert [await outcome(end.do("__anext__")) for _ in lines] == lines
    if isinstance(lines[-1], bytes):
        assert await outcome(end.do("__anext__")) is StopAsyncIteration


@settings(max_examples=100)
@given(
    INPUT.filter(lambda given: given.ends != "never"),
    st.lists(st.sampled_from(["read1", "readinto1", "peek", "recv"])),
    st.integers(1, 5),
)
@in_virtual_time
async def test_reads_of_what_there_is_lose_nothing(given, names, size):
    """Mixed in any order, `read1`, `readinto1`, `peek` and `recv` return the input, once."""
    end, got, portion = given.end(), b"", b"."
    reads = itertools.cycle([*names, "read1"])
    while portion:
        name = next(reads)
        if name == "readinto1":
            portion = await end.fill(size, name)
        elif name == "peek":
            seen = await end.rfile.peek()
            portion = await end.request.recv(size)
            assert seen[:size] == portion
        else:
            portion = await end.do(name, size)
        assert len(portion) <= size
        got += portion
    assert got == given.data


# What reads return, one by one ------------------------------------------------------


def reads(data, steps, **fields):
    """A row: what there is to read, and the reads."""
    return Input(data, **fields), steps


@pytest.mark.parametrize("ends", ["after", "with"])
@table(
    "given, steps",
    {
        "BP-08: a limit is named, and after it reads with a size get all that had come": reads(
            b"123456789",
            "read -> LimitExceeded 'longer than 6 bytes (read)'; readlines -> LimitExceeded; "
            "readline -> LimitExceeded 'longer than 4 bytes (line)'; "
            r"readuntil b'\n' -> LimitExceeded; read 100 -> b'123456789'",
            limits=trioserver.Limits(read=6, line=4),
        ),
        "CM-07: when the input ends before the delimiter, the error has what there was": reads(
            b"half", r"readuntil b'\r\n\r\n' -> IncompleteRead b'half'; at_eof -> True"
        ),
        "CM-08, CM-07: as it has when there were fewer bytes than announced": reads(
            b"1234", "readexactly 5 -> IncompleteRead 'after 4 of 5 bytes', b'1234'; read -> b''"
        ),
        "At the end every read returns nothing, again and again, of any size": reads(
            b"",
            "read -> b''; read 0 -> b''; read 4 -> b''; read1 0 -> b''; read1 4 -> b''; "
            "readline -> b''; readline 4 -> b''; readlines -> []; fill 4 -> b''; peek -> b''; "
            "fill 4, 'readinto1' -> b''; more -> False; at_eof -> True; read -> b''",
        ),
        "An empty delimiter and a negative size are mistakes, and say so": reads(
            b"x",
            "readuntil b'' -> ValueError 'delimiter must be at least one byte'; "
            "readexactly -1 -> ValueError 'size must not be negative'",
        ),
        "`at_eof` is false while input is buffered, be the end known or not": reads(
            b"ab",
            "at_eof -> False; read 1 -> b'a'; at_eof -> False; read 5 -> b'b'; at_eof -> True",
        ),
        "`read1` returns what one receive brought, and no more than it was asked for": reads(
            b"abcdef",
            "read1 -> b'abc'; read1 2 -> b'de'; read1 9 -> b'f'; read1 9 -> b''",
            cuts=[3],
        ),
        "`peek` shows what one receive brought; with anything buffered it receives nothing": reads(
            b"abcdef",
            "peek -> b'abc'; peek 100 -> b'abc'; read 4 -> b'abcd'; peek 1 -> b'ef'",
            cuts=[3],
        ),
        "CM-16: bytes that `rfile` has buffered come out of `recv`, in order": reads(
            b"first\nsecond",
            r"readline -> b'first\n'; recv 2 -> b'se'; recv 100 -> b'c'; read -> b'ond'",
            cuts=[9],
        ),
    },
)
async def test_reads(given, steps, ends, autojump_clock):
    """Reads return what they say, whether the end comes with the last bytes or after them."""
    await attrs.evolve(given, ends=ends).end().play(steps)


async def test_limited_read_buffers_no_more_than_it_must(autojump_clock):
    """CM-05, BP-08: an endless line costs the limit and one portion of memory."""
    endless = Input(b"x" * 10_000, range(0, 10_000, 10), limits=trioserver.Limits(line=95))
    end = endless.end(portion=10)
    await end.play("readline -> LimitExceeded")
    assert end.request.bytes_received <= 95 + 10


@pytest.mark.parametrize("before", range(6))
async def test_readuntil_limit(before, autojump_clock):
    """A delimited read may have ``limit`` bytes, with its delimiter, wherever that is cut."""
    data = b"x" * before + b"<>"
    for limit, at in itertools.product([1, 4, 5, 6], range(len(data))):
        read = Input(data + b"more", [at]).end().rfile.readuntil(b"<>", limit=limit)
        assert await outcome(read) == (data if len(data) <= limit else trioserver.LimitExceeded)
    with pytest.raises(ValueError, match="limit must"):
        await Input(data).end().rfile.readuntil(b"<>", limit=-1)


@pytest.mark.parametrize("size", [None, -1, -7, 0])
async def test_read_without_a_size(size, autojump_clock):
    """None and any negative size mean "without a size", as in `io`; so does zero as a hint."""
    for name in ["readlines"] if size == 0 else ["read", "readline", "readlines"]:
        expected = getattr(io.BytesIO(b"a\nb"), name)(size)
        assert await Input(b"a\nb").end().do(name, size) == expected


@pytest.mark.parametrize("name", ["readinto", "readinto1"])
async def test_readinto_any_writable_buffer(name, autojump_clock):
    """It has its size in bytes; the end of input leaves its rest alone; an unfit one is refused."""
    for size, item in itertools.product([4, 8], "BH"):
        end, target = Input(b"abcdef").end(), bytearray(b"........"[:size])
        for unfit in (b"read-only", memoryview(bytearray(8))[::2]):
            with pytest.raises((TypeError, ValueError, BufferError)):
                await end.do(name, unfit)
        assert await end.do(name, memoryview(target).cast(item)) == min(size, 6)
        assert target == b"abcdef.."[:size]


async def test_readinto_cancelled_lets_go_of_its_target(autojump_clock):
    """A cancelled `readinto` has written nothing, and the target can be resized again."""
    end, target = pipe(), bytearray(b"....")
    end.says(b"ab")
    async with waiting(end.rfile.readinto(target)):
        pass
    target += b"!"
    assert target == b"....!"
    assert await end.rfile.read(2) == b"ab"


# Waits and writes ---------------------------------------------------------------------

NARROW = {"capacity": 4, "wbufsize": 100}
buffered, narrow = partial(Dialogue, of={"wbufsize": 100}), partial(Dialogue, of=NARROW)


@table(
    "dialogue",
    {
        "CM-03: a byte now and then does not keep a line going beyond `timeouts.line`": Dialogue(
            "readline -> IdleTimeout '(line)'; now -> 15; read 5 -> b'xxxxx'",
            {"line": 10, "idle": 50},
            dict.fromkeys([5, 8, 11, 14, 17], "says b'x'"),
        ),
        "Lines with and without a size and delimited reads have the same bound": Dialogue(
            r"says b'x'; readline -> IdleTimeout; now -> 10; readuntil b'\n' -> IdleTimeout; "
            "now -> 20; readline 9 -> IdleTimeout; now -> 30",
            {"line": 10},
        ),
        "TO-03: a read of a size waits `timeouts.idle` for each byte, and loses none": Dialogue(
            "readexactly 4 -> IdleTimeout 'no byte from the peer for 10 s (idle)'; now -> 37; "
            "readexactly 3 -> b'xxx'",
            {"idle": 10},
            dict.fromkeys([9, 18, 27], "says b'x'"),
        ),
        "No read blocks for ever: without an idle time-out it has its line time-out": Dialogue(
            r"says b'x'; readuntil b'\n' -> IdleTimeout; now -> 3", {"idle": math.inf, "line": 3}
        ),
        "`readlines` with a hint that is cancelled between two lines has taken none": Dialogue(
            r"says b'ab\ncd\ne'; readlines 100 -> waits; readlines 6 -> [b'ab\n', b'cd\n']"
        ),
        "What arrived before a reset is read first, then every read says it": Dialogue(
            r"says b'a\nb'; readline -> b'a\n'; breaks_off; read1 -> b'b'; "
            "read1 -> PeerGone; read1 -> PeerGone"
        ),
        "A write to a closed connection fails at once, not when the buffer is full": buffered(
            "close; write b'x' -> ClosedResourceError; writelines [b'x'] -> ClosedResourceError"
        ),
        "What is not bytes is a mistake, and nothing of it is buffered": buffered(
            "write 'text' -> TypeError; write 5 -> TypeError; write None -> TypeError; "
            "flush; hears -> None"
        ),
        "What was buffered goes out before what is sent around it, and before the end": buffered(
            "write b'first '; sendall b'second'; write b' third'; hears -> b'first second'; "
            "send_eof; hears -> b' third'; hears -> b''"
        ),
        "A buffer of 8 bytes is sent when it has 8 of them, not before": Dialogue(
            "write b'1234567'; hears -> None; write b'8'; hears -> b'12345678'; "
            "write b'12345678'; hears -> b'12345678'; write b'123456789'; hears -> b'123456789'; "
            "write b'1234'; write b'567'; hears -> None; write b'89'; hears -> b'123456789'; "
            "write b'1234'; write b'5678'; write b'9'; hears -> b'12345678'",
            {"wbufsize": 8},
        ),
        "A busy peer is answered, too: a read that finds its bytes waiting flushes": buffered(
            r"write b'yours'; says b'mine\n'; readline -> b'mine\n'; hears -> b'yours'"
        ),
        "A read that is answered from the buffer does not: replies go out together": buffered(
            r"says b'1\n2\n'; peek; readline -> b'1\n'; write b'1\n'; hears -> None; "
            r"readline -> b'2\n'; write b'2\n'; hears -> None; flush; hears -> b'1\n2\n'"
        ),
        "A read that waits for the rest of a line flushes": buffered(
            "says b'half a '; write b'go on'; readline -> waits; hears -> b'go on'; "
            r"says b'line\n'; readline -> b'half a line\n'"
        ),
        "A flush that was cancelled before it sent keeps the buffer, for the next one": narrow(
            "sendall b'full'; write b'abc'; flush -> cancelled; flush -> waits; hears -> b'full'; "
            "flush; hears -> b'abc'"
        ),
        "A flush cut short is never repeated: the peer would see bytes twice, or a gap": narrow(
            "write b'12345678'; flush -> waits; write b'x' -> BrokenResourceError 'cut short'; "
            "hears -> b'1234'; hears -> None"
        ),
        "Cancelled while it flushes, a read has taken no input and lost no output": narrow(
            "sendall b'full'; write b'abc'; says b'x'; readline -> waits; hears -> b'full'; "
            r"says b'y\n'; readline -> b'xy\n'; hears -> b'abc'"
        ),
    },
)
async def test_dialogues(dialogue, autojump_clock):
    """What reads wait for, and what the peer gets, and when."""
    await dialogue.play()


async def test_bytes_that_are_there_at_a_time_out_count(autojump_clock):
    """At the instant of a time-out the transport is asked once more, and then it is over."""
    transport = Segments([b"ab", b"c\n", b"d", b"e"])

    async def arrive_unnoticed():
        transport._queue.popleft()
        await trio.sleep_forever()

    transport.interrupted_by = arrive_unnoticed
    steps = r"readline -> b'abc\n'; readline -> IdleTimeout; peek -> b'de'"
    await end_over(transport).play(steps)


async def test_buffers_of_default_size(autojump_clock):
    """A negative ``wbufsize`` is a buffer of 64 KiB; `read1` without a size returns no more."""
    end = pipe(100_000, wbufsize=-1)
    await end.wfile.write(b"x" * 65_535)
    assert end.hears() is None
    await end.wfile.write(b"x")
    assert end.hears() == b"x" * 65_536
    end.request._receiver.portion = 70_000
    end.says(b"x" * 70_000)
    sizes = [len(await read()) for read in (end.rfile.peek, end.rfile.read1, end.rfile.read1)]
    assert sizes == [70_000, 65_536, 70_000 - 65_536]


@pytest.mark.parametrize(
    "data", [b"abc", bytearray(b"abc"), memoryview(b"a.b.c.")[2:5], array("H", [1, 2]), b""]
)
@pytest.mark.parametrize("wbufsize", [0, 100])
async def test_write_takes_any_buffer(data, wbufsize, autojump_clock):
    """CP-04: a write takes all of any buffer, and returns how many bytes that was.

    Without a buffer of its own, the file has them on their way by then.
    """
    end, all_of_it = pipe(wbufsize=wbufsize), memoryview(data).tobytes()
    assert await end.wfile.write(data) == len(all_of_it)
    await end.wfile.writelines([data, data])
    assert (end.hears() or b"") == (b"" if wbufsize else all_of_it * 3)
    await end.wfile.flush()
    assert (end.hears() or b"") == (all_of_it * 3 if wbufsize else b"")


async def test_buffer_is_bounded_although_writes_are_cancelled(autojump_clock):
    """BP-09: against a peer that never reads, writes that give up do not pile up."""
    end = pipe(capacity=4, wbufsize=10)
    await end.play("sendall b'full'" + "; write b'0123456789' -> waits" * 10)
    assert len(end.wfile._sender.buffer) <= 20


# Cancellation, schedule points, two tasks, closing -----------------------------------------

READS = [
    *("read 1", "read1 1", "fill 1", "fill 1, 'readinto1'", "readline", "readline 1"),
    *("readlines 1", r"readuntil b'\n'", "readexactly 1", "peek", "more", "__anext__"),
]
READS_TO_THE_END = ["read", "readlines"]
NO_READ = "read 0"  # never reaches the transport
WRITES = ["write b'x'", "write b''", "writelines [b'x']", "flush"]

each_read = pytest.mark.parametrize("read", [NO_READ, *READS, *READS_TO_THE_END])
CLOSED = "ClosedResourceError"
LINES_THERE = r"says b'a\nb\n'; says_bye"


@each_read
@table(
    "steps",
    {
        "buffered, and cancelled": rf"{LINES_THERE}; peek; {{}} -> cancelled; read -> b'a\nb\n'",
        "readable, and cancelled": rf"{LINES_THERE}; {{}} -> cancelled; read -> b'a\nb\n'",
        "at the end, and cancelled": "says_bye; {} -> cancelled; read -> b''",
        "buffered, and closed by this side": rf"{LINES_THERE}; peek; close; {{}} -> {CLOSED}",
        "readable, and closed by this side": rf"{LINES_THERE}; close; {{}} -> {CLOSED}",
    },
)
async def test_reads_of_what_is(read, steps, autojump_clock):
    """Cancelled, a read notices it, and has taken nothing; closed, it has nothing more."""
    await pipe().play(steps.format(read))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("wbufsize", [0, 100])
async def test_writes_are_cancellation_points(write, wbufsize, autojump_clock):
    """Every write notices a cancellation, and has then neither sent nor buffered anything."""
    await pipe(wbufsize=wbufsize).play(f"{write} -> cancelled; flush; hears -> None")


class Steps(trio.abc.Instrument):
    """Counts how often a task was resumed."""

    def __init__(self):
        self.task = trio.lowlevel.current_task()
        self.count = 0

    def before_task_step(self, task):
        self.count += task is self.task


@pytest.mark.parametrize(
    "operations", [*zip([NO_READ, *READS, *WRITES]), ("readline", "write b'x'")], ids=str
)
async def test_buffered_operations_let_others_run(operations, autojump_clock):
    """At least every 16th that never leaves the buffers is a schedule point, also in turns."""
    end = Input(b"\n" * 100).end(wbufsize=1000)
    await end.rfile.peek()
    steps, seen = Steps(), []
    trio.lowlevel.add_instrument(steps)
    for operation in itertools.islice(itertools.cycle(operations), 64):
        await end.play(operation)
        seen.append(steps.count)
    trio.lowlevel.remove_instrument(steps)
    assert max(len(list(group)) for _, group in itertools.groupby(seen)) <= 16


REACH = ["readline", "__anext__", "read1 1", "write b'x'", "writelines [b'x']", "write b''"]


@pytest.mark.parametrize("before", [*REACH, "recv 1", "sendall b'x'"])
@pytest.mark.parametrize("operation", ["recv 1", "sendall b'x'"])
async def test_what_a_connection_does_is_a_schedule_point(before, operation, autojump_clock):
    """By its own methods it lets others run each time, whatever came before."""
    end = Input(b"\n" * 9).end(portion=1)
    await end.play(before)
    with trio.testing.assert_checkpoints():
        await end.play(operation)


@pytest.mark.parametrize("operation", [*READS, *WRITES[:3]])
async def test_operation_after_a_schedule_point(operation, autojump_clock):
    """It has let others run just now, and need not once more."""
    end = Input(b"\n" * 9).end(portion=1)
    await end.play("recv 1")
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    await end.play(operation)
    trio.lowlevel.remove_instrument(steps)
    assert steps.count == 0


@pytest.mark.parametrize("wbufsize", [0, 100])
async def test_write_has_sent_before_it_lets_others_run(wbufsize, autojump_clock):
    """The peer has it all when others run; cancelled by one of them, the task hears it later."""
    end, heard, task = pipe(wbufsize=wbufsize), [], trio.lowlevel.current_task()
    write = "write b'x'; flush" if wbufsize else "write b'x'"

    class Others(trio.abc.Instrument):
        def after_task_step(self, stepped):
            if stepped is task:
                heard.append(end.hears())
                scope.cancel()

    end.says(b"straight from a schedule point")
    await end.request.recv()
    with trio.CancelScope() as scope:
        trio.lowlevel.add_instrument(others := Others())
        await end.play(f"{write}; {write}")
        trio.lowlevel.remove_instrument(others)
        heard.append("written")
        await end.play(write)
    assert scope.cancelled_caught
    assert [*heard, end.hears()] == [b"xx", "written", None]


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("one", REACH)
@pytest.mark.parametrize("other", REACH)
async def test_one_of_two_operations_is_a_schedule_point(before, one, other, autojump_clock):
    """Of any two in a row that reach the transport one lets others run, whatever came before."""
    end = Input(b"\n" * 9).end(portion=1)
    for operation in itertools.islice(itertools.cycle([one, other]), before):
        await end.play(operation)
    with trio.testing.assert_checkpoints():
        await end.play(f"{one}; {other}")


async def test_writes_to_many_clients_let_others_run(autojump_clock):
    """It is this task that has to, and not those that have read from its clients."""
    ends = [Input(b"\n").end() for _ in range(20)]
    steps, seen = Steps(), []
    trio.lowlevel.add_instrument(steps)
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.rfile.readline)
    for end in ends:
        await end.wfile.write(b"x")
        seen.append(steps.count)
    trio.lowlevel.remove_instrument(steps)
    assert max(len(list(group)) for _, group in itertools.groupby(seen)) <= 2


async def test_buffers_of_many_clients_let_others_run(autojump_clock):
    """It is the task that has to at every 16th operation, by whichever connection."""
    ends = [Input(b"\n" * 2).end() for _ in range(40)]
    for end in ends:
        await end.rfile.peek()
    steps, seen = Steps(), []
    trio.lowlevel.add_instrument(steps)
    for end in ends:
        await end.rfile.readline()
        seen.append(steps.count)
    trio.lowlevel.remove_instrument(steps)
    assert max(len(list(group)) for _, group in itertools.groupby(seen)) <= 16


@pytest.mark.parametrize("read", [*READS, *READS_TO_THE_END, "recv 1"])
async def test_reads_that_wait_flush(read, autojump_clock):
    """Before the peer is waited for, it is told what it may be waiting for."""
    await pipe(wbufsize=100).play(f"write b'your move'; {read} -> waits; hears -> b'your move'")


@each_read
async def test_read_while_another_task_reads(read, autojump_clock):
    """A second reading task gets `BusyResourceError`; the first one's read is unharmed."""
    end = pipe()
    end.says(b"half ")
    async with waiting(end.rfile.readline()) as results:
        await end.play(f"{read} -> BusyResourceError; recv 1 -> BusyResourceError")
        end.says(b"a line\n")
    assert results == [b"half a line\n"]


@pytest.mark.parametrize("wbufsize", [0, 4])
async def test_others_while_a_task_writes(wbufsize, autojump_clock):
    """A second writing task gets `BusyResourceError`; reading goes on, even if it would flush."""
    end = pipe(capacity=4, wbufsize=wbufsize)
    async with waiting(end.wfile.write(b"12345678")) as written:
        await end.play("write b'2nd' -> BusyResourceError; sendall b'2nd' -> BusyResourceError")
        async with waiting(end.rfile.readline()) as read:
            end.says(b"go\n")
        assert (read, written) == ([b"go\n"], [])
        assert end.hears() == b"1234"
    assert written == [8]
    assert end.hears() == b"5678"


async def test_read_while_another_read_flushes(autojump_clock):
    """A read that is still flushing is a read: a second task does not get its bytes."""
    end = pipe(**NARROW)
    await end.wfile.write(b"12345678")
    async with waiting(end.rfile.readline()) as results:
        await end.play(r"says b'go\n'; readline -> BusyResourceError; hears -> b'1234'")
    assert results == [b"go\n"]


async def test_files_describe_themselves(autojump_clock):
    """One is readable, the other writable; both know when the connection is closed."""
    end = pipe()
    for file, mine in ((end.rfile, (True, False)), (end.wfile, (False, True))):
        assert (file.readable(), file.writable()) == mine
        assert (file.closed, file.fileno()) == (False, -1)
    end.request.close()
    assert end.rfile.closed
    assert end.wfile.closed


GREETS = "write b'hello '; write b'world'"


class ForgetsTheBase(does(GREETS, wbufsize=1000)):
    async def finish(self):
        await self.wfile.write(b"!")


@table(
    "scene",
    {
        "What was left in the buffer is sent, also if `finish` does not call its base": Scene(
            ForgetsTheBase, gets=b"hello world!"
        ),
        "What was written before a handler failed is sent, as in the classic framework": Scene(
            does(f"{GREETS}; write 'text'", wbufsize=1000), gets=b"hello world", outcomes=["failed"]
        ),
    },
)
async def test_files_in_a_server(scene, autojump_clock):
    """The files do for a handler what they do alone, and its last buffer goes out."""
    await scene.play()
