"""`rfile` and `wfile`: what they return, what they leave behind, when they let others run."""

from __future__ import annotations

import io
import itertools
import math
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Upper, Witness, connection_over, plain_client, read_to_end

import trioserver
from trioserver.testing import MemoryServer, MemoryTransport, memory_pipe

MEMORY = ("memory", 1)

# Building blocks ---------------------------------------------------------------


class Segments:
    """A transport whose input comes in the given segments, with a wait before all but the first.

    Attributes:
      sent: what was sent over it.
      interrupted_by: awaited the first time that somebody waits for a segment.
    """

    local_address = ("segments", 1)
    peer_credentials = None

    def __init__(self, segments: Iterable[bytes], *, ends: str = "after") -> None:
        self.sent = bytearray()
        self.interrupted_by: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        self._visits = 0
        self._queue: deque[bytes | None] = deque()
        for segment in filter(None, segments):
            self._queue += [segment, None]
        if ends == "with" and self._queue:
            self._queue.pop()  # no wait between the last byte and the end
        if ends != "never":
            self._queue.append(b"")

    def receive_now(self, max_bytes: int) -> bytes | None:
        if not self._queue or self._queue[0] is None:
            return None
        segment = self._queue.popleft()
        if segment[max_bytes:] or not segment:
            self._queue.appendleft(segment[max_bytes:])
        return segment[:max_bytes]

    async def wait_readable(self) -> None:
        self._visits += 1
        if self._visits == 1:
            await self.interrupted_by()
        await trio.lowlevel.checkpoint()
        self._visits = 0
        if self._queue and self._queue[0] is None:
            self._queue.popleft()
        if not self._queue:
            await trio.sleep_forever()

    def send_now(self, data: Any) -> int:
        self.sent += data
        return len(data)

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def send_eof(self) -> None: ...
    def close(self) -> None: ...
    def reset(self) -> None: ...

    def fileno(self) -> int:
        return -1


def reader_of(
    data: bytes, *, ends: str = "after", limits: trioserver.Limits | None = None
) -> trioserver.RequestReader:
    """An rfile whose input comes as one segment."""
    return trioserver.RequestReader(connection_over(Segments([data], ends=ends), limits=limits))


def pipe(
    *, capacity: int = 65_536, wbufsize: int = 0, timeouts: trioserver.Timeouts | None = None
) -> tuple[trioserver.RequestReader, trioserver.RequestWriter, MemoryTransport]:
    """An rfile and a wfile, and the raw far end of their connection."""
    near, far = memory_pipe(capacity)
    here = connection_over(near, timeouts=timeouts)
    return trioserver.RequestReader(here), trioserver.RequestWriter(here, wbufsize), far


