"""`trioserver.testing.open_scripted_server`: what a script is, and that wrong clients fail."""

import itertools
import math
import re

import pytest
import trio
import trio.testing
from support import plain_client, read_to_end
from support.pipes import play
from support.speaking import EVERYWHERE, ON_SOCKETS, speaks
from trio.testing import wait_all_tasks_blocked

from trioserver.testing import (
    Latency,
    Slice,
    SlowClose,
    Unmet,
    eof,
    expect,
    expect_eof,
    open_scripted_server,
    pause,
    reply,
)
from trioserver.testing._script.pattern import Mismatch, end_of_match, literals_of

MAIL = [reply(b"220 ready\r\n"), expect(b"EHLO *\r\n"), reply(b"250 hello\r\n")]
MAIL += [expect(b"MAIL FROM:<*>\r\n"), reply(b"250 ok\r\n"), expect_eof()]


def unmet_in(error):
    """The message of the one `Unmet` that a handler has raised, or that the end of the test has."""
    [unmet] = error.exceptions if isinstance(error, ExceptionGroup) else [error]
    assert isinstance(unmet, Unmet)
    return str(unmet)


@pytest.mark.parametrize(
    "text",
    [
        *(r"expect(b'MAIL FROM:<*>\r\n')", "expect_eof()", r"reply(b'250 ok\r\n')"),
        *("pause(30)", "pause(0.5)", "eof()"),
    ],
)
def test_steps_look_as_they_are_written(text):
    """And are equal to what is written in the same way; long ones are named in short."""
    step = eval(text)  # noqa: S307
    assert repr(step) == str(step) == text
    assert step == eval(text)  # noqa: S307
    step = reply(b"x" * 1000)
    assert str(step) == f"reply(b'{'x' * 200}' and 800 more bytes)"
    assert repr(step) == f"reply({b'x' * 1000})"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: [expect("EHLO")], TypeError, "expect() takes a pattern, in bytes, not 'EHLO'"),
        (lambda: [expect(b"EHLO *")], ValueError, "that does not end in *, not b'EHLO *': nothing"),
        (lambda: [reply("250")], TypeError, "reply() takes what to send, in bytes, not '250'"),
        (lambda: [reply(b"")], ValueError, "reply() takes what to send, of at least one byte, no"),
        (lambda: [pause("1")], TypeError, "pause() takes a number of seconds, not '1'"),
        (lambda: [pause(True)], TypeError, "pause() takes a number of seconds, not True"),
        (lambda: [pause(-1)], ValueError, "number of seconds of at least 0, not -1"),
        (lambda: [pause(math.nan)], ValueError, "number of seconds of at least 0, not nan"),
        (list, ValueError, "a script has at least one step: expect(...), say"),
        (lambda: [expect(b"a"), eof], TypeError, "step 2 must be what expect(), "),
        (lambda: [eof(), pause(1), reply(b"x")], ValueError, "reply(b'x'), comes after eof()"),
        (lambda: [expect_eof(), expect(b"x")], ValueError, "step 2, expect(b'x'), comes after"),
    ],
)
async def test_what_nobody_can_follow_is_refused(make, error, message):
    """When the step is made, or the server is opened, in words."""
    with pytest.raises(error, match=re.escape(message)):
        async with open_scripted_server(*make()):
            raise AssertionError("it was served")


async def test_what_does_not_fit_is_refused(autojump_clock):
    """CK-05: a pause while the clock stands still, as a request is open; a script of datagrams."""
    with pytest.raises(ValueError, match="a script needs a stream: transport must not be 'udp'"):
        async with open_scripted_server(expect(b"x"), transport="udp"):
            raise AssertionError("it was served")
    with pytest.raises(RuntimeError, match=r"pause\(30\) would never end: .* \(autojump='wait'\)"):
        async with open_scripted_server(pause(30), transport="tcp", autojump="wait"):
            raise AssertionError("it was served")
    async with open_scripted_server(pause(30), autojump="wait") as server:
        await server.connect()


@EVERYWHERE
async def test_follows_the_script(where):
    """With every connection, from its first step; then the connection ends in order."""
    async with open_scripted_server(*MAIL, transport=where) as server:
        for number in (1, 2):
            client = await speaks(server, b"EHLO me\r\nMAIL FR")
            await client.send_all(b"OM:<a@b>\r\n")
            await client.send_eof()
            assert await read_to_end(client) == b"220 ready\r\n250 hello\r\n250 ok\r\n"
            exchanges = await server.wait_requests(number)
    assert [str(one.outcome) for one in exchanges] == ["completed", "completed"]


