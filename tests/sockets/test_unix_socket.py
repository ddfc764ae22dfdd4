"""Unix sockets: whose file it is, who may reach it, and that it is gone at the end."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from support import Upper, hold, plain_client
from trio.testing import MockClock

import trioserver
from trioserver.testing import open_descriptors

LONGEST = 107 if sys.platform == "linux" else 103

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")


class OopsError(Exception):
    """What these tests raise."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, as socket addresses are short."""
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        yield Path(name)


@pytest.fixture
def path(folder: Path) -> str:
    """Where a socket may be made."""
    return str(folder / "socket")


@pytest.fixture
def umask() -> Iterator[Any]:
    """A function that sets the umask, for this test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


async def try_to_serve(server: trioserver.TCPServer) -> None:
    """Serve; when nothing keeps it from that, not for long."""
    with trio.fail_after(10):
        await server.serve_forever()


async def asked(address: str | bytes) -> bytes:
    """What a server at ``address`` answers."""
    with trio.fail_after(10), trio.socket.socket(socket.AF_UNIX) as client:
        await client.connect(address)
        await client.send(b"asked\n")
        return await client.recv(100)


def look_at(path: str | bytes) -> os.stat_result:
    """The facts of the file at ``path``, be it a link."""
    return Path(os.fsdecode(path)).lstat()


def rights_of(path: str | bytes) -> int:
    """The permission bits of the file at ``path``."""
    return stat.S_IMODE(look_at(path).st_mode)


def is_there(path: str | bytes) -> bool:
    """Whether anything is at ``path``."""
    return os.path.lexists(path)


def make_stale(path: str | bytes, kind: int = socket.SOCK_STREAM) -> None:
    """Leave a socket file whose server is dead."""
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(path)


async def check_refused(path: str | bytes, reason: str = "") -> None:
    """A server is refused ``path``, says so with its name, and leaves all as it was."""
    before, file = open_descriptors(), look_at(path)
    with pytest.raises(OSError, match=f"{reason}.*cannot listen on unix:") as caught:
        await try_to_serve(trioserver.UnixStreamServer(path, Upper))
    assert caught.value.errno == errno.EADDRINUSE
    assert open_descriptors() == before
    after = look_at(path)
    assert (after.st_ino, after.st_mode, after.st_size) == (file.st_ino, file.st_mode, file.st_size)


# Serving ---------------------------------------------------------------------


async def test_unix_server_serves(path: str) -> None:
    """A Unix server serves at its path, which is its address, bound and unbound."""
    server = trioserver.UnixStreamServer(path, Upper)
    async with server.serving():
        assert server.server_address == path
        assert await asked(path) == b"ASKED\n"
    assert server.server_address == path


async def test_unix_server_serves_again(path: str) -> None:
    """The same server serves at the same path again, and leaves nothing."""
    server = trioserver.UnixStreamServer(path, Upper)
    before = open_descriptors()
    for _ in range(3):
        async with server.serving():
            assert await asked(path) == b"ASKED\n"
    assert open_descriptors() == before


@pytest.mark.parametrize("name", [None, "client"])
async def test_unix_client_address(name: str | None, folder: Path) -> None:
    """NW-06: a client's address is its path, `""` for the common one without."""
    seen = []

    async def look(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        seen.extend([client_address, request.client_address])
        await request.send_all(b"!")

    server = trioserver.UnixStreamServer(folder / "socket", look)
    with trio.fail_after(10):
        async with server.serving():
            with trio.socket.socket(socket.AF_UNIX) as client:
                if name is not None:
                    await client.bind(str(folder / name))
                await client.connect(server.server_address)
                assert await client.recv(1) == b"!"
    assert seen == [str(folder / name) if name else ""] * 2


# Paths -----------------------------------------------------------------------


def of_length(folder: Path, length: int) -> str:
    """A path of that many bytes."""
    start = f"{folder}/"
    return start + "x" * (length - len(start))


async def test_longest_path(folder: Path) -> None:
    """UX-06: a path of as many bytes as an address holds works."""
    longest = of_length(folder, LONGEST)
    async with trioserver.UnixStreamServer(longest, Upper).serving():
        assert await asked(longest) == b"ASKED\n"


@pytest.mark.parametrize("length", [LONGEST + 1, 200])
def test_path_too_long(length: int, folder: Path) -> None:
    """UX-06: a longer path is refused when the server is built, with both lengths."""
    with pytest.raises(ValueError, match=rf"server_address .*at most {LONGEST} bytes.*{length}"):
        trioserver.UnixStreamServer(of_length(folder, length), Upper)


def test_path_too_long_in_bytes(folder: Path) -> None:
    """UX-06: it is bytes that count, not characters."""
    start = f"{folder}/"
    with pytest.raises(ValueError, match=f"at most {LONGEST} bytes"):
        trioserver.UnixStreamServer(start + "ä" * (LONGEST - len(start)), Upper)


async def test_path_object(folder: Path) -> None:
    """UX-06: a `pathlib` path works."""
    async with trioserver.UnixStreamServer(folder / "socket", Upper).serving():
        assert await asked(str(folder / "socket")) == b"ASKED\n"


async def test_path_of_bytes(folder: Path) -> None:
    """UX-06: bytes work that are not UTF-8, and their file is removed."""
    name = os.fsencode(folder) + b"/\xff\xfe"
    server = trioserver.UnixStreamServer(name, Upper)
    async with server.serving():
        assert os.fsencode(server.server_address) == name
        assert await asked(name) == b"ASKED\n"
        await check_refused(name)
    assert not is_there(name)


@pytest.mark.parametrize("address", ["a\0b", b"a\0", "", Path("a\0b")], ids=repr)
def test_path_that_is_none(address: Any) -> None:
    """UX-06: a NUL byte inside and an empty path are refused when the server is built."""
    with pytest.raises(ValueError, match=r"UnixStreamServer\.server_address must be a path"):
        trioserver.UnixStreamServer(address, Upper)


@pytest.mark.parametrize("address", [3, None, ("localhost", 80)])
def test_address_of_the_wrong_type(address: Any) -> None:
    """What is no path at all is a TypeError when the server is built."""
    with pytest.raises(TypeError, match=r"UnixStreamServer\.server_address must be a path"):
        trioserver.UnixStreamServer(address, Upper)


async def test_folder_that_is_missing(folder: Path) -> None:
    """A path in a folder that does not exist is an OSError that names it."""
    server = trioserver.UnixStreamServer(folder / "missing" / "socket", Upper)
    before = open_descriptors()
    with pytest.raises(FileNotFoundError, match="missing/socket"):
        await try_to_serve(server)
    assert open_descriptors() == before


async def test_relative_path_and_chdir(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UX-07: the file of a relative path is removed although the program has moved since.

    A file of that name in the new working directory is not touched.
    """
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "socket").touch()
    monkeypatch.chdir(folder)
    async with trioserver.UnixStreamServer("socket", Upper).serving():
        assert await asked("socket") == b"ASKED\n"
        monkeypatch.chdir(elsewhere)
    assert not (folder / "socket").exists()
    assert (elsewhere / "socket").exists()


async def test_relative_path_in_a_deep_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UX-06, UX-07: a relative path fits although its absolute form does not; it is removed."""
    deep = folder / ("x" * 150)
    deep.mkdir()
    monkeypatch.chdir(deep)
    async with trioserver.UnixStreamServer("socket", Upper).serving():
        assert await asked("socket") == b"ASKED\n"
        monkeypatch.chdir(folder)
    assert not is_there(str(deep / "socket"))


# Rights ----------------------------------------------------------------------


@pytest.fixture
def rights(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The rights of a socket file right after its bind, and right before its listen."""
    seen: dict[str, int] = {}
    bind, listen = socket.socket.bind, socket.socket.listen

    def look_after_bind(sock: socket.socket, address: str) -> None:
        bind(sock, address)
        seen["bound"] = rights_of(address)

    def look_before_listen(sock: socket.socket, backlog: int) -> None:
        seen["listening"] = rights_of(sock.getsockname())
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "bind", look_after_bind)
    monkeypatch.setattr(socket.socket, "listen", look_before_listen)
    return seen


@pytest.mark.parametrize("system", [sys.platform, "another POSIX"])
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o000, 0o600, 0o660, 0o777])
async def test_mode_without_a_window(
    mode: int,
    mask: int,
    system: str,
    path: str,
    umask: Any,
    rights: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file never has a right beyond `mode`, and exactly those before anybody can connect."""
    umask(mask)
    monkeypatch.setattr(sys, "platform", system)
    async with trioserver.UnixStreamServer(path, Upper, mode=mode):
        assert rights["bound"] | mode == mode
        assert rights["listening"] == mode
        assert umask(mask) == mask


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o000, 0o777)])
async def test_mode_by_umask(mask: int, mode: int, path: str, umask: Any) -> None:
    """Without `mode`, the umask decides."""
    umask(mask)
    async with trioserver.UnixStreamServer(path, Upper):
        assert rights_of(path) == mode