def run(function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Run an async function on a virtual clock."""
    return trio.run(function, *arguments, clock=trio.testing.MockClock(autojump_threshold=0))


async def outcome(operation: Awaitable[Any]) -> Any:
    """What an operation returns, or the kind of what it raises, with what was read."""
    try:
        return await operation
    except trioserver.IncompleteRead as error:
        return trioserver.IncompleteRead, error.partial
    except (trioserver.LimitExceeded, trioserver.IdleTimeout, StopAsyncIteration) as error:
        return type(error)


async def read_into(rfile: trioserver.RequestReader, size: int) -> bytes:
    """What `readinto` puts into a target of ``size`` bytes."""
    target = bytearray(size)
    return bytes(target[: await rfile.readinto(target)])


Operation = tuple[str, Any]


async def perform(rfile: trioserver.RequestReader, operation: Operation) -> Any:
    """One read, given as its name and its argument."""
    match operation:
        case "readinto", size:
            return await read_into(rfile, size)
        case name, None:
            return await getattr(rfile, name)()
        case name, argument:
            return await getattr(rfile, name)(argument)


# What reads return ---------------------------------------------------------------


class Expected:
    """What every read must do, said of the whole input at once: there are no segments here."""

    def __init__(self, data: bytes, *, ended: bool, limits: trioserver.Limits) -> None:
        self._rest = data
        self._ended = ended
        self._limits = limits

    def of(self, operation: Operation) -> Any:
        name, argument = operation
        before = self._rest
        result = getattr(self, name)(*([] if argument is None else [argument]))
        if isinstance(result, type):
            assert self._rest == before
        return result

    def _take(self, size: int) -> bytes:
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def _up_to(self, size: int) -> Any:
        complete = len(self._rest) >= size or self._ended
        return self._take(size) if complete else trioserver.IdleTimeout

    def read(self, size: int | None = None) -> Any:
        if size is not None:
            return self._up_to(size)
        if len(self._rest) > self._limits.read:
            return trioserver.LimitExceeded
        return self._up_to(len(self._rest) + 1)

    readinto = read

    def readexactly(self, size: int) -> Any:
        data = self._up_to(size)
        short = isinstance(data, bytes) and len(data) < size
        return (trioserver.IncompleteRead, data) if short else data

    def readline(self, size: int | None = None) -> Any:
        most = self._limits.line if size is None else size
        end = self._rest.find(b"\n") + 1
        if 0 < end <= most:
            return self._take(end)
        if size is not None:
            return self._up_to(size)
        if len(self._rest) > most:
            return trioserver.LimitExceeded
        return self._up_to(len(self._rest) + 1)

    def readuntil(self, delimiter: bytes) -> Any:
        at = self._rest.find(delimiter)
        if 0 <= at <= self._limits.line - len(delimiter):
            return self._take(at + len(delimiter))
        if len(self._rest) > self._limits.line:
            return trioserver.LimitExceeded
        if not self._ended:
            return trioserver.IdleTimeout
        return trioserver.IncompleteRead, self._take(len(self._rest))

    def readlines(self, hint: int | None = None) -> Any:
        if hint is None:
            data = self.read()
            return data if isinstance(data, type) else data.splitlines(keepends=True)
        before, lines = self._rest, []
        while sum(map(len, lines)) < hint and (line := self.readline()) != b"":
            if isinstance(line, type):
                self._rest = before
                return line
            lines.append(line)
        return lines

    def more(self) -> Any:
        return bool(self._rest) or (False if self._ended else trioserver.IdleTimeout)

    def __anext__(self) -> Any:
        return self.readline() or StopAsyncIteration


# Only \n ends a line, and only a whole delimiter counts.
WORDS = st.sampled_from([b"a", b"ab", b";", b"\n", b"a\n", b"ab;\n", b"\n;\n", b"abab"])
INPUT = st.lists(WORDS, max_size=12).map(b"".join)
SIZE = st.integers(0, 12)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["read", "readline", "readinto", "readexactly"]), SIZE),
        st.tuples(st.just("readlines"), st.integers(1, 24)),
        st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b";", b"ab", b"\n;\n", b"abab"])),
        st.tuples(
            st.sampled_from(["read", "readline", "readlines", "more", "__anext__"]), st.none()
        ),
    ),
    min_size=1,
    max_size=8,
)
LIMITS = st.builds(trioserver.Limits, line=st.integers(1, 8), read=st.integers(1, 32))
CUTS = st.lists(st.integers(1, 32), max_size=16)
ENDS = st.sampled_from(["after", "with", "never"])
PORTION = st.sampled_from([1, 2, 5, 65_536])


def cut(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """``data`` in segments, cut at the given positions."""
    bounds = [0, *sorted({at for at in cuts if at < len(data)}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


@settings(max_examples=300, deadline=None)
@given(INPUT, CUTS, ENDS, PORTION, LIMITS, OPERATIONS)
def test_reads_do_not_depend_on_segments(
    data: bytes,
    cuts: list[int],
    ends: str,
    portion: int,
    limits: trioserver.Limits,
    operations: list[Operation],
) -> None:
    """CM-04, BP-08: what reads return or raise depends on the bytes and the limits alone."""

    async def main() -> None:
        here = connection_over(Segments(cut(data, cuts), ends=ends), limits=limits)
        rfile = trioserver.RequestReader(here)
        here._receiver.portion = portion
        expected = Expected(data, ended=ends != "never", limits=limits)
        for operation in operations:
            result = await outcome(perform(rfile, operation))
            assert (operation, result) == (operation, expected.of(operation))

    run(main)


@settings(max_examples=150, deadline=None)
@given(INPUT, CUTS, ENDS, LIMITS, OPERATIONS, st.sampled_from(["cancelled", "timed out"]))
def test_interrupted_reads_lose_nothing(
    data: bytes,
    cuts: list[int],
    ends: str,
    limits: trioserver.Limits,
    operations: list[Operation],
    how: str,
) -> None:
    """Reads that are cancelled or time out at every wait and are tried again return the same."""

    async def main() -> None:
        transport = Segments(cut(data, cuts), ends=ends)
        rfile = trioserver.RequestReader(connection_over(transport, limits=limits))
        expected = Expected(data, ended=ends != "never", limits=limits)
        for operation in operations:
            wanted = expected.of(operation)
            result = await until_done(transport, rfile, operation)
            assert (operation, result) == (operation, wanted)

    async def until_done(
        transport: Segments, rfile: trioserver.RequestReader, operation: Operation
    ) -> Any:
        interrupted = True
        while interrupted:
            interrupted = False
            with trio.CancelScope() as scope:

                async def interrupt() -> None:
                    nonlocal interrupted
                    interrupted = True
                    if how == "cancelled":
                        scope.cancel()
                    else:
                        await trio.sleep_forever()

                transport.interrupted_by = interrupt
                result = await outcome(perform(rfile, operation))
        return result

    run(main)


@settings(max_examples=100, deadline=None)
@given(
    INPUT, CUTS, st.sampled_from(["after", "with"]), st.lists(st.integers(0, 3)), st.integers(1, 5)
)
def test_reads_of_what_there_is_lose_nothing(
    data: bytes, cuts: list[int], ends: str, choices: list[int], size: int
) -> None:
    """Mixed in any order, `read1`, `readinto1`, `peek` and `recv` return the input, once."""

    async def main() -> None:
        here = connection_over(Segments(cut(data, cuts), ends=ends))
        rfile = trioserver.RequestReader(here)
        got, target = b"", bytearray(size)
        for choice in itertools.cycle([*choices, 0]):
            seen = await rfile.peek() if choice == 3 else None
            if choice == 0:
                portion = await rfile.read1(size)
            elif choice == 1:
                portion = bytes(target[: await rfile.readinto1(target)])
            else:
                portion = await here.recv(size)
            assert seen is None or seen[:size] == portion
            assert len(portion) <= size
            got += portion
            if not portion:
                break
        assert got == data

    run(main)


EXPLICIT = [
    *itertools.product(["read", "readline", "readinto"], range(9)),
    *itertools.product(["readlines"], range(1, 9)),
]


def test_reads_with_a_size_mean_what_io_says() -> None:
    """CM-04, CP-04: for every cut of an input, reads with a size agree with `io.BytesIO`."""
    data = b"a\nbc\n\nd"
    positions = range(1, len(data))

    async def main() -> None:
        for count in range(len(data)):
            for cuts, ends in itertools.product(
                itertools.combinations(positions, count), ["after", "with"]
            ):
                for first in EXPLICIT:
                    rfile = trioserver.RequestReader(
                        connection_over(Segments(cut(data, cuts), ends=ends))
                    )
                    file = io.BytesIO(data)
                    for operation in (first, ("readline", 3), first, ("read", 3), first):
                        assert await perform(rfile, operation) == from_file(file, operation)

    run(main)


def from_file(file: io.BytesIO, operation: Operation) -> Any:
    """The same read of a file of the standard library."""
    name, size = operation
    if name != "readinto":
        return getattr(file, name)(size)
    target = bytearray(size)
    return bytes(target[: file.readinto(target)])


@pytest.mark.parametrize(
    ("line", "following", "expected"),
    [
        (b"1234\n", b"", b"1234\n"),
        (b"12345\n", b"", b"12345\n"),
        (b"123456\n", b"", trioserver.LimitExceeded),
        (b"12345", b"", b"12345"),
        (b"123456", b"", b"123456"),
        (b"1234567", b"", trioserver.LimitExceeded),
        (b"12345\n", b"next\n", b"12345\n"),
        (b"123456", b"\nnext\n", trioserver.LimitExceeded),
    ],
)
@pytest.mark.parametrize("ends", ["after", "with"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_readline_limit(
    line: bytes, following: bytes, expected: Any, ends: str, at_once: bool, autojump_clock: object
) -> None:
    """CM-05, BP-08: a line may have ``limits.line`` bytes, its end included, and not one more."""
    whole = line + following
    segments = [whole] if at_once else [bytes([byte]) for byte in whole]
    limits = trioserver.Limits(line=6)
    rfile = trioserver.RequestReader(connection_over(Segments(segments, ends=ends), limits=limits))
    assert await outcome(rfile.readline()) == expected
    taken = len(expected) if isinstance(expected, bytes) else 0
    assert await rfile.read() == whole[taken:]


@pytest.mark.parametrize("ends", ["after", "with"])
@pytest.mark.parametrize(("size", "too_long"), [(5, False), (6, False), (7, True)])
async def test_read_limit(size: int, too_long: bool, ends: str, autojump_clock: object) -> None:
    """BP-08: a read without a size takes ``limits.read`` bytes; one more is an error."""
    rfile = reader_of(b"x" * size, ends=ends, limits=trioserver.Limits(read=6))
    assert await outcome(rfile.read()) == (trioserver.LimitExceeded if too_long else b"x" * size)


async def test_read_limit_names_itself(autojump_clock: object) -> None:
    """The message of `LimitExceeded` has the limit and the name of its field."""
    rfile = reader_of(b"x" * 9, limits=trioserver.Limits(read=6, line=4))
    with pytest.raises(trioserver.LimitExceeded, match=r"longer than 6 bytes \(read\)"):
        await rfile.read()
    with pytest.raises(trioserver.LimitExceeded, match=r"longer than 4 bytes \(line\)"):
        await rfile.readline()


async def test_limited_read_loses_nothing(autojump_clock: object) -> None:
    """BP-08: after a limit was hit, reads with a size get every byte that had arrived."""
    rfile = reader_of(b"x" * 9, limits=trioserver.Limits(read=6, line=4))
    for read in (rfile.read, rfile.readline, rfile.readlines):
        with pytest.raises(trioserver.LimitExceeded):
            await read()
    with pytest.raises(trioserver.LimitExceeded):
        await rfile.readuntil(b"\n")
    assert await rfile.read(100) == b"x" * 9


async def test_limited_read_buffers_no_more_than_it_must(autojump_clock: object) -> None:
    """CM-05, BP-08: an endless line costs the limit and one portion of memory."""
    portion = 10
    endless = Segments(itertools.islice(itertools.repeat(b"x" * portion), 1000))
    here = connection_over(endless, limits=trioserver.Limits(line=95))
    here._receiver.portion = portion
    with pytest.raises(trioserver.LimitExceeded):
        await trioserver.RequestReader(here).readline()
    assert here.bytes_received <= 95 + portion


async def test_readline_at_limit_waits_for_the_next_byte(autojump_clock: object) -> None:
    """A line as long as the limit may still be the last one, so it is no error yet."""
    rfile = reader_of(b"123456", ends="never", limits=trioserver.Limits(line=6))
    with pytest.raises(trioserver.IdleTimeout):
        await rfile.readline()
    assert await rfile.readline(6) == b"123456"


@pytest.mark.parametrize("limit", [1, 4, 5, 6])
@pytest.mark.parametrize("before", range(6))
async def test_readuntil_limit(before: int, limit: int, autojump_clock: object) -> None:
    """A delimited read may have ``limit`` bytes, with its delimiter, wherever that is cut."""
    data = b"x" * before + b"<>"
    fits = len(data) <= limit
    for at in range(len(data)):
        rfile = trioserver.RequestReader(connection_over(Segments(cut(data + b"more", [at]))))
        result = await outcome(rfile.readuntil(b"<>", limit=limit))
        assert result == (data if fits else trioserver.LimitExceeded)


async def test_readuntil_repeating_delimiter(autojump_clock: object) -> None:
    """A false start of the delimiter is not skipped over."""
    for cuts in itertools.combinations(range(1, 6), 2):
        rfile = trioserver.RequestReader(connection_over(Segments(cut(b"aaabab", cuts))))
        assert await rfile.readuntil(b"aab") == b"aaab"


async def test_readuntil_end_of_input(autojump_clock: object) -> None:
    """CM-07: when the input ends before the delimiter, the error has what there was."""
    rfile = reader_of(b"half a request")
    with pytest.raises(trioserver.IncompleteRead) as caught:
        await rfile.readuntil(b"\r\n\r\n")
    assert caught.value.partial == b"half a request"
    assert rfile.at_eof()


async def test_readuntil_empty_delimiter(autojump_clock: object) -> None:
    """An empty delimiter is a mistake, and says so."""
    with pytest.raises(ValueError, match="delimiter must be at least one byte"):
        await reader_of(b"x").readuntil(b"")


async def test_readuntil_negative_limit(autojump_clock: object) -> None:
    """A negative limit is a mistake, and says so."""
    with pytest.raises(ValueError, match="limit must"):
        await reader_of(b"x\n").readuntil(b"\n", limit=-1)


async def test_readexactly_short(autojump_clock: object) -> None:
    """CM-08, CM-07: fewer bytes than announced are `IncompleteRead`, with those bytes."""
    rfile = reader_of(b"1234")
    with pytest.raises(trioserver.IncompleteRead, match="after 4 of 5 bytes") as caught:
        await rfile.readexactly(5)
    assert caught.value.partial == b"1234"
    assert await rfile.read() == b""


async def test_readexactly_negative(autojump_clock: object) -> None:
    """A negative size is a mistake, and says so."""
    with pytest.raises(ValueError, match="size must not be negative"):
        await reader_of(b"x").readexactly(-1)


@pytest.mark.parametrize("size", [None, -1, -7])
async def test_read_without_a_size(size: int | None, autojump_clock: object) -> None:
    """None and any negative size mean "without a size", as in `io`."""
    assert await reader_of(b"a\nb").read(size) == b"a\nb"
    assert await reader_of(b"a\nb").readline(size) == b"a\n"
    assert await reader_of(b"a\nb").readlines(size) == [b"a\n", b"b"]


@pytest.mark.parametrize("hint", [0, -1, None])
async def test_readlines_without_a_hint(hint: int | None, autojump_clock: object) -> None:
    """A hint of zero is none, as in `io`."""
    assert await reader_of(b"a\nb").readlines(hint) == io.BytesIO(b"a\nb").readlines(hint)


@pytest.mark.parametrize("size", [0, 1, 4])
async def test_reads_at_the_end_of_input(size: int, autojump_clock: object) -> None:
    """After the end every read returns nothing, again and again."""
    rfile = reader_of(b"")
    for _ in range(2):
        assert await rfile.read(size) == b""
        assert await rfile.read1(size) == b""
        assert await rfile.readline(size) == b""
        assert await rfile.readline() == b""
        assert await rfile.read() == b""
        assert await rfile.readlines() == []
        assert await rfile.peek() == b""
        assert await rfile.readinto(bytearray(size)) == 0
        assert await rfile.readinto1(bytearray(size)) == 0
        assert not await rfile.more()
        assert [line async for line in rfile] == []
        assert rfile.at_eof()


async def test_at_eof_only_when_all_was_read(autojump_clock: object) -> None:
    """`at_eof` is false while input is buffered, be the end known or not."""
    rfile = reader_of(b"ab", ends="with")
    assert not rfile.at_eof()
    assert await rfile.read(1) == b"a"
    assert not rfile.at_eof()
    assert await rfile.read(5) == b"b"
    assert rfile.at_eof()


async def test_read1_takes_one_segment(autojump_clock: object) -> None:
    """`read1` returns what one receive brought, and no more than it was asked for."""
    rfile = trioserver.RequestReader(connection_over(Segments([b"abc", b"def"])))
    assert await rfile.read1() == b"abc"
    assert await rfile.read1(2) == b"de"
    assert await rfile.read1(9) == b"f"
    assert await rfile.read1(9) == b""


async def test_read1_without_a_size_is_bounded(autojump_clock: object) -> None:
    """`read1` without a size returns at most 64 KiB, however much is buffered."""
    rfile = reader_of(b"x" * 70_000)
    here = rfile._connection
    here._receiver.portion = 70_000
    assert len(await rfile.peek()) == 70_000
    assert len(await rfile.read1()) == 65_536
    assert len(await rfile.read1()) == 70_000 - 65_536


async def test_read1_of_zero_receives_nothing(autojump_clock: object) -> None:
    """`read1(0)` returns at once, as in `io`."""
    assert await reader_of(b"", ends="never").read1(0) == b""
    assert trio.current_time() == 0


async def test_peek_receives_once(autojump_clock: object) -> None:
    """`peek` shows what one receive brought; with anything buffered it receives nothing."""
    rfile = trioserver.RequestReader(connection_over(Segments([b"abc", b"def"])))
    assert await rfile.peek() == b"abc"
    assert await rfile.peek(100) == b"abc"
    assert await rfile.read(4) == b"abcd"
    assert await rfile.peek(1) == b"ef"


@pytest.mark.parametrize(
    "target", [bytearray(4), memoryview(bytearray(4)), memoryview(array("H", [0, 0]))]
)
async def test_readinto_any_writable_buffer(target: Any, autojump_clock: object) -> None:
    """The size of a target is its size in bytes, whatever its items are."""
    assert await reader_of(b"abcdef").readinto(target) == 4
    assert bytes(target) == b"abcd"


async def test_readinto_short(autojump_clock: object) -> None:
    """At the end of input `readinto` fills what there is, and leaves the rest alone."""
    target = bytearray(b"....")
    assert await reader_of(b"ab").readinto(target) == 2
    assert target == b"ab.."


@pytest.mark.parametrize("name", ["readinto", "readinto1"])
@pytest.mark.parametrize("target", [b"read-only", memoryview(bytearray(8))[::2]])
async def test_readinto_unfit_target_takes_nothing(
    name: str, target: Any, autojump_clock: object
) -> None:
    """A target that cannot be filled is refused before anything is read."""
    rfile = reader_of(b"abcdefghij")
    with pytest.raises((TypeError, ValueError, BufferError)):
        await getattr(rfile, name)(target)
    assert await rfile.read() == b"abcdefghij"


async def test_readinto_cancelled_lets_go_of_its_target(autojump_clock: object) -> None:
    """A cancelled `readinto` has written nothing, and the target can be resized again."""
    rfile, _, far = pipe()
    far.send_now(b"ab")
    target = bytearray(b"....")
    with trio.move_on_after(1) as scope:
        await rfile.readinto(target)
    assert scope.cancelled_caught
    target += b"!"
    assert target == b"....!"
    assert await rfile.read(2) == b"ab"


async def test_lines_of_input(autojump_clock: object) -> None:
    """The loop ends with the input; the last line may lack its end."""
    assert [line async for line in reader_of(b"a\n\nb")] == [b"a\n", b"\n", b"b"]


async def test_lines_of_input_are_limited(autojump_clock: object) -> None:
    """CM-05: a loop over lines raises `LimitExceeded`, and loses nothing."""
    rfile = reader_of(b"ab\nabcdef", limits=trioserver.Limits(line=4))
    lines = aiter(rfile)
    assert await anext(lines) == b"ab\n"
    with pytest.raises(trioserver.LimitExceeded):
        await anext(lines)
    assert await rfile.read() == b"abcdef"


async def test_readlines_hint_puts_back(autojump_clock: object) -> None:
    """`readlines` with a hint that meets a limit has taken no line at all."""
    rfile = reader_of(b"ab\ncd\nabcdef", limits=trioserver.Limits(line=4))
    with pytest.raises(trioserver.LimitExceeded):
        await rfile.readlines(100)
    assert await rfile.readlines(4) == [b"ab\n", b"cd\n"]


async def test_readlines_hint_cancelled_puts_back(autojump_clock: object) -> None:
    """`readlines` with a hint that is cancelled between two lines has taken no line at all."""
    rfile, _, far = pipe()
    far.send_now(b"ab\ncd\ne")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rfile.readlines, 100)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert await rfile.readlines(6) == [b"ab\n", b"cd\n"]


async def test_more_takes_nothing(autojump_clock: object) -> None:
    """`more` leaves the byte that it has seen."""
    rfile = reader_of(b"x")
    assert await rfile.more()
    assert await rfile.read() == b"x"


async def test_recv_and_rfile_share_their_input(autojump_clock: object) -> None:
    """CM-16: bytes that `rfile` has buffered come out of `recv`, in order."""
    rfile = trioserver.RequestReader(connection_over(Segments([b"first\nsec", b"ond"])))
    assert await rfile.readline() == b"first\n"
    assert await rfile._connection.recv(2) == b"se"
    assert await rfile._connection.recv(100) == b"c"
    assert await rfile.read() == b"ond"


async def test_pipelined_requests_are_not_mixed(autojump_clock: object) -> None:
    """CM-16: requests that came as one segment are answered one by one."""
    async with MemoryServer(MEMORY, Upper).serving() as server:
        client = await server.connect()
        await client.send_all(b"one\ntwo\nthr")
        await client.send_all(b"ee\n")
        await client.send_eof()
        assert await read_to_end(client) == b"ONE\nTWO\nTHREE\n"


async def test_half_closed_client_gets_its_reply(autojump_clock: object) -> None:
    """CM-06: a client that ends its output first reads the whole reply."""

    class ReadAllThenReply(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            data = await self.rfile.read()
            await self.wfile.write(data[::-1])

    async with MemoryServer(MEMORY, ReadAllThenReply).serving() as server:
        client = await server.connect()
        await client.send_all(b"abc" * 30_000)
        await client.send_eof()
        assert await read_to_end(client) == b"cba" * 30_000


# Time-outs -------------------------------------------------------------------------


async def test_line_timeout_counts_from_the_first_byte(autojump_clock: object) -> None:
    """CM-03: a byte now and then does not keep a line going beyond ``timeouts.line``."""
    rfile, _, far = pipe(timeouts=trioserver.Timeouts(line=10, idle=50))
    await trio.sleep(1)

    async def drip() -> None:
        await trio.sleep(4)
        for _ in range(5):
            far.send_now(b"x")
            await trio.sleep(3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        with pytest.raises(trioserver.IdleTimeout, match=r"\(line\)"):
            await rfile.readline()
        assert trio.current_time() == 5 + 10
    assert await rfile.read(5) == b"xxxxx"


@pytest.mark.parametrize("operation", [("readline", None), ("readuntil", b"\n"), ("readline", 9)])
async def test_line_timeout_bounds_every_delimited_read(
    operation: Operation, autojump_clock: object
) -> None:
    """Lines with and without a size and delimited reads have the same bound."""
    rfile, _, far = pipe(timeouts=trioserver.Timeouts(line=10))
    far.send_now(b"x")
    with pytest.raises(trioserver.IdleTimeout):
        await perform(rfile, operation)
    assert trio.current_time() == 10


async def test_idle_timeout_starts_anew_with_each_byte(autojump_clock: object) -> None:
    """TO-03: a read of a size waits ``timeouts.idle`` for each byte, and loses none of them."""
    rfile, _, far = pipe(timeouts=trioserver.Timeouts(idle=10))

    async def drip() -> None:
        for _ in range(3):
            await trio.sleep(9)
            far.send_now(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        with pytest.raises(
            trioserver.IdleTimeout, match=r"no byte from the peer for 10 s \(idle\)"
        ):
            await rfile.readexactly(4)
        assert trio.current_time() == 27 + 10
    assert await rfile.readexactly(3) == b"xxx"


async def test_bytes_that_are_there_at_a_time_out_count(autojump_clock: object) -> None:
    """At the instant of a time-out the transport is asked once more, and then it is over."""
    transport = Segments([b"ab", b"c\n", b"d", b"e"])
    rfile = trioserver.RequestReader(connection_over(transport))

    async def arrive_unnoticed() -> None:
        transport._queue.popleft()
        await trio.sleep_forever()

    transport.interrupted_by = arrive_unnoticed
    assert await rfile.readline() == b"abc\n"
    with pytest.raises(trioserver.IdleTimeout):
        await rfile.readline()
    assert await rfile.peek() == b"de"


# Cancellation and schedule points ---------------------------------------------------

READS: dict[str, Callable[[trioserver.RequestReader], Awaitable[object]]] = {
    "read(1)": lambda rfile: rfile.read(1),
    "read(0)": lambda rfile: rfile.read(0),
    "read1(1)": lambda rfile: rfile.read1(1),
    "readinto": lambda rfile: rfile.readinto(bytearray(1)),
    "readinto1": lambda rfile: rfile.readinto1(bytearray(1)),
    "readline": lambda rfile: rfile.readline(),
    "readline(1)": lambda rfile: rfile.readline(1),
    "readlines(1)": lambda rfile: rfile.readlines(1),
    "readuntil": lambda rfile: rfile.readuntil(b"\n"),
    "readexactly": lambda rfile: rfile.readexactly(1),
    "peek": lambda rfile: rfile.peek(),
    "more": lambda rfile: rfile.more(),
    "async for": lambda rfile: rfile.__anext__(),
}
READS_TO_THE_END: dict[str, Callable[[trioserver.RequestReader], Awaitable[object]]] = {
    "read": lambda rfile: rfile.read(),
    "readlines": lambda rfile: rfile.readlines(),
}
WRITES: dict[str, Callable[[trioserver.RequestWriter], Awaitable[object]]] = {
    "write": lambda wfile: wfile.write(b"x"),
    "write nothing": lambda wfile: wfile.write(b""),
    "writelines": lambda wfile: wfile.writelines([b"x"]),
    "flush": lambda wfile: wfile.flush(),
}


@pytest.mark.parametrize("read", [READS, READS_TO_THE_END], ids=["some", "all"])
@pytest.mark.parametrize("state", ["buffered", "readable", "at the end"])
async def test_reads_are_cancellation_points(
    read: dict[str, Any], state: str, autojump_clock: object
) -> None:
    """Every read notices a cancellation, wherever its bytes are, and has taken nothing."""
    data = b"" if state == "at the end" else b"a\nb\n"
    for name, operation in read.items():
        rfile = reader_of(data, ends="with")
        if state == "buffered":
            await rfile.peek()
        with trio.CancelScope() as scope:
            scope.cancel()
            await operation(rfile)
        assert scope.cancelled_caught, name
        assert await rfile.read() == data, name


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("wbufsize", [0, 100])
async def test_writes_are_cancellation_points(
    name: str, wbufsize: int, autojump_clock: object
) -> None:
    """Every write notices a cancellation, and has then neither sent nor buffered anything."""
    _, wfile, far = pipe(wbufsize=wbufsize)
    with trio.CancelScope() as scope:
        scope.cancel()
        await WRITES[name](wfile)
    assert scope.cancelled_caught
    await wfile.flush()
    assert far.receive_now(100) is None


class Steps(trio.abc.Instrument):
    """Counts how often a task was resumed."""

    def __init__(self) -> None:
        self.task = trio.lowlevel.current_task()
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self.task


async def longest_monopoly(operation: Callable[[], Awaitable[object]], times: int) -> int:
    """The most operations in a row without a schedule point, of so many."""
    steps, seen = Steps(), []
    trio.lowlevel.add_instrument(steps)
    for _ in range(times):
        await operation()
        seen.append(steps.count)
    trio.lowlevel.remove_instrument(steps)
    return max(len(list(group)) for _, group in itertools.groupby(seen))


@pytest.mark.parametrize("name", READS)
async def test_buffered_reads_let_others_run(name: str, autojump_clock: object) -> None:
    """At least every 16th read that is answered from the buffer is a schedule point."""
    rfile = reader_of(b"\n" * 100)
    await rfile.peek()
    assert await longest_monopoly(lambda: READS[name](rfile), 64) <= 16


@pytest.mark.parametrize("name", WRITES)
async def test_buffered_writes_let_others_run(name: str, autojump_clock: object) -> None:
    """At least every 16th write that ends in the buffer is a schedule point."""
    _, wfile, _ = pipe(wbufsize=1000)
    assert await longest_monopoly(lambda: WRITES[name](wfile), 64) <= 16


async def test_buffered_reads_and_writes_together_let_others_run(autojump_clock: object) -> None:
    """A handler that turns buffered input into buffered output does not get 16 of each."""
    here = connection_over(Segments([b"\n" * 100]))
    rfile, wfile = trioserver.RequestReader(here), trioserver.RequestWriter(here, 1000)
    await rfile.peek()
    turns = itertools.cycle([True, False])

    async def read_or_write() -> None:
        await (rfile.readline() if next(turns) else wfile.write(b"x"))

    assert await longest_monopoly(read_or_write, 64) <= 16


@pytest.mark.parametrize("name", READS | READS_TO_THE_END)
async def test_reads_that_receive_are_schedule_points(name: str, autojump_clock: object) -> None:
    """A read that reaches the transport lets others run, even if its bytes are there."""
    rfile = reader_of(b"\n", ends="with")
    if name == "read(0)":
        return  # it never reaches the transport
    with trio.testing.assert_checkpoints():
        await (READS | READS_TO_THE_END)[name](rfile)


@pytest.mark.parametrize("name", ["write", "write nothing", "writelines"])
async def test_unbuffered_writes_are_schedule_points(name: str, autojump_clock: object) -> None:
    """A write that reaches the transport lets others run, even if there is room."""
    _, wfile, _ = pipe()
    with trio.testing.assert_checkpoints():
        await WRITES[name](wfile)


async def test_flush_is_a_schedule_point(autojump_clock: object) -> None:
    """A flush of something lets others run."""
    _, wfile, _ = pipe(wbufsize=100)
    await wfile.write(b"x")
    with trio.testing.assert_checkpoints():
        await wfile.flush()


# Two tasks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", READS | READS_TO_THE_END)
async def test_read_while_another_task_reads(name: str, autojump_clock: object) -> None:
    """A second reading task gets `BusyResourceError`; the first one's read is unharmed."""
    rfile, _, far = pipe()
    far.send_now(b"half ")
    results = []

    async def first() -> None:
        results.append(await rfile.readline())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await (READS | READS_TO_THE_END)[name](rfile)
        with pytest.raises(trio.BusyResourceError):
            await rfile._connection.recv(1)
        far.send_now(b"a line\n")
    assert results == [b"half a line\n"]


@pytest.mark.parametrize("wbufsize", [0, 4])
async def test_write_while_another_task_writes(wbufsize: int, autojump_clock: object) -> None:
    """A second writing task gets `BusyResourceError`; the first one's bytes are unharmed."""
    _, wfile, far = pipe(capacity=4, wbufsize=wbufsize)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wfile.write, b"12345678")
        await trio.testing.wait_all_tasks_blocked()
        for write in (wfile.write, wfile._connection.sendall):
            with pytest.raises(trio.BusyResourceError):
                await write(b"second")
        assert far.receive_now(100) == b"1234"
    assert far.receive_now(100) == b"5678"