async def test_the_end_waits_for_the_client(autojump_clock):
    """As long as any server does: then the connection is closed."""
    async with open_scripted_server(reply(b"bye\n")) as server:
        client = await server.connect()
        assert await read_to_end(client) == b"bye\n"
        assert trio.current_time() == 0
        await server.wait_requests()
        assert trio.current_time() == 2
        with pytest.raises(trio.BrokenResourceError):
            while trio.current_time() < 3:
                await client.send_all(b"hello?\n")
                await trio.sleep(0.1)


async def test_the_script_has_the_patience(autojump_clock):
    """It pauses by the Trio clock, to the second; ``eof()``: the client still is listened to.

    The network can be bad: half an hour late, and every byte by itself.
    """
    script = [pause(1800), reply(b"a"), pause(0.5), eof(), expect(b"*\n"), expect_eof()]
    async with open_scripted_server(*script) as server:
        client = await server.connect()
        for heard, instant in ((b"a", 1800), (b"", 1800.5)):
            assert await client.receive_some() == heard
            assert trio.current_time() == instant
        server.faults.add(Latency(1800), Slice(1))
        await client.send_all(b"bbbb\n")
        await client.send_eof()
        [exchange] = await server.wait_requests()
        assert trio.current_time() == 3600.5
    assert exchange.received == b"bbbb\n"


async def test_client_may_be_gone_before_a_reply(autojump_clock):
    """Whether the server notices that is up to chance."""
    replies = [expect(b"a\n"), *[pause(1), reply(b"b\n")] * 3, eof()]
    async with open_scripted_server(*replies) as server:
        await (await speaks(server, b"a\n")).aclose()
        [exchange] = await server.wait_requests()
    assert (exchange.sent, str(exchange.outcome)) == (b"b\n" * 2, "completed")


@EVERYWHERE
async def test_what_is_on_its_way_counts(where):
    """The test is over before the server has taken a step; the network is whole again then."""
    faults = None if where == "unix" else [Latency(30), SlowClose(30)]
    script = expect(b"a\n"), expect_eof()
    async with open_scripted_server(*script, transport=where, faults=faults) as server:
        await speaks(server, b"a\n", ends=True)


def verdict(pattern, data):
    """Where the match ends, None when it is not in there yet, or ``"never"``."""
    try:
        return end_of_match(literals_of(pattern), bytearray(data))
    except Mismatch:
        return "never"


def words(alphabet, sizes):
    """All words of these sizes."""
    return [bytes(word) for size in sizes for word in itertools.product(alphabet, repeat=size)]


def test_patterns_match_what_regular_expressions_do():
    """Each short pattern, each short input: the shortest that fits, as soon as it is certain."""
    inputs = words(b"ab\n", range(8))
    for pattern in words(b"ab*\n", range(1, 5)):
        if pattern.endswith(b"*"):
            continue
        regex = re.compile(re.escape(pattern).replace(rb"\*", rb"[^\n]*?"))
        matching = {data for data in inputs if regex.fullmatch(data)}
        beginnings = {data[:end] for data in matching for end in range(len(data) + 1)}
        for data in inputs[:40]:  # up to three bytes, which leaves room for all of a pattern
            ends = [end for end in range(len(data) + 1) if data[:end] in matching]
            expected = ends[0] if ends else None if data in beginnings else "never"
            assert verdict(pattern, data) == expected, (pattern, data)


@pytest.mark.parametrize(
    ("pattern", "data", "expected"),
    [
        (rb"[*].", rb"*.", 2),
        (rb"[*].", rb"a.", "never"),
        (b"a[*]", b"a*", 2),
        (b"[*x", b"[**x", 4),
        (b"[x]*.", b"[x]yy..", 6),
    ],
)
def test_star_in_brackets_is_itself(pattern, data, expected):
    """And nothing else is special."""
    expect(pattern)
    assert verdict(pattern, data) == expected