async def test_mode_leaves_the_umask_alone(path: str, umask: Any) -> None:
    """The umask belongs to the program: it is the same afterwards, also when the bind fails."""
    umask(0o027)
    async with trioserver.UnixStreamServer(path, Upper, mode=0o600):
        await check_refused(path)
    assert umask(0o022) == 0o027


# Somebody's file -------------------------------------------------------------


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_stale_file_is_replaced(kind: int, path: str) -> None:
    """UX-01: a socket file whose server is dead is replaced, whatever that server spoke."""
    make_stale(path, kind)
    async with trioserver.UnixStreamServer(path, Upper).serving():
        assert await asked(path) == b"ASKED\n"
    assert not is_there(path)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
async def test_live_file_is_left_alone(kind: int, path: str) -> None:
    """UX-01: a file with a living server is in use, whatever that server speaks."""
    with socket.socket(socket.AF_UNIX, kind) as living:
        living.bind(path)
        if kind != socket.SOCK_DGRAM:
            living.listen()
        await check_refused(path)


@on_linux
async def test_live_file_with_a_full_queue_is_left_alone(path: str) -> None:
    """UX-01: a server too busy to accept is no dead one."""
    with (
        socket.socket(socket.AF_UNIX) as living,
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as second,
    ):
        living.bind(path)
        living.listen(0)
        first.connect(path)
        second.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.connect(path)
        await check_refused(path)