async def test_read_while_another_task_writes(autojump_clock: object) -> None:
    """The two directions do not disturb each other."""
    rfile, wfile, far = pipe(capacity=4)
    results = []

    async def read() -> None:
        results.append(await rfile.readline())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wfile.write, b"12345678")
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        far.send_now(b"go\n")
        await trio.testing.wait_all_tasks_blocked()
        assert results == [b"go\n"]
        assert far.receive_now(100) == b"1234"


async def test_read_while_another_task_flushes(autojump_clock: object) -> None:
    """A read does not trip over the output that another task is sending already."""
    rfile, wfile, far = pipe(capacity=4, wbufsize=4)
    results = []

    async def read() -> None:
        results.append(await rfile.readline())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wfile.write, b"12345678")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        far.send_now(b"go\n")
        await trio.testing.wait_all_tasks_blocked()
        assert results == [b"go\n"]
        assert far.receive_now(100) == b"1234"


async def test_read_while_another_read_flushes(autojump_clock: object) -> None:
    """A read that is still flushing is a read: a second task does not get its bytes."""
    rfile, wfile, far = pipe(capacity=4, wbufsize=100)
    await wfile.write(b"12345678")
    results = []

    async def read() -> None:
        results.append(await rfile.readline())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        far.send_now(b"go\n")
        with pytest.raises(trio.BusyResourceError):
            await rfile.readline()
        assert far.receive_now(100) == b"1234"
    assert results == [b"go\n"]