def cuts(data):
    """All ways to cut this in up to three pieces, and each byte by itself."""
    places = itertools.combinations_with_replacement(range(len(data) + 1), 2)
    ways = [[data[:one], data[one:two], data[two:]] for one, two in places]
    return [*ways, [bytes([byte]) for byte in data]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"EHLO me\r\nA*<b>\r\nQUIT", None),
        (b"EHLO me\nA*<b>\r\nQUIT", r"step 1 of 4, expect(b'EHLO *\r\n'), is not met"),
        (b"EHLO me\r\nA+<b>\r\nQUIT", r"step 2 of 4, expect(b'A[*]<*>\r\n'), is not met"),
        (b"EHLO me\r\nA*<b>\r\nQ", "step 3 of 4, expect(b'QUIT'), is not met"),
        (b"EHLO me\r\nA*<>\r\nQUIT!", "after step 4 of 4, reply(b'bye'), nothing more is expected"),
    ],
)
async def test_cuts_change_nothing(autojump_clock, data, expected):
    """Whether a script is met, and which step is not, is up to the bytes alone."""
    script = [expect(b"EHLO *\r\n"), expect(b"A[*]<*>\r\n"), expect(b"QUIT"), reply(b"bye")]
    ways = cuts(data)
    async with open_scripted_server(*script, strict=False) as server:
        for number, way in enumerate(ways, 1):
            client = await server.connect()
            for piece in way:
                await client.send_all(piece)
                await wait_all_tasks_blocked()
            await client.send_eof()
            await server.wait_requests(number)
            await client.aclose()
    errors = [one.error and str(one.error).partition(":")[0] for one in server.exchanges]
    assert errors == [expected] * len(ways)


# Wrong clients fail ------------------------------------------------------------------------

GET = [expect(b"GET *\r\n"), reply(b"200\r\n"), expect_eof()]
FIRST = r"step 1 of 3, expect(b'GET *\r\n'), is not met: "
LAST = "step 3 of 3, expect_eof(), is not met: "
OVER = ", and the test was over"
A_DAY = "got b'GET /' and then nothing for 86400 s"
JUDGED = "wait_requests"  # the client stays until the server has ended its request
RESET = "wait_all_tasks_blocked; reset; wait_requests"
STOPPED = "wait_all_tasks_blocked; stop"  # by the test, in the middle of the script
A = expect(b"a\n")
END = expect_eof()
X = b"x" * 200
LONG = f"step 1 of 1, expect({X!r} and 1 more bytes), is not met: got {X!r} and 9 more bytes"
UNREAD = "and 999800 more bytes), is not met: the client has taken nothing for 86400 s"
AFTER = "nothing more is expected: got"
ENDS = "step 1 of 1, expect_eof(), is not met: got"


@pytest.mark.parametrize(
    ("script", "said", "then", "at", "message"),
    [
        # Wrong words fail at once, as soon as it is certain.
        (GET, b"GET /\n", JUDGED, 0, FIRST + r"got b'GET /\n'"),
        (GET, b"GET /\r\nGET", JUDGED, 0, LAST + "got b'GET'"),
        (GET[:2], b"GET /\r\nGET", JUDGED, 0, rf"after step 2 of 2, {GET[1]}, {AFTER} b'GET'"),
        ([expect(X + b"y")], X + b"x" * 9, JUDGED, 0, LONG),
        # They are found when they arrive, though the test is over, whatever the script is at.
        (GET, b"PUT", None, 0, FIRST + "got b'PUT'"),
        ([A], b"a\nb\n", None, 0, rf"after step 1 of 1, {A}, {AFTER} b'b\n'"),
        ([A, pause(30)], b"a\nb\n", None, 0, rf"after step 2 of 2, pause(30), {AFTER} b'b\n'"),
        # A reset is no end.
        (GET, b"", RESET, 0, FIRST + "got a reset by the client"),
        ([END], b"", RESET, 0, f"{ENDS} a reset by the client"),
        # Deadlocks end on a clock that jumps: after a day.
        (GET, b"GET /", "receive_some -> b''", 86_400, FIRST + A_DAY),
        ([reply(X * 5000)], b"", JUDGED, 86_400, f"step 1 of 1, reply({X!r} {UNREAD}"),
        # The end of the test meets nothing: it closes the client, which has not ended by itself.
        (GET, b"", None, 1, FIRST + "got nothing" + OVER),
        (GET, b"GET /\r\n", None, 1, LAST + "got nothing" + OVER),
        (
            *([pause(30), reply(b"b\n"), A], b"a\n", None, 1),
            f"step 3 of 3, {A}, is not met: the script was at step 1 of 3, pause(30)" + OVER,
        ),
        # A server that is stopped meets nothing either.
        (GET, b"GET", STOPPED, 0, FIRST + "got b'GET'" + OVER),
        (GET, b"", STOPPED + " 5", 0.5, FIRST + "got nothing, and the server was stopped"),
        # When nobody has connected, nothing was tested.
        (GET, None, None, 1, f"nobody has connected; the first of 3 steps is {GET[0]}"),
    ],
)
async def test_unmet(script, said, then, at, message, autojump_clock):
    """What a handler finds is in a group with others; what the end of the test finds is not."""
    with pytest.raises((ExceptionGroup, Unmet)) as caught:
        async with open_scripted_server(*script) as server:
            client = None if said is None else await speaks(server, said)
            if then is not None:
                await play(then, server, client, trio.testing)
    assert unmet_in(caught.value) == message
    assert isinstance(caught.value, Unmet) == (OVER in message or said is None)
    assert trio.current_time() == at


