"""The clients of the soaks, in a process of their own: plain sockets of the standard library.

`_common.Clients` starts it. Each line of its standard input is a JSON object,
``{"do": name, ...}``: the method of that name is called with the rest, and what
it returns is the next line of the standard output, as ``{"result": ...}``, or
``{"error": traceback}``. It ends when its input does.

It imports nothing of trioserver: what the server's process holds is the
server's.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import selectors
import socket
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 60.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# Sockets ---------------------------------------------------------------------------

FAMILIES = {
    "tcp": (socket.AF_INET, socket.SOCK_STREAM),
    "unix": (socket.AF_UNIX, socket.SOCK_STREAM),
    "udp": (socket.AF_INET, socket.SOCK_DGRAM),
    "unix-datagram": (socket.AF_UNIX, socket.SOCK_DGRAM),
}


def connect(kind: str, address: Any, *, named: bool = True) -> socket.socket:
    """A connected socket that waits for at most `PATIENCE` seconds."""
    client = socket.socket(*FAMILIES[kind])
    client.settimeout(PATIENCE)
    try:
        if kind == "unix-datagram" and named:
            client.bind("")  # a name in the abstract namespace, which the kernel chooses
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def is_stream(kind: str) -> bool:
    """Whether it has connections."""
    return FAMILIES[kind][1] == socket.SOCK_STREAM


def address_of(address: Any) -> Any:
    """An address as `socket` wants it, which JSON made a list of."""
    return tuple(address) if isinstance(address, list) else address


def reset_on_close(client: socket.socket) -> None:
    """Have the close tell the server that something is wrong."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def read_to_end(client: socket.socket) -> bytes:
    """Everything up to the end; a reset counts as one."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65_536):
            received += data
    return bytes(received)


def expect(client: socket.socket, answer: bytes) -> None:
    """Receive exactly this.

    A datagram may be late, and for somebody who had this port before: skipped.
    """
    received = b""
    if client.type == socket.SOCK_DGRAM:
        while client.recv(65_536) != answer:
            pass
        return
    while len(received) < len(answer):
        data = client.recv(65_536)
        if not data:
            break
        received += data
    if received != answer:
        raise AssertionError(f"{received[:99]!r}, not {answer[:99]!r}")


def starvation() -> float:
    """Seconds that this process and its parent, the server's, have waited for a processor."""
    nanoseconds = 0
    for process in (os.getpid(), os.getppid()):
        schedstat = Path(f"/proc/{process}/schedstat").read_text(encoding="ascii")
        nanoseconds += int(schedstat.split()[1])
    return nanoseconds / 1e9


# How a client of a connection behaves ------------------------------------------------

Behaviour = Callable[[socket.socket, random.Random], None]


def polite(client: socket.socket, rng: random.Random) -> None:
    """Asks, reads the answer, and leaves."""
    request = b"hello %d\n" % rng.randrange(1000)
    client.sendall(request)
    expect(client, request.upper())


def vanish(client: socket.socket, rng: random.Random) -> None:
    """Resets the connection, at once or in the middle of a request."""
    if rng.random() < 0.5:
        client.sendall(b"half a li")
    reset_on_close(client)


def leave_unread(client: socket.socket, rng: random.Random) -> None:
    """Asks, and leaves without reading: the kernel resets the connection."""
    client.sendall(b"hello\n" * rng.randrange(1, 100))


def half_close(client: socket.socket, rng: random.Random) -> None:
    """Asks, ends its output, and reads to the end."""
    count = rng.randrange(1, 100)
    client.sendall(b"hello\n" * count)
    client.shutdown(socket.SHUT_WR)
    expect(client, b"HELLO\n" * count)
    expect_end(client)


def cut_short(client: socket.socket, rng: random.Random) -> None:
    """Ends its output in the middle of a line, and reads to the end."""
    client.sendall(b"half a li")
    client.shutdown(socket.SHUT_WR)
    expect(client, b"HALF A LI")
    expect_end(client)


def exceed(client: socket.socket, rng: random.Random) -> None:
    """Sends a line that is too long, and is cut off."""
    with contextlib.suppress(ConnectionError):
        client.sendall(bytes(5000))
    read_to_end(client)