# Writing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"abc", 3),
        (bytearray(b"abc"), 3),
        (memoryview(b"abc"), 3),
        (memoryview(b"a.b.c.")[2:5], 3),
        (array("H", [1, 2]), 4),
        (b"", 0),
    ],
)
@pytest.mark.parametrize("wbufsize", [0, 100])
async def test_write_returns_the_size_in_bytes(
    data: Any, size: int, wbufsize: int, autojump_clock: object
) -> None:
    """CP-04: a write takes all of any buffer, and returns how many bytes that was."""
    _, wfile, far = pipe(wbufsize=wbufsize)
    assert await wfile.write(data) == size
    await wfile.flush()
    assert (far.receive_now(100) or b"") == memoryview(data).tobytes()


@pytest.mark.parametrize("wbufsize", [0, 100])
@pytest.mark.parametrize("data", ["text", 5, None])
async def test_write_of_what_is_not_bytes(data: Any, wbufsize: int, autojump_clock: object) -> None:
    """Text is a mistake, and nothing of it is buffered."""
    _, wfile, far = pipe(wbufsize=wbufsize)
    with pytest.raises(TypeError):
        await wfile.write(data)
    await wfile.flush()
    assert far.receive_now(100) is None


async def test_write_unbuffered_sends_at_once(autojump_clock: object) -> None:
    """CP-04: without a buffer, what was written is on its way when the write returns."""
    _, wfile, far = pipe()
    await wfile.write(b"abc")
    assert far.receive_now(100) == b"abc"


