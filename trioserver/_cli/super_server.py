"""``trioserver exec -- program``: a program for each connection, whose client is its terminal.

As tcpserver(1) and inetd(8) do, but within bounds: the program's standard input and output are
the client, by way of a socket of its own, and its errors go to the log. It has the time that
the server gives a request, and is ended, with all that it has started, when that is over, when
the client has gone, or when the grace of a drain is over.

Why not the client's own socket: a server that gives that away sees no silence, no byte and no end
any more. By TLS there is no socket to give, either.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

import trioserver

from . import serving_options as options
from .building import servers_for
from .program import run_program

PORTION = 65_536
PAUSE = 0.01
"""Seconds between two looks whether a program's group has ended."""

_JUST_LOOK = 0  # of kill(2): there is no such signal, but an error if there is no such group

LONGEST_LINE = 4096
"""Bytes of a line that a program writes to its standard error; a longer one is several."""

program_log = logging.getLogger("trioserver.exec")


class ProgramFailed(Exception):
    """A program could not be started, or has ended in another way than with status 0."""


@attrs.frozen
class RunsProgram:
    """A handler that runs a program for its client.

    Args:
      command: the program, and its arguments.
      silence: seconds without a byte in either direction after which it is ended.
      cleanup: seconds that it has to end by itself when it is told to.
    """

    command: Sequence[str]
    silence: float
    cleanup: float

    async def __call__(
        self, request: trioserver.Connection, client_address: Any, server: Any
    ) -> None:
        """Run it."""
        stream, process = await self._start(_about(request, client_address))
        try:
            conversation = _Conversation(request, stream, process, self.silence, self.cleanup)
            await conversation.take_place()
        finally:
            await end_group(process, self.cleanup)
            stream.socket.close()
            if process.stderr is not None:
                await process.stderr.aclose()
        if process.returncode:
            raise ProgramFailed(f"{self.command[0]} has ended {_in_words(process.returncode)}")

    async def _start(self, about: Mapping[str, str]) -> tuple[trio.SocketStream, trio.Process]:
        """Start it; our end of what is its standard input and output, and the process."""
        with ExitStack() as unless_started:
            try:
                ours, theirs = socket.socketpair()
                unless_started.callback(ours.close)
                with theirs:
                    process = await trio.lowlevel.open_process(
                        list(self.command),
                        stdin=theirs,
                        stdout=theirs,
                        stderr=subprocess.PIPE,
                        env={**os.environ, **about},
                        start_new_session=True,  # so that all that it starts can be ended with it
                    )
            except OSError as error:
                raise ProgramFailed(f"cannot start {self.command[0]}: {error.strerror}") from error
            unless_started.pop_all()
        ours.setblocking(False)
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), process


@attrs.define(eq=False)
class _Conversation:
    """A client and a program that talk to each other."""

    _client: trioserver.Connection
    _program: trio.SocketStream
    _process: trio.Process
    _silence: float
    _cleanup: float
    _patience: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def take_place(self) -> None:
        """Pass everything on, until the program has ended, and what it has said is on its way.

        Raises:
          trioserver.IdleTimeout: nobody has said anything for too long.
        """
        self._somebody_speaks()
        with self._patience:
            await self._pass_everything_on()
        if self._patience.cancelled_caught:
            message = f"no byte from either side for {self._silence:g} s (idle)"
            raise trioserver.IdleTimeout(message, info=self._client.info)

    async def _pass_everything_on(self) -> None:
        async with trio.open_nursery() as others:
            others.start_soon(self._client_to_program)
            async with trio.open_nursery() as outputs:
                outputs.start_soon(self._log_errors)
                outputs.start_soon(self._program_to_client)
                await self._process.wait()
                # What it has left behind would hold its output open.
                await end_group(self._process, self._cleanup)
            others.cancel_scope.cancel(reason="the program has ended")

    async def _client_to_program(self) -> None:
        while data := await self._client.receive_some(PORTION):
            self._somebody_speaks()
            try:
                await self._program.send_all(data)
            except trio.BrokenResourceError:
                return  # it does not read any more, and may still write
        with suppress(trio.BrokenResourceError):
            await self._program.send_eof()

    async def _program_to_client(self) -> None:
        with suppress(trio.BrokenResourceError):  # reset: it has ended with input unread
            while data := await self._program.receive_some(PORTION):
                self._somebody_speaks()
                await self._client.send_all(data)
        await self._client.send_eof()

    def _somebody_speaks(self) -> None:
        """Put the end off: it comes when nobody has said anything for a while."""
        self._patience.deadline = trio.current_time() + self._silence

    async def _log_errors(self) -> None:
        errors, rest = self._process.stderr, b""
        while errors is not None and (data := await errors.receive_some(PORTION)):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._log(line)
            while len(rest) > LONGEST_LINE:
                self._log(rest[:LONGEST_LINE])
                rest = rest[LONGEST_LINE:]
        if rest:
            self._log(rest)

    def _log(self, line: bytes) -> None:
        # As a literal: what a program says may hold what a client has sent.
        program_log.info("%s: %r", self._client.info, line.decode(errors="backslashreplace"))