@EVERYWHERE
async def test_end_of_the_client_fails(where):
    """In the middle of a step, or before it."""
    for said, got in ((b"MAIL FR", "b'MAIL FR' and then the end"), (b"", "the end")):
        with pytest.raises(ExceptionGroup) as caught:
            async with open_scripted_server(*MAIL, transport=where) as server:
                await read_to_end(await speaks(server, b"EHLO me\r\n" + said, ends=True))
        assert unmet_in(caught.value) == (
            rf"step 4 of 6, expect(b'MAIL FROM:<*>\r\n'), is not met: got {got} of the input"
        )


@pytest.mark.slow
@ON_SOCKETS
async def test_end_of_the_test_meets_nothing_on_a_real_socket(where):
    """Nor does it where the client is the test's own, and stays open."""
    with pytest.raises(Unmet, match=r"expect_eof\(\), is not met: got nothing, and the test was"):
        async with open_scripted_server(*GET, transport=where) as server:
            client = plain_client(server.address)
            client.send(b"GET /\r\n")
    client.close()


@pytest.mark.parametrize("script", [[reply(b"hi"), eof()], [reply(b"hi"), eof(), pause(30)]])
async def test_client_may_stay_open(script):
    """The test's own, when the script expects nothing more of it: it is not waited for."""
    async with open_scripted_server(*script, transport="tcp") as server:
        client = plain_client(server.address)
        await trio.to_thread.run_sync(client.recv, 10)
    client.close()


async def test_test_that_is_over_in_a_reply(autojump_clock):
    """Which is not expected of anybody, though the client has not taken it."""
    async with open_scripted_server(expect(b"a"), reply(b"x" * 1_000_000)) as server:
        await speaks(server, b"a")
        await wait_all_tasks_blocked()
    assert trio.current_time() == 0


async def test_each_connection_is_told_of(autojump_clock):
    """A line for each that the test has left in the middle; an error has them as notes."""
    nothing = FIRST + "got nothing" + OVER
    with pytest.raises(Unmet) as two:
        async with open_scripted_server(*GET) as server:
            for _ in range(2):
                await server.connect()
    assert str(two.value) == f"{nothing}\n{nothing}"
    with pytest.raises(ExceptionGroup) as mixed:
        async with open_scripted_server(*GET) as server:
            await server.connect()
            await speaks(server, b"PUT")
    assert unmet_in(mixed.value) == FIRST + "got b'PUT'"
    assert mixed.value.__notes__ == [nothing]


async def test_own_failure_is_not_masked(autojump_clock):
    """Unmet steps are notes on it, those that are waited for and those that were found."""
    with pytest.raises(trio.TooSlowError) as waiting, trio.fail_after(5):
        async with open_scripted_server(*GET) as server:
            await read_to_end(await speaks(server, b"GET /"))
    assert waiting.value.__context__.__notes__ == [FIRST + "got b'GET /'" + OVER]
    with pytest.raises(ZeroDivisionError) as found:
        async with open_scripted_server(*GET) as server:
            await read_to_end(await speaks(server, b"PUT"))
            raise ZeroDivisionError
    [note] = found.value.__notes__
    assert note.startswith("A handler has failed, too:\nTraceback")
    assert note.endswith(FIRST + "got b'PUT'\n")


async def test_lenient(autojump_clock):
    """``strict=False``: unmet steps are noted; what has not come is nothing."""
    async with open_scripted_server(*GET, strict=False) as server:
        await speaks(server, b"PUT")
        await speaks(server, b"GET")
    assert [str(one.error) for one in server.exchanges] == [FIRST + "got b'PUT'", "None"]
    async with open_scripted_server(*GET, strict=False):
        pass