async def test_writelines_is_one_write(autojump_clock: object) -> None:
    """All lines of one `writelines` go out together, in order."""
    _, wfile, far = pipe()
    await wfile.writelines([b"a\n", bytearray(b"b\n"), memoryview(b"c\n")])
    assert far.receive_now(100) == b"a\nb\nc\n"


@pytest.mark.parametrize(
    ("writes", "sent"),
    [
        ([b"1234567"], None),
        ([b"12345678"], b"12345678"),
        ([b"123456789"], b"123456789"),
        ([b"1234", b"567"], None),
        ([b"1234", b"5678"], b"12345678"),
        ([b"1234", b"5678", b"9"], b"12345678"),
    ],
)
async def test_buffered_write_flushes_when_full(
    writes: list[bytes], sent: bytes | None, autojump_clock: object
) -> None:
    """A buffer of 8 bytes is sent when it has 8 of them, not before."""
    _, wfile, far = pipe(wbufsize=8)
    for data in writes:
        await wfile.write(data)
    assert far.receive_now(100) == sent


async def test_buffered_write_of_default_size(autojump_clock: object) -> None:
    """A negative ``wbufsize`` is a buffer of 64 KiB."""
    _, wfile, far = pipe(wbufsize=-1)
    await wfile.write(b"x" * 65_535)
    assert far.receive_now(1) is None
    await wfile.write(b"x")
    assert len(far.receive_now(100_000) or b"") == 65_536


