"""``trioserver check ADDRESS``: a health check, for probes of containers that have no curl(1)."""

from __future__ import annotations

import argparse
import os

import trio

from . import values
from .program import Status, in_words, say

LONGEST_ANSWER = 65_536

_ANSWERS = {"live\n", "ready\n"}
_NOT_READY = "not ready: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom to ask, and what."""
    parser.add_argument(
        "address",
        metavar="ADDRESS",
        type=values.address,
        help="where the program answers health checks (--health): host:port, or unix:PATH",
    )
    parser.add_argument(
        "--live", action="store_true", help="ask whether it lives, not whether it is ready"
    )
    parser.add_argument(
        "--timeout",
        metavar="TIME",
        type=values.seconds,
        default=5.0,
        help="time that the whole check may take (default: 5s)",
    )


def main(typed: argparse.Namespace) -> int:
    """Ask, and print the answer: status 0 if it is yes, 1 if it is no, or there is none."""
    path = "/live" if typed.live else "/ready"
    try:
        answer = trio.run(_ask, typed.address, path, typed.timeout)
    except trio.TooSlowError:
        return _no_answer(typed, f"no answer within {typed.timeout:g} s")
    except (OSError, trio.BrokenResourceError) as error:
        return _no_answer(typed, _in_short(error))
    head, _, text = answer.partition("\r\n\r\n")
    status = head.partition("\r\n")[0]
    if not answer:
        return _no_answer(typed, "it has ended the connection without an answer")
    if text not in _ANSWERS and not text.startswith(_NOT_READY):
        return _no_answer(typed, f"no health checks are answered there, but {status[:80]!r}")
    say(text.strip())
    return Status.DONE if status.startswith("HTTP/1.1 200 ") else Status.FAILED


def _in_short(error: Exception) -> str:
    """What has kept the connection from being, without the address, which is told already."""
    cause = error.__cause__ or error  # of all addresses that a name has
    each = cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause]
    numbers = [getattr(one, "errno", None) for one in each]
    known = dict.fromkeys(os.strerror(number) for number in numbers if number is not None)
    return in_words(cause) if None in numbers else "; ".join(known)


def _no_answer(typed: argparse.Namespace, why: str) -> Status:
    say(f"error: {values.shown(typed.address)}: {why}")
    return Status.FAILED


async def _ask(address: values.Address, path: str, patience: float) -> str:
    with trio.fail_after(patience):
        if isinstance(address, tuple):
            stream: trio.SocketStream = await trio.open_tcp_stream(*address)
        else:
            stream = await trio.open_unix_socket(address)
        async with stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = b""
            while len(answer) < LONGEST_ANSWER and (data := await stream.receive_some()):
                answer += data
            return answer.decode(errors="backslashreplace")