def talk_rubbish(client: socket.socket, rng: random.Random) -> None:
    """Sends random bytes, and resets the connection if it is not cut off."""
    with contextlib.suppress(ConnectionError):
        client.sendall(rng.randbytes(rng.randrange(1, 5000)))
    reset_on_close(client)


def dawdle(client: socket.socket, rng: random.Random) -> None:
    """Sends its line in three parts, with pauses."""
    for part in (b"he", b"ll", b"o\n"):
        time.sleep(rng.uniform(0, 0.005))
        client.sendall(part)
    expect(client, b"HELLO\n")


def provoke(client: socket.socket, rng: random.Random) -> None:
    """Has the handler fail."""
    client.sendall(b"fail\n")
    expect_end(client)


def stay_silent(client: socket.socket, rng: random.Random) -> None:
    """Says nothing, and is cut off."""
    expect_end(client)


def drip(client: socket.socket, rng: random.Random) -> None:
    """Sends a byte now and then, never a whole line, and is cut off."""
    client.settimeout(0.05)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            client.sendall(b"x")
            expect_end(client)
        except TimeoutError:
            continue
        except ConnectionError:
            pass
        return
    raise AssertionError("not cut off")


def never_read(client: socket.socket, rng: random.Random) -> None:
    """Asks and asks and never reads, and is cut off."""
    with contextlib.suppress(ConnectionError):
        while True:
            client.sendall((b"hello" * 150 + b"\n") * 100)


def expect_end(client: socket.socket) -> None:
    """Be closed upon, in order or not."""
    with contextlib.suppress(ConnectionError):
        if data := client.recv(99):
            raise AssertionError(f"{data!r}, not the end")


_QUICK: tuple[Behaviour, ...] = (
    *(vanish, leave_unread, half_close, cut_short, exceed, talk_rubbish, dawdle, provoke),
)
_SLOW: tuple[Behaviour, ...] = (stay_silent, drip, never_read)  # until a time-out cuts them off


# How the sender of a datagram behaves -----------------------------------------------


def go_unread(client: socket.socket, rng: random.Random) -> None:
    """Asks, and is gone before the reply."""
    client.send(b"hello\n")


def send_nothing(client: socket.socket, rng: random.Random) -> None:
    """Sends an empty datagram, which has no answer."""
    client.send(b"")


def send_rubbish(client: socket.socket, rng: random.Random) -> None:
    """Sends random bytes, and does not wait for what comes of it."""
    client.send(rng.randbytes(rng.randrange(1, 500)))


def send_too_much(client: socket.socket, rng: random.Random) -> None:
    """Sends more than the server takes."""
    client.send(bytes(20_000))


def send_failing(client: socket.socket, rng: random.Random) -> None:
    """Has the handler fail."""
    client.send(b"fail\n")


_DATAGRAM: tuple[Behaviour, ...] = (
    *(go_unread, send_nothing, send_rubbish, send_too_much, send_failing),
)

BEHAVIOURS = {behave.__name__: behave for behave in (polite, *_QUICK, *_SLOW, *_DATAGRAM)}


def choose(kind: str, number: int, rng: random.Random, *, misbehave: bool) -> Behaviour:
    """How a client behaves: one in three badly, and three in a thousand of those slowly."""
    if not misbehave or number % 3:
        return polite
    if not is_stream(kind):
        return rng.choice(_DATAGRAM)
    return rng.choice(_SLOW if rng.random() < 0.003 else _QUICK)


# Garbage ------------------------------------------------------------------------------