async def test_buffered_write_keeps_its_order_with_sendall(autojump_clock: object) -> None:
    """What was buffered goes out before what is sent around the buffer."""
    _, wfile, far = pipe(wbufsize=100)
    await wfile.write(b"first ")
    await wfile._connection.sendall(b"second")
    await wfile.write(b" third")
    assert far.receive_now(100) == b"first second"
    await wfile.flush()
    assert far.receive_now(100) == b" third"


async def test_buffered_write_keeps_its_order_with_send_eof(autojump_clock: object) -> None:
    """What was buffered goes out before the end of output."""
    _, wfile, far = pipe(wbufsize=100)
    await wfile.write(b"last words")
    await wfile._connection.send_eof()
    assert far.receive_now(100) == b"last words"
    assert far.receive_now(100) == b""


WAITING_READS: dict[str, Callable[[trioserver.RequestReader], Awaitable[object]]] = {
    **{name: read for name, read in READS.items() if name != "read(0)"},
    **READS_TO_THE_END,
    "recv": lambda rfile: rfile._connection.recv(1),
}


@pytest.mark.parametrize("name", WAITING_READS)
async def test_buffered_write_is_flushed_by_a_read_that_waits(
    name: str, autojump_clock: object
) -> None:
    """Before the peer is waited for, it is told what it may be waiting for."""
    rfile, wfile, far = pipe(wbufsize=100)
    await wfile.write(b"your move")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(WAITING_READS[name], rfile)
        await trio.testing.wait_all_tasks_blocked()
        assert far.receive_now(100) == b"your move"
        nursery.cancel_scope.cancel()