async def test_our_own_live_server_is_left_alone(path: str) -> None:
    """UX-01: of two servers of ours, the second is refused, and the first goes on."""
    async with trioserver.UnixStreamServer(path, Upper).serving():
        await check_refused(path)
        assert await asked(path) == b"ASKED\n"


def regular_file(path: Path) -> None:
    """What somebody may not want to lose."""
    path.write_text("precious", encoding="utf-8")


def empty_file(path: Path) -> None:
    """A file with nothing in it."""
    path.touch()


def folder_there(path: Path) -> None:
    """A directory."""
    path.mkdir()


def pipe(path: Path) -> None:
    """A named pipe, which would block who opens it."""
    os.mkfifo(path)


def link_to_file(path: Path) -> None:
    """A symbolic link to a file."""
    regular_file(path.parent / "target")
    path.symlink_to("target")


def link_to_folder(path: Path) -> None:
    """A symbolic link to a directory."""
    (path.parent / "target").mkdir()
    path.symlink_to("target")


def link_to_stale_socket(path: Path) -> None:
    """A symbolic link to the socket file of a dead server."""
    make_stale(str(path.parent / "target"))
    path.symlink_to("target")


def link_to_nothing(path: Path) -> None:
    """A symbolic link whose target is missing."""
    path.symlink_to("target")


OTHER_FILES = [
    regular_file,
    empty_file,
    folder_there,
    pipe,
    link_to_file,
    link_to_folder,
    link_to_stale_socket,
    link_to_nothing,
]