def garbage(rng: random.Random, most: int) -> bytes:
    """Up to ``most`` bytes of one of four kinds, small ones as often as large ones."""
    size = rng.randrange(rng.choice((2, 100, 5000, most)) + 1)
    match rng.randrange(4):
        case 0:
            return rng.randbytes(size)
        case 1:  # lines, mostly, that are no text
            return rng.randbytes(size).replace(b"\x80", b"\n").replace(b"a", b"\r\n")[:most]
        case 2:  # delimiters, complete and not
            return b"".join(rng.choices((b"\r", b"\n", b"\r\n", b"\0"), k=size // 2 + 1))[:size]
        case _:
            return bytes(size)


# What can be asked for ---------------------------------------------------------------


class Crowd:
    """What the methods share: the connections that are kept."""

    def __init__(self) -> None:
        self._kept: list[socket.socket] = []

    def visit(
        self,
        kind: str,
        address: Any,
        first: int,
        count: int,
        seed: int,
        *,
        misbehave: bool,
        only: str | None,
    ) -> dict[str, int]:
        """Clients ``first`` and following, one after the other; how many behaved how."""
        behaved: Counter[str] = Counter()
        for number in range(first, first + count):
            rng = random.Random(f"{seed}/{number}")
            behave = BEHAVIOURS[only] if only else choose(kind, number, rng, misbehave=misbehave)
            behaved[behave.__name__] += 1
            try:
                with connect(kind, address) as client:
                    behave(client, rng)
            except Exception as error:
                message = f"client {number} of seed {seed} ({behave.__name__}): {error!r}"
                raise AssertionError(message) from error
        return behaved

    def rubbish(
        self, kind: str, address: Any, first: int, count: int, seed: int, most: int
    ) -> dict[str, int]:
        """So many garbage requests, of up to ``most`` bytes; how many bytes."""
        totals: Counter[str] = Counter()
        for number in range(first, first + count):
            rng = random.Random(f"{seed}/{number}")
            request = garbage(rng, most)
            with connect(kind, address, named=rng.random() < 0.9) as client:
                totals["sent"] += len(request)
                if not is_stream(kind):
                    client.send(request)
                    time.sleep(len(request) / 1e8)  # or the kernel drops most of it
                    continue
                with contextlib.suppress(ConnectionError):
                    self._say(client, request, rng)
                    if rng.random() < 0.2:
                        reset_on_close(client)
                    else:
                        client.shutdown(socket.SHUT_WR)
                        totals["received"] += len(read_to_end(client))
        return totals

    def _say(self, client: socket.socket, request: bytes, rng: random.Random) -> None:
        """Send at once, or cut somewhere."""
        if rng.random() < 0.5 or not request:
            client.sendall(request)
            return
        cut = rng.randrange(len(request))
        if client.family == socket.AF_INET:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(request[:cut])
        client.sendall(request[cut:])

    def nudge(self, kind: str, address: Any) -> None:
        """Send an empty datagram: with it the kernel tells the server of those it dropped."""
        with connect(kind, address) as client:
            client.send(b"")

    def keep(self, kind: str, address: Any, count: int, says: str) -> int:
        """Open so many connections, have each answered once unless it says nothing; keep them."""
        request = says.encode()
        for _ in range(count):
            client = connect(kind, address)
            self._kept.append(client)
            if request:
                client.sendall(request)
                expect(client, request.upper())
        return len(self._kept)

    def ask_kept(self, says: str) -> list[float]:
        """Each of the kept asks once more; seconds to the answers."""
        request, seconds = says.encode(), []
        for client in self._kept:
            began = time.perf_counter()
            client.sendall(request)
            expect(client, request.upper())
            seconds.append(time.perf_counter() - began)
        return seconds

    def ask_kept_for(self, seconds: float, pause: float) -> dict[str, float]:
        """One of the kept after the other asks, with pauses, for so long."""
        until, count, worst = time.monotonic() + seconds, 0, 0.0
        while time.monotonic() < until:
            client = self._kept[count % len(self._kept)]
            began = time.perf_counter()
            client.sendall(b"hello\n")
            expect(client, b"HELLO\n")
            worst = max(worst, time.perf_counter() - began)
            count += 1
            time.sleep(pause)
        return {"answers": count, "worst": worst}

    def say_lines(self, first: int, count: int) -> None:
        """The kept one says so many lines, each when the last one was answered."""
        (client,) = self._kept
        for number in range(first, first + count):
            client.sendall(b"line %d\n" % number)
            answer = client.recv(99)
            if answer != b"LINE %d\n" % number:
                raise AssertionError(f"{answer!r} to line {number}")

    def until_ended(self) -> float:
        """Seconds until all of the kept were closed upon, in order."""
        began = time.monotonic()
        for client in self._kept:
            if answer := client.recv(99):
                raise AssertionError(f"{answer!r}, not the end")
            client.close()
        self._kept.clear()
        return time.monotonic() - began

    def leave(self) -> None:
        """Close all that are kept."""
        for client in self._kept:
            client.close()
        self._kept.clear()

    def ask(
        self, kind: str, address: Any, count: int, pause: float, start: float | None = None
    ) -> list[list[float]]:
        """So many clients, one after the other.

        Returns:
          For each when it came, how long it took from connecting to the
          answer, and how much of that this process and the server's waited for
          a processor, which others had.
        """
        answers = []
        start = time.perf_counter() if start is None else start
        for number in range(count):
            waited, began = starvation(), time.perf_counter()
            with connect(kind, address) as client:
                client.sendall(b"hello\n")
                expect(client, b"HELLO\n")
            seconds = time.perf_counter() - began
            answers.append([began - start, seconds, starvation() - waited])
            if pause and number + 1 < count:
                time.sleep(pause)
        return answers

    def ask_until_told(self, kind: str, address: Any, pause: float) -> list[list[float]]:
        """The same, until the next line of input, which is not answered."""
        answers, start = [], time.perf_counter()
        with selectors.DefaultSelector() as selector:
            selector.register(sys.stdin, selectors.EVENT_READ)
            while not selector.select(pause):
                answers += self.ask(kind, address, 1, 0, start)
        sys.stdin.readline()
        return answers

    def trickle(self, kind: str, address: Any, count: int, interval: float) -> list[float]:
        """So many at once, each with a byte at every interval, until cut off; for how long each."""
        lives: list[float] = []
        with selectors.DefaultSelector() as selector:
            for number in range(count):
                client = connect(kind, address)
                now = time.monotonic()
                # Spread over the interval, so that somebody always sends.
                selector.register(
                    client, selectors.EVENT_READ, [now, now + interval * number / count]
                )
            while selector.get_map():
                for key, _ in selector.select(0.01):
                    with contextlib.suppress(ConnectionError):
                        if answer := key.fileobj.recv(99):  # type: ignore[union-attr]
                            raise AssertionError(f"{answer!r}, not the end")
                    lives.append(time.monotonic() - key.data[0])
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                now = time.monotonic()
                for key in list(selector.get_map().values()):
                    if key.data[1] <= now:
                        key.data[1] += interval
                        with contextlib.suppress(ConnectionError):
                            key.fileobj.send(b"x")  # type: ignore[union-attr]
        return lives

    def queue(self, kind: str, address: Any, count: int, every: float) -> list[list[Any]]:
        """So many, one every so often, each with a question; the fate of each, and its seconds."""
        fates: list[list[Any]] = []
        came, next_at = 0, time.monotonic()
        with selectors.DefaultSelector() as selector:
            while came < count or selector.get_map():
                if came < count and time.monotonic() >= next_at:
                    client = connect(kind, address)
                    client.sendall(b"hello\n")
                    selector.register(client, selectors.EVENT_READ, time.monotonic())
                    came, next_at = came + 1, next_at + every
                for key, _ in selector.select(0.01):
                    try:
                        answer = key.fileobj.recv(99)  # type: ignore[union-attr]
                    except ConnectionError:
                        answer = b""
                    served = {b"HELLO\n": "served", b"": "turned away"}.get(answer, repr(answer))
                    fates.append([served, time.monotonic() - key.data])
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                now = time.monotonic()
                for key in list(selector.get_map().values()):
                    if now - key.data > PATIENCE:
                        fates.append(["forgotten", now - key.data])
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
        return fates


def main() -> None:
    """Do as told, until there is nobody to tell."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd()
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        name = order.pop("do")
        if "address" in order:
            order["address"] = address_of(order["address"])
        try:
            answer = {"result": getattr(crowd, name)(**order)}
        except Exception:  # noqa: BLE001  (whoever asked is told)
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