async def test_buffered_write_is_flushed_by_a_read_that_receives(autojump_clock: object) -> None:
    """The same before a read that finds its bytes waiting: a busy peer is answered, too."""
    rfile, wfile, far = pipe(wbufsize=100)
    await wfile.write(b"your move")
    far.send_now(b"mine\n")
    assert await rfile.readline() == b"mine\n"
    assert far.receive_now(100) == b"your move"


async def test_buffered_write_is_not_flushed_by_a_read_of_the_buffer(
    autojump_clock: object,
) -> None:
    """A read that is answered from the buffer sends nothing: replies to a burst go out together."""
    rfile, wfile, far = pipe(wbufsize=100)
    far.send_now(b"1\n2\n")
    await rfile.peek()
    for _ in range(2):
        await wfile.write(await rfile.readline())
        assert far.receive_now(100) is None
    await wfile.flush()
    assert far.receive_now(100) == b"1\n2\n"


async def test_buffered_write_is_flushed_within_a_line(autojump_clock: object) -> None:
    """A read that waits for the rest of a line flushes, too."""
    rfile, wfile, far = pipe(wbufsize=100)
    far.send_now(b"half a ")
    await wfile.write(b"go on")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rfile.readline)
        await trio.testing.wait_all_tasks_blocked()
        assert far.receive_now(100) == b"go on"
        far.send_now(b"line\n")


class Greeter(trioserver.StreamRequestHandler):
    wbufsize = 1000

    async def handle(self) -> None:
        await self.wfile.write(b"hello ")
        await self.wfile.write(b"world")


async def test_buffered_write_is_flushed_after_handle(autojump_clock: object) -> None:
    """What a handler left in the buffer is sent when it is done."""
    async with MemoryServer(MEMORY, Greeter).serving() as server:
        assert await read_to_end(await server.connect()) == b"hello world"


async def test_buffered_write_is_flushed_after_a_finish_of_ones_own(
    autojump_clock: object,
) -> None:
    """A ``finish`` that does not call its base class loses nothing."""

    class Forgetful(Greeter):
        async def finish(self) -> None:
            await self.wfile.write(b"!")

    async with MemoryServer(MEMORY, Forgetful).serving() as server:
        assert await read_to_end(await server.connect()) == b"hello world!"


async def test_buffered_write_is_flushed_after_an_error(autojump_clock: object) -> None:
    """What was written before a handler failed is sent, as in the classic framework."""

    class Failing(Greeter):
        async def handle(self) -> None:
            await super().handle()
            raise ValueError("after all")

    async with MemoryServer(MEMORY, Failing).serving() as server:
        assert await read_to_end(await server.connect()) == b"hello world"


async def test_buffered_write_is_flushed_under_the_write_timeout(autojump_clock: object) -> None:
    """CM-10: a peer that does not take the last buffer is given up after ``timeouts.write``."""

    class InMemory(MemoryServer):
        memory_capacity = 4

    witness = Witness()
    timeouts = trioserver.Timeouts(write=7)
    server = InMemory(MEMORY, Greeter, timeouts=timeouts, observers=[witness])
    async with server.serving():
        client = await server.connect()
        await trio.sleep(8)
        assert witness.outcomes == ["timed_out"]
        assert witness.records[0].duration == 7
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)


async def test_flush_cancelled_before_it_sent_loses_nothing(autojump_clock: object) -> None:
    """A flush that could send nothing keeps the buffer, for the next one."""
    _, wfile, far = pipe(capacity=4, wbufsize=100)
    await wfile._connection.sendall(b"full")
    await wfile.write(b"abc")
    with trio.move_on_after(0) as scope:
        await wfile.flush()
    assert scope.cancelled_caught
    assert far.receive_now(100) == b"full"
    await wfile.flush()
    assert far.receive_now(100) == b"abc"


async def test_flush_that_waited_in_vain_loses_nothing(autojump_clock: object) -> None:
    """The same, when the flush was cancelled in its wait."""
    _, wfile, far = pipe(capacity=4, wbufsize=100)
    await wfile._connection.sendall(b"full")
    await wfile.write(b"abc")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wfile.flush)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert far.receive_now(100) == b"full"
    await wfile.flush()
    assert far.receive_now(100) == b"abc"


async def test_flush_cancelled_half_way_breaks_the_connection(autojump_clock: object) -> None:
    """A flush that was cut short is never repeated: the peer would see bytes twice, or a gap."""
    _, wfile, far = pipe(capacity=4, wbufsize=100)
    await wfile.write(b"12345678")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wfile.flush)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError, match="cut short"):
        await wfile.write(b"more")
    assert far.receive_now(100) == b"1234"
    assert far.receive_now(100) is None