@pytest.mark.parametrize("make", OTHER_FILES)
async def test_other_file_is_left_alone(make: Callable[[Path], None], path: str) -> None:
    """UX-02: what is not a socket is refused, and untouched, and so is what a link points to."""
    place = Path(path)
    target = str(place.parent / "target")
    make(place)
    there = is_there(target)
    await check_refused(path, "is not a socket")
    assert is_there(target) == there


async def test_folder_that_cannot_be_locked(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks, a free path is bound, and nothing is removed for it."""

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    async with trioserver.UnixStreamServer(path, Upper).serving():
        assert await asked(path) == b"ASKED\n"
    make_stale(path)
    await check_refused(path)


# Races for a path ------------------------------------------------------------


@attrs.define
class Rival:
    """A server for the same path in a thread, and a Trio run, of its own; stays until released.

    Attributes:
      bound: set when it is known whether it could bind.
      error: why it could not.
    """

    path: str
    bound: threading.Event = attrs.field(factory=threading.Event)
    error: OSError | None = None
    _release: threading.Event = attrs.field(factory=threading.Event)
    _thread: threading.Thread = attrs.field(
        default=attrs.Factory(
            lambda self: threading.Thread(target=trio.run, args=(self._serve,)), takes_self=True
        )
    )

    def start(self) -> None:
        """Have it try."""
        self._thread.start()

    async def _serve(self) -> None:
        try:
            async with trioserver.UnixStreamServer(self.path, Upper):
                self.bound.set()
                await trio.to_thread.run_sync(self._release.wait)
        except OSError as error:
            self.error = error
            self.bound.set()

    def release(self) -> None:
        """Have it close, if it was started, and wait until it has."""
        self._release.set()
        if self._thread.is_alive():
            self._thread.join(10)


@pytest.fixture
def rivals() -> Iterator[list[Rival]]:
    """Where to put rivals, so that they are released."""
    all_of_them: list[Rival] = []
    yield all_of_them
    for rival in all_of_them:
        rival.release()


def test_two_servers_race_for_a_stale_file(
    path: str, rivals: list[Rival], monkeypatch: pytest.MonkeyPatch
) -> None:
    """UX-01: of two servers that find one stale file, one wins, and nobody removes its new file.

    At the worst moment: the second one starts when the first has found that
    nobody listens, and has not yet removed the file.
    """
    make_stale(path)
    unlink, flock = os.unlink, fcntl.flock
    started, met_the_lock = threading.Event(), threading.Event()

    def unlink_late(victim: Any) -> None:
        if not started.is_set():
            started.set()
            rivals[1].start()
            # Until it either waits for our lock, or is through with everything.
            while not (met_the_lock.wait(0.001) or rivals[1].bound.is_set()):
                pass
        unlink(victim)

    def notice(descriptor: int, operation: int) -> None:
        try:
            flock(descriptor, operation)
        except BlockingIOError:
            met_the_lock.set()
            raise

    monkeypatch.setattr(os, "unlink", unlink_late)
    monkeypatch.setattr(fcntl, "flock", notice)
    rivals[:] = [Rival(path), Rival(path)]
    rivals[0].start()
    assert all(rival.bound.wait(10) for rival in rivals)
    first, second = (rival.error for rival in rivals)
    assert first is None
    assert second is not None
    assert second.errno == errno.EADDRINUSE
    plain_client(path).close()


def test_many_servers_race_for_a_stale_file(path: str, rivals: list[Rival]) -> None:
    """UX-01: of many servers that start at once, one gets the path, and can be reached there."""
    for _ in range(5):
        make_stale(path)
        rivals[:] = [Rival(path) for _ in range(5)]
        for rival in rivals:
            rival.start()
        assert all(rival.bound.wait(10) for rival in rivals)
        plain_client(path).close()
        for rival in rivals:
            rival.release()
        assert [rival.error for rival in rivals].count(None) == 1
        assert not is_there(path)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """A folder that another program has locked; gives the descriptor that holds the lock."""
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield lock
    with suppress(OSError):
        os.close(lock)


async def test_lock_of_the_folder_is_waited_for(
    folder: Path, path: str, autojump_clock: MockClock
) -> None:
    """A start waits for another program that has locked the folder, and then goes on."""

    async def unlock_later(lock: int) -> None:
        await trio.sleep(0.5)
        os.close(lock)

    with locked(folder) as lock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unlock_later, lock)
            async with trioserver.UnixStreamServer(path, Upper):
                assert 0.5 <= trio.current_time() < 0.6


async def test_lock_of_the_folder_that_is_never_free(
    folder: Path, path: str, autojump_clock: MockClock
) -> None:
    """A folder that stays locked is given up after a second, and the path is in the message."""
    with locked(folder):
        before = open_descriptors()
        with pytest.raises(OSError, match=r"holds the lock of the directory.*unix:/") as caught:
            await try_to_serve(trioserver.UnixStreamServer(path, Upper))
        assert caught.value.errno == errno.EAGAIN
        assert trio.current_time() == pytest.approx(1)
        assert open_descriptors() == before


async def test_start_cancelled_while_it_waits_for_the_lock(
    folder: Path, path: str, autojump_clock: MockClock
) -> None:
    """LC-13: cancelled while it waits for the folder, a start leaves nothing."""
    with locked(folder):
        before = open_descriptors()
        with trio.move_on_after(0.3) as patience:
            await try_to_serve(trioserver.UnixStreamServer(path, Upper))
        assert patience.cancelled_caught
        assert open_descriptors() == before
        assert not is_there(path)


# The end ---------------------------------------------------------------------


async def end_in_order(server: trioserver.UnixStreamServer) -> None:
    """Drain."""
    async with server.serving():
        assert await asked(server.server_address) == b"ASKED\n"


async def end_by_cancelling(server: trioserver.UnixStreamServer) -> None:
    """Cancel."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_forever)
        nursery.cancel_scope.cancel()


async def end_by_an_error(server: trioserver.UnixStreamServer) -> None:
    """Fail."""
    with suppress(OopsError):
        async with server.serving():
            raise OopsError


async def end_by_an_exit(server: trioserver.UnixStreamServer) -> None:
    """Exit from a handler."""

    async def leave(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        raise SystemExit

    server.RequestHandlerClass = leave
    with suppress(SystemExit):
        async with server.serving():
            with plain_client(server.server_address):
                await trio.sleep_forever()


async def end_without_serving(server: trioserver.UnixStreamServer) -> None:
    """Bind, and close."""
    async with server:
        pass


async def end_in_activate(server: trioserver.UnixStreamServer) -> None:
    """Fail after the bind, before anything is served."""

    class Fails(trioserver.UnixStreamServer):
        async def server_activate(self) -> None:
            raise OopsError

    with suppress(OopsError):
        await try_to_serve(Fails(server.server_address, Upper))


async def end_in_bind(server: trioserver.UnixStreamServer) -> None:
    """Fail in an override, when the inherited part has bound."""

    class Fails(trioserver.UnixStreamServer):
        async def server_bind(self) -> Any:
            await super().server_bind()
            raise OopsError

    with suppress(OopsError):
        await try_to_serve(Fails(server.server_address, Upper))


ENDS = [
    end_in_order,
    end_by_cancelling,
    end_by_an_error,
    end_by_an_exit,
    end_without_serving,
    end_in_activate,
    end_in_bind,
]


@pytest.mark.parametrize("end", ENDS)
async def test_file_is_removed_at_the_end(end: Any, path: str) -> None:
    """UX-08: however a server ends, its socket file is gone, and so are its descriptors."""
    before = open_descriptors()
    with trio.fail_after(10):
        await end(trioserver.UnixStreamServer(path, Upper))
    assert not is_there(path)
    assert open_descriptors() == before


async def test_file_is_removed_when_it_cannot_listen(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UX-08: a start that fails between its bind and its listen removes the file it made."""

    def fail(sock: socket.socket, backlog: int) -> None:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(socket.socket, "listen", fail)
    before = open_descriptors()
    with pytest.raises(OSError, match="cannot listen on unix:"):
        await try_to_serve(trioserver.UnixStreamServer(path, Upper))
    assert not is_there(path)
    assert open_descriptors() == before


async def test_path_is_free_during_the_drain(path: str) -> None:
    """UX-08: a drain frees the path at its begin; whoever takes it keeps it at the drain's end."""
    old, new = (trioserver.UnixStreamServer(path, handler) for handler in (hold, Upper))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(old.serve_forever)
            with plain_client(path):
                while not old.requests:
                    await trio.lowlevel.checkpoint()
                old.shutdown()
                assert not is_there(path)
                await nursery.start(new.serve_forever)
                old.shutdown(grace=0)
                await old.wait_closed()
            assert await asked(path) == b"ASKED\n"
            new.shutdown()


async def test_file_that_is_gone_at_the_end(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """UX-04: a socket file that somebody has removed is no error at the end."""
    async with trioserver.UnixStreamServer(path, Upper).serving():
        os.unlink(path)  # noqa: PTH108
    assert caplog.text == ""


@pytest.mark.parametrize("make", [make_stale, *(regular_file, folder_there, link_to_nothing)])
async def test_file_that_was_replaced(make: Any, path: str) -> None:
    """UX-04: what somebody has put in place of the socket file is not removed at the end."""
    async with trioserver.UnixStreamServer(path, Upper).serving():
        os.unlink(path)  # noqa: PTH108
        make(path if make is make_stale else Path(path))
        file = look_at(path)
    assert look_at(path).st_ino == file.st_ino


async def test_file_that_was_replaced_by_a_server(path: str) -> None:
    """UX-04: a server that took the path over meanwhile can still be reached there."""
    new = trioserver.UnixStreamServer(path, Upper)
    async with trio.open_nursery() as nursery:
        async with trioserver.UnixStreamServer(path, Upper).serving():
            os.unlink(path)  # noqa: PTH108
            await nursery.start(new.serve_forever)
        assert await asked(path) == b"ASKED\n"
        new.shutdown()
    assert not is_there(path)


async def test_file_of_an_adopted_socket_is_left(path: str) -> None:
    """UX-04: the file of an adopted socket was made by somebody else, and stays."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    async with trioserver.UnixStreamServer(sock, Upper).serving():
        assert await asked(path) == b"ASKED\n"
    assert sock.fileno() == -1
    assert is_there(path)


async def test_file_whose_folder_was_renamed(folder: Path) -> None:
    """UX-04: a folder that was moved away, with a file in its place, is no error at the end."""
    place = folder / "place"
    place.mkdir()
    before = open_descriptors()
    with trio.fail_after(10):
        async with trioserver.UnixStreamServer(place / "socket", Upper).serving():
            place.rename(folder / "moved")
            place.touch()
    assert open_descriptors() == before


async def test_file_that_cannot_be_removed(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket file that may not be removed is told once in the log; all the rest is closed.

    So it is for a program that gave up its privileges after the bind.
    """

    def refuse(victim: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), victim)

    server = trioserver.UnixStreamServer(path, Upper)
    before = open_descriptors()
    with trio.fail_after(10), monkeypatch.context() as patch:
        async with server.serving():
            assert await asked(path) == b"ASKED\n"
            patch.setattr(os, "unlink", refuse)
        assert (await server.wait_closed()).clean
    assert open_descriptors() == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert path in caplog.text


# The abstract namespace ------------------------------------------------------


def abstract_name() -> str:
    """A name that nobody else has."""
    return "\0trioserver-tests-" + os.urandom(8).hex()


@on_linux
@pytest.mark.parametrize("encode", [str, os.fsencode])
async def test_abstract_name(encode: Any) -> None:
    """UX-10: a name in the abstract namespace is served; it has no file, and is free again."""
    name = encode(abstract_name())
    server = trioserver.UnixStreamServer(name, Upper)
    for _ in range(2):
        async with server.serving():
            assert server.server_address == os.fsencode(name)
            assert await asked(name) == b"ASKED\n"


@on_linux
async def test_abstract_name_in_use() -> None:
    """UX-10: a name with a living server is in use, and printed as other tools print it."""
    name = abstract_name()
    async with trioserver.UnixStreamServer(name, Upper):
        with pytest.raises(OSError, match=f"cannot listen on unix:@{name[1:]}") as caught:
            await try_to_serve(trioserver.UnixStreamServer(name, Upper))
        assert caught.value.errno == errno.EADDRINUSE


@on_linux
async def test_abstract_name_as_long_as_it_gets() -> None:
    """UX-06, UX-10: an abstract name may have one byte more than a path, as it needs no NUL."""
    name = abstract_name().ljust(LONGEST + 1, "x")
    async with trioserver.UnixStreamServer(name, Upper).serving():
        assert await asked(name) == b"ASKED\n"
    with pytest.raises(ValueError, match="at most 108 bytes"):
        trioserver.UnixStreamServer(name + "x", Upper)


@on_linux
async def test_abstract_name_has_no_rights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UX-10: a name makes no file anywhere, be a `mode` given or not."""
    monkeypatch.chdir(folder)
    async with trioserver.UnixStreamServer(abstract_name(), Upper, mode=0o600).serving():
        assert os.listdir() == []  # noqa: PTH208
    assert os.listdir() == []  # noqa: PTH208


# Clients ---------------------------------------------------------------------


@on_linux
async def test_peer_credentials(path: str) -> None:
    """UX-09: the server knows its client's process, user and group, as the kernel does."""
    seen = []

    async def look(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        seen.append(request.peer_credentials)

    client = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); s.recv(1)"
    with trio.fail_after(10):
        async with trioserver.UnixStreamServer(path, look).serving():
            process = await trio.lowlevel.open_process([sys.executable, "-Sc", client])
            await process.wait()
    assert seen == [trioserver.PeerCredentials(pid=process.pid, uid=os.getuid(), gid=os.getgid())]


async def test_peer_credentials_over_tcp() -> None:
    """UX-09: over TCP there are none to be had."""
    seen = []

    async def look(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        seen.append(request.peer_credentials)

    server = trioserver.TCPServer(("127.0.0.1", 0), look)
    with trio.fail_after(10):
        async with server.serving():
            with plain_client(server.server_address) as client:
                assert await trio.to_thread.run_sync(client.recv, 1) == b""
    assert seen == [None]


async def test_client_passes_descriptors(path: str) -> None:
    """UX-14: descriptors that a client sends along unasked do not stay in the server."""
    during = []

    async def look(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        before = open_descriptors()
        assert await request.receive_some() == b"take these"
        during.append(open_descriptors() - before)
        await request.send_all(b"!")

    passed = array.array("i", [0] * 10)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)]
    with trio.fail_after(10):
        async with trioserver.UnixStreamServer(path, look).serving():
            with trio.socket.socket(socket.AF_UNIX) as client:
                await client.connect(path)
                await client.sendmsg([b"take these"], ancillary)
                assert await client.recv(1) == b"!"
    assert during == [set()]


# Killed ----------------------------------------------------------------------

PROGRAM = """
import sys, trioserver

class Tells(trioserver.Observer):
    def server_listening(self, addresses):
        print(addresses[0], flush=True)

async def hold(request, client_address, server):
    await request.receive_some()

trioserver.run(trioserver.UnixStreamServer(sys.argv[1], hold, observers=[Tells()]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_program(number: int, path: str) -> None:
    """UX-08: SIGTERM removes the file; SIGKILL cannot, and the next start recovers."""
    for _ in range(2):
        command = [sys.executable, "-c", PROGRAM, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            assert program.stdout.readline().strip() == path
            program.send_signal(number)
            status = program.wait(10)
        assert status == (0 if number == signal.SIGTERM else -number)
        assert is_there(path) == (number == signal.SIGKILL)