async def end_group(process: trio.Process, patience: float) -> None:
    """End a program, and all that it has started in its group, each time within bounds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        is_there = _signal_group(process, number)
        with trio.move_on_after(patience, shield=True):
            while is_there:
                # Nothing tells when a group has ended.
                await trio.sleep(PAUSE)
                is_there = _signal_group(process, _JUST_LOOK)
            return


def _signal_group(process: trio.Process, number: int) -> bool:
    """Whether there is anything left of a program, which gets the signal then."""
    process.poll()  # who has ended, and was not asked for that, is in its group yet
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _about(request: trioserver.Connection, client_address: Any) -> Mapping[str, str]:
    """Who the client is, by the variables of tcp-environ(5) and of s6-ipcserver."""
    match client_address, request.info.server_address:
        case (str(host), port, *_), (str(own_host), own_port, *_):
            return {
                "PROTO": "TCP",
                "TCPREMOTEIP": host,
                "TCPREMOTEPORT": str(port),
                "TCPLOCALIP": own_host,
                "TCPLOCALPORT": str(own_port),
            }
    about = {"PROTO": "IPC", "IPCLOCALPATH": os.fsdecode(request.info.server_address)}
    if (peer := request.peer_credentials) is not None:
        about |= {"IPCREMOTEEUID": str(peer.uid), "IPCREMOTEEGID": str(peer.gid)}
    return about


def _in_words(status: int) -> str:
    return f"by signal {-status}" if status < 0 else f"with status {status}"


class SuperServerMixIn(trioserver.BaseServer):
    """Tells of a program that has failed in a line, since there is nothing of ours to trace."""

    async def handle_error(self, request: Any, client_address: Any) -> None:
        """Log it."""
        error = sys.exception()
        if isinstance(error, ProgramFailed):
            program_log.warning("%s: %s", request.info, error)
        else:
            await super().handle_error(request, client_address)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which program."""
    parser.add_argument(
        "command",
        metavar="PROGRAM",
        nargs=argparse.REMAINDER,
        help="the program, and its arguments, as in -- tr a-z A-Z",
    )


def _check_program(command: Sequence[str]) -> None:
    if not command:
        raise ValueError("a program was expected, as in: trioserver exec -- tr a-z A-Z")
    if shutil.which(command[0]) is None:
        what = "cannot be executed" if Path(command[0]).exists() else "was found nowhere"
        raise ValueError(f"the program {command[0]!r} {what}")


def main(typed: argparse.Namespace) -> int:
    """Serve it."""
    return run_program(partial(_servers, typed), typed)


def _servers(typed: argparse.Namespace) -> Sequence[trioserver.BaseServer]:
    times = options.timeouts(typed)
    command = typed.command[1:] if typed.command[:1] == ["--"] else typed.command
    _check_program(command)
    handler = RunsProgram(command, times.idle, times.cleanup)
    # Silence is that of both directions together: see RunsProgram.
    timeouts = attrs.evolve(times, idle=math.inf)
    return servers_for(handler, typed, mix_in=SuperServerMixIn, timeouts=timeouts)