async def test_buffer_is_bounded_although_writes_are_cancelled(autojump_clock: object) -> None:
    """BP-09: against a peer that never reads, writes that give up do not pile up."""
    _, wfile, _ = pipe(capacity=4, wbufsize=10)
    await wfile._connection.sendall(b"full")
    for _ in range(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wfile.write, b"x" * 10)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert len(wfile._sender.buffer) <= 20


async def test_read_whose_flush_is_cancelled_loses_nothing(autojump_clock: object) -> None:
    """Cancelled while it flushes, a read has taken no input and lost no output."""
    rfile, wfile, far = pipe(capacity=4, wbufsize=100)
    await wfile._connection.sendall(b"full")
    await wfile.write(b"abc")
    far.send_now(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rfile.readline)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert far.receive_now(100) == b"full"
    far.send_now(b"y\n")
    assert await rfile.readline() == b"xy\n"
    assert far.receive_now(100) == b"abc"


# What is closed, and what the files say of themselves ---------------------------------------


@pytest.mark.parametrize("name", READS | READS_TO_THE_END)
@pytest.mark.parametrize("buffered", [False, True])
async def test_read_after_close(name: str, buffered: bool, autojump_clock: object) -> None:
    """Once closed by this side nothing is read any more, buffered or not."""
    rfile, _, far = pipe()
    far.send_now(b"a\nb\n")
    if buffered:
        await rfile.peek()
    rfile._connection.close()
    with pytest.raises(trio.ClosedResourceError):
        await (READS | READS_TO_THE_END)[name](rfile)


@pytest.mark.parametrize("name", ["write", "writelines"])
@pytest.mark.parametrize("wbufsize", [0, 100])
async def test_write_after_close(name: str, wbufsize: int, autojump_clock: object) -> None:
    """A write to a closed connection fails at once, not when the buffer is full."""
    _, wfile, _ = pipe(wbufsize=wbufsize)
    wfile._connection.close()
    with pytest.raises(trio.ClosedResourceError):
        await WRITES[name](wfile)


async def test_read_after_reset(autojump_clock: object) -> None:
    """What arrived before a reset is read first, then every read says that the peer is gone."""
    rfile, _, far = pipe()
    far.send_now(b"a\nb")
    assert await rfile.readline() == b"a\n"
    far.reset()
    assert await rfile.read1() == b"b"
    for _ in range(2):
        with pytest.raises(trioserver.PeerGone):
            await rfile.read1()


async def test_files_describe_themselves(autojump_clock: object) -> None:
    """One is readable, the other writable; both know when the connection is closed."""
    rfile, wfile, _ = pipe()
    assert (rfile.readable(), rfile.writable()) == (True, False)
    assert (wfile.readable(), wfile.writable()) == (False, True)
    assert not rfile.closed
    assert not wfile.closed
    assert (rfile.fileno(), wfile.fileno()) == (-1, -1)
    rfile._connection.close()
    assert rfile.closed
    assert wfile.closed


# On real sockets ----------------------------------------------------------------------------


async def test_files_over_tcp_byte_by_byte() -> None:
    """CM-04: on the wire, too, one byte a segment gives the same reply."""
    with trio.fail_after(10):
        async with trioserver.TCPServer(("127.0.0.1", 0), Upper).serving() as server:
            async with await trio.open_tcp_stream(*server.server_address) as client:
                for byte in b"one\ntwo\nthree":
                    await client.send_all(bytes([byte]))
                await client.send_eof()
                assert await read_to_end(client) == b"ONE\nTWO\nTHREE"


async def test_files_over_tcp_have_the_descriptor() -> None:
    """``fileno`` is the connection's descriptor, as classic code expects, and -1 once closed."""
    seen = []

    class Looking(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            assert self.request.socket is not None
            seen.append(self.request.socket.fileno())
            seen.append(self.rfile.fileno())
            seen.append(self.wfile.fileno())
            await self.request.aclose()
            seen.append(self.rfile.fileno())

    with trio.fail_after(10):
        async with trioserver.TCPServer(("127.0.0.1", 0), Looking).serving() as server:
            async with await trio.open_tcp_stream(*server.server_address) as client:
                assert await read_to_end(client) == b""
    number, rfile, wfile, closed = seen
    assert number == rfile == wfile > 0
    assert closed == -1


async def test_files_over_tcp_with_a_buffer() -> None:
    """A dialogue over a buffered ``wfile`` on a real socket needs no flush by hand."""

    class Quiz(trioserver.StreamRequestHandler):
        wbufsize = -1

        async def handle(self) -> None:
            await self.wfile.write(b"6*7? ")
            right = await self.rfile.readline() == b"42\n"
            await self.wfile.write(b"right\n" if right else b"wrong\n")

    with trio.fail_after(10):
        async with trioserver.TCPServer(("127.0.0.1", 0), Quiz).serving() as server:
            async with await trio.open_tcp_stream(*server.server_address) as client:
                assert await client.receive_some(100) == b"6*7? "
                await client.send_all(b"42\n")
                assert await read_to_end(client) == b"right\n"


async def test_write_over_tcp_sends_all_of_a_large_buffer() -> None:
    """CP-04: one write of more than the kernel takes arrives whole, and in order."""
    data = bytes(range(256)) * 8192

    class Large(trioserver.StreamRequestHandler):
        async def handle(self) -> None:
            assert await self.wfile.write(data) == len(data)

    with trio.fail_after(10):
        async with trioserver.TCPServer(("127.0.0.1", 0), Large).serving() as server:
            async with await trio.open_tcp_stream(*server.server_address) as client:
                assert await read_to_end(client) == data


async def test_urgent_byte_is_not_mixed_into_the_data() -> None:
    """CM-12: an urgent byte is kept out of band by the kernel, and reads never see it."""
    with trio.fail_after(10):
        async with trioserver.TCPServer(("127.0.0.1", 0), Upper).serving() as server:
            client = plain_client(server.server_address)
            with client:
                client.sendall(b"be")
                client.send(b"!", 1)  # MSG_OOB
                client.sendall(b"fore\n")
                assert await trio.to_thread.run_sync(client.recv, 100) == b"BEFORE\n"


def test_no_read_may_block_for_ever() -> None:
    """A read without an idle time-out still has its line time-out."""

    async def main() -> None:
        rfile, _, far = pipe(timeouts=trioserver.Timeouts(idle=math.inf, line=3))
        far.send_now(b"x")
        with pytest.raises(trioserver.IdleTimeout):
            await rfile.readuntil(b"\n")
        assert trio.current_time() == 3

    run(main)
