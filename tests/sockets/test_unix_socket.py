"""Unix sockets: whose file it is, who may reach it, and that it is gone at the end."""

import array
import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
from support import Upper, hold, plain_client, until
from support.listening import (
    Looks,
    asked,
    bound,
    fails_to_listen,
    is_there,
    names_in,
    on_linux,
    unix,
)
from support.scenes import table
from support.threads import ask_by_datagram

import trioserver
from trioserver import UnixDatagramServer, UnixStreamServer
from trioserver.testing import open_descriptors

LONGEST = 107 if sys.platform == "linux" else 103

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


class OopsError(Exception):
    """What these tests raise."""


@pytest.fixture
def umask():
    """A function that sets the umask, for this test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def look_at(path):
    """The facts of the file at ``path``, be it a link."""
    return Path(os.fsdecode(path)).lstat()


def rights_of(path):
    """The permission bits of the file at ``path``."""
    return stat.S_IMODE(look_at(path).st_mode)


def make_stale(path, kind=socket.SOCK_STREAM):
    """Leave a socket file whose server is dead."""
    bound(kind, str(path)).close()


async def check_refused(path, reason=""):
    """A server is refused ``path``, says so with its name, and leaves all as it was."""
    file = look_at(path)
    server = UnixStreamServer(path, Upper)
    await fails_to_listen(server, errno.EADDRINUSE, f"{reason}.*cannot listen on unix:")
    after = look_at(path)
    assert (after.st_ino, after.st_mode, after.st_size) == (file.st_ino, file.st_mode, file.st_size)


# Paths -----------------------------------------------------------------------


def of_length(length, folder=Path("/tmp")):  # noqa: S108
    """A path of that many bytes."""
    return f"{folder}/".ljust(length, "x")


@table(
    "make",
    {
        "UX-06: a path of as many bytes as an address holds": lambda it: of_length(LONGEST, it),
        "UX-06: a `pathlib` path": lambda it: it / "socket",
        "UX-06: bytes that are not UTF-8": lambda it: os.fsencode(it) + b"/\xff\xfe",
    },
)
async def test_path(make, folder):
    """It is the server's address, bound and unbound; it serves there, again and again."""
    path = make(folder)
    server = UnixStreamServer(path, Upper)
    for _ in range(3):
        async with server.serving():
            assert os.fsencode(server.server_address) == os.fsencode(path)
            await check_refused(os.fsencode(path))
            assert await asked(os.fsencode(path)) == b"ASKED\n"
        assert os.fsencode(server.server_address) == os.fsencode(path)
        assert names_in(folder) == []


TOO_LONG = f"at most {LONGEST} bytes"
NO_PATH = "must be a path"


@table(
    "address, kind, fault",
    {
        "UX-06: too long by a byte": (
            of_length(LONGEST + 1),
            ValueError,
            f"{TOO_LONG}.*{LONGEST + 1}",
        ),
        "UX-06: much too long": (of_length(200), ValueError, f"{TOO_LONG}.*200"),
        "UX-06: in bytes, which count": ("/" + "ä" * (LONGEST - 1), ValueError, TOO_LONG),
        "UX-06: a NUL byte inside": ("a\0b", ValueError, NO_PATH),
        "UX-06: a NUL byte at the end": (b"a\0", ValueError, NO_PATH),
        "UX-06: a NUL byte in a `pathlib` path": (Path("a\0b"), ValueError, NO_PATH),
        "UX-06: empty": ("", ValueError, NO_PATH),
        "a number": (3, TypeError, NO_PATH),
        "nothing": (None, TypeError, NO_PATH),
        "a host and a port": (("localhost", 80), TypeError, NO_PATH),
    },
)
def test_path_that_is_none(address, kind, fault):
    """What no socket can be bound to is refused when the server is built."""
    with pytest.raises(kind, match=rf"UnixStreamServer\.server_address .*{fault}"):
        UnixStreamServer(address, Upper)


async def test_folder_that_is_missing(folder):
    """A path in a folder that does not exist is an OSError that names it."""
    server = UnixStreamServer(folder / "missing" / "socket", Upper)
    await fails_to_listen(server, errno.ENOENT, "missing/socket", FileNotFoundError)


@table(
    "name",
    {
        "UX-07: the program has moved since": "here",
        "UX-06, UX-07: its absolute form does not fit": "x" * 150,
    },
)
@pytest.mark.parametrize("kind", [UnixStreamServer, UnixDatagramServer])
async def test_relative_path(kind, name, folder, monkeypatch):
    """Its file is removed, and none of that name in the new working directory."""
    here, elsewhere = folder / name, folder / "elsewhere"
    for place in (here, elsewhere):
        place.mkdir()
    (elsewhere / "socket").touch()
    monkeypatch.chdir(here)
    async with kind("socket", Looks(str)).serving() as server:
        assert server.server_address == "socket"
        ask = asked("socket") if kind is UnixStreamServer else ask_by_datagram(server, b"?")
        assert await ask == b"!"
        monkeypatch.chdir(elsewhere)
    assert names_in(folder) == sorted([name, "elsewhere", "socket"])
    assert is_there(elsewhere / "socket")


# Rights ----------------------------------------------------------------------


@pytest.fixture(params=[sys.platform, "another POSIX"])
def rights(request, monkeypatch):
    """The rights of a socket file right after its bind, and right before its listen."""
    seen = {}
    bind, listen = socket.socket.bind, socket.socket.listen

    def look_after_bind(sock, address):
        bind(sock, address)
        seen["bound"] = rights_of(address)

    def look_before_listen(sock, backlog):
        seen["listening"] = rights_of(sock.getsockname())
        listen(sock, backlog)

    monkeypatch.setattr(sys, "platform", request.param)
    monkeypatch.setattr(socket.socket, "bind", look_after_bind)
    monkeypatch.setattr(socket.socket, "listen", look_before_listen)
    return seen


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o000, 0o600, 0o660, 0o777])
async def test_mode_without_a_window(mode, mask, path, umask, rights):
    """The file never has a right beyond `mode`, and exactly those before anybody can connect.

    The umask belongs to the program: it is the same afterwards.
    """
    umask(mask)
    async with UnixStreamServer(path, Upper, mode=mode):
        assert rights["bound"] | mode == mode
        assert rights["listening"] == mode
        assert umask(mask) == mask


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o000, 0o777)])
async def test_mode_by_umask(mask, mode, path, umask):
    """Without `mode`, the umask decides; it is left alone, also when the bind fails."""
    umask(mask)
    async with UnixStreamServer(path, Upper):
        assert rights_of(path) == mode
        server = UnixStreamServer(path, Upper, mode=0o600)
        await fails_to_listen(server, errno.EADDRINUSE)
        assert umask(mask) == mask
    assert not is_there(path)


@pytest.mark.parametrize("mode", [0o600, 0o666, 0o777, None])
async def test_datagram_server(mode, path):
    """So is it with datagrams: a stale file is replaced, a live one is refused."""
    make_stale(Path(path), socket.SOCK_DGRAM)
    async with UnixDatagramServer(path, Looks(str), mode=mode).serving() as server:
        if mode is not None:
            assert rights_of(path) == mode
        await fails_to_listen(UnixDatagramServer(path, Upper), errno.EADDRINUSE)
        await check_refused(path)
        assert await ask_by_datagram(server, b"still there?") == b"!"
    assert not is_there(path)


# Somebody's file -------------------------------------------------------------


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_stale_file_is_replaced(kind, path):
    """UX-01: a socket file whose server is dead is replaced, whatever that server spoke."""
    make_stale(Path(path), kind)
    async with UnixStreamServer(path, Upper).serving():
        assert await asked(path) == b"ASKED\n"
    assert not is_there(path)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
async def test_live_file_is_left_alone(kind, path):
    """UX-01: a file with a living server is in use, whatever that server speaks."""
    with bound(kind, path) as living:
        if kind != socket.SOCK_DGRAM:
            living.listen()
        await check_refused(path)


@on_linux
async def test_live_file_with_a_full_queue_is_left_alone(folder, path):
    """UX-01: a server too busy to accept is no dead one."""
    with unix(folder) as living, socket.socket(socket.AF_UNIX) as second:
        living.listen(0)
        second.setblocking(False)
        with plain_client(path):
            with pytest.raises(BlockingIOError):
                second.connect(path)
            await check_refused(path)


def link(path):
    """Make a symbolic link to what may be beside it."""
    path.symlink_to("target")


OTHER_FILES = {
    "a file": (None, lambda path: path.write_text("precious")),
    "an empty file": (None, Path.touch),
    "a directory": (None, Path.mkdir),
    "a named pipe, which would block who opens it": (None, os.mkfifo),
    "a link to a file": (Path.touch, link),
    "a link to a directory": (Path.mkdir, link),
    "a link to the socket file of a dead server": (make_stale, link),
    "a link to nothing": (None, link),
}


@table("make_target, make", OTHER_FILES)
async def test_other_file_is_left_alone(make_target, make, path):
    """UX-02: what is not a socket is refused, and untouched, and so is what a link points to."""
    target = Path(path).parent / "target"
    if make_target is not None:
        make_target(target)
    make(Path(path))
    await check_refused(path, "is not a socket")
    assert is_there(target) == (make_target is not None)


async def test_folder_that_cannot_be_locked(path, monkeypatch):
    """Where the file system has no locks, a free path is bound, and nothing is removed for it."""

    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    async with UnixStreamServer(path, Upper).serving():
        assert await asked(path) == b"ASKED\n"
    make_stale(Path(path))
    await check_refused(path)


# Races for a path ------------------------------------------------------------


class Rival(threading.Thread):
    """A server for the same path, in a Trio run of its own; stays until released.

    Attributes:
      bound: set when it is known whether it could bind.
      error: why it could not.
    """

    def __init__(self, path):
        super().__init__(target=trio.run, args=(self._serve, path))
        self.bound, self._released = threading.Event(), threading.Event()
        self.error = None

    async def _serve(self, path):
        try:
            async with UnixStreamServer(path, Upper):
                self.bound.set()
                await trio.to_thread.run_sync(self._released.wait)
        except OSError as error:
            self.error = error
            self.bound.set()

    def release(self):
        """Have it close, if it was started, and wait until it has."""
        self._released.set()
        if self.is_alive():
            self.join(10)


@contextmanager
def rivals(path, number):
    """So many, who are released; one of them has got the path, and can be reached there."""
    all_of_them = [Rival(path) for _ in range(number)]
    try:
        yield all_of_them
        assert all(rival.bound.wait(10) for rival in all_of_them)
        plain_client(path).close()
    finally:
        for rival in all_of_them:
            rival.release()
    assert not is_there(path)


def test_two_servers_race_for_a_stale_file(path, monkeypatch):
    """UX-01: of two servers that find one stale file, one wins, and nobody removes its new file.

    At the worst moment: the second one starts when the first has found that
    nobody listens, and has not yet removed the file.
    """
    make_stale(Path(path))
    unlink, flock = os.unlink, fcntl.flock
    started, met_the_lock = threading.Event(), threading.Event()

    def unlink_late(victim):
        if not started.is_set():
            started.set()
            second.start()
            # Until it either waits for our lock, or is through with everything.
            while not (met_the_lock.wait(0.001) or second.bound.is_set()):
                pass
        unlink(victim)

    def notice(descriptor, operation):
        try:
            flock(descriptor, operation)
        except BlockingIOError:
            met_the_lock.set()
            raise

    monkeypatch.setattr(os, "unlink", unlink_late)
    monkeypatch.setattr(fcntl, "flock", notice)
    with rivals(path, 2) as (first, second):
        first.start()
    assert first.error is None
    assert second.error is not None
    assert second.error.errno == errno.EADDRINUSE


def test_many_servers_race_for_a_stale_file(path):
    """UX-01: of many servers that start at once, one gets the path."""
    for _ in range(5):
        make_stale(Path(path))
        with rivals(path, 5) as all_of_them:
            for rival in all_of_them:
                rival.start()
        assert [rival.error for rival in all_of_them].count(None) == 1


@pytest.fixture
def lock(folder):
    """Another program has locked the folder; the descriptor that holds the lock."""
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield lock
    with suppress(OSError):
        os.close(lock)


async def test_lock_of_the_folder_is_waited_for(lock, path, autojump_clock):
    """A start waits for another program that has locked the folder, and then goes on."""

    async def unlock_later():
        await trio.sleep(0.5)
        os.close(lock)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unlock_later)
        async with UnixStreamServer(path, Upper):
            assert 0.5 <= trio.current_time() < 0.6


async def test_lock_of_the_folder_that_is_never_free(lock, path, autojump_clock):
    """LC-13: cancelled in its wait, a start leaves nothing; it gives up after a second.

    Then the path is in the message.
    """
    server, before = UnixStreamServer(path, Upper), open_descriptors()
    with trio.move_on_after(0.3) as patience:
        await server.serve_forever()
    assert patience.cancelled_caught
    assert open_descriptors() == before
    fault = r"holds the lock of the directory.*unix:/"
    await fails_to_listen(server, errno.EAGAIN, fault)
    assert trio.current_time() == pytest.approx(1.3)
    assert not is_there(path)


# The end ---------------------------------------------------------------------


class FailsInBind(UnixStreamServer):
    async def server_bind(self):
        await super().server_bind()
        raise OopsError


class FailsInActivate(UnixStreamServer):
    async def server_activate(self):
        raise OopsError


async def leave(request, client_address, server):
    """Exits."""
    raise SystemExit


FAILING = {"fails in bind": FailsInBind, "fails in activate": FailsInActivate}


@pytest.mark.parametrize("end", ["drains", "is cancelled", "fails", "exits", *FAILING])
async def test_file_is_removed_at_the_end(end, path):
    """UX-08: however a server ends, its socket file is gone, and so are its descriptors."""
    server = FAILING.get(end, UnixStreamServer)(path, leave if end == "exits" else Upper)
    with trio.fail_after(10), trio.CancelScope() as scope, suppress(OopsError, SystemExit):
        async with server.serving():
            assert is_there(path)
            match end:
                case "drains":
                    assert await asked(path) == b"ASKED\n"
                case "is cancelled":
                    scope.cancel()
                case "fails":
                    raise OopsError
                case "exits":
                    with plain_client(path):
                        await trio.sleep_forever()
    assert not is_there(path)


async def test_file_is_removed_when_it_cannot_listen(path, monkeypatch):
    """UX-08: a start that fails between its bind and its listen removes the file it made."""
    errors = [OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))]
    listen = socket.socket.listen

    def fail_once(sock, backlog):
        if errors:
            raise errors.pop()
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", fail_once)
    await fails_to_listen(UnixStreamServer(path, Upper), match="cannot listen on unix:")
    assert not is_there(path)


async def test_path_is_free_during_the_drain(path):
    """UX-08: a drain frees the path at its begin; whoever takes it keeps it at the drain's end."""
    old, new = (UnixStreamServer(path, handler) for handler in (hold, Upper))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(old.serve_forever)
            with plain_client(path):
                await until(lambda: old.requests)
                old.shutdown()
                assert not is_there(path)
                await nursery.start(new.serve_forever)
                old.shutdown(grace=0)
                await old.wait_closed()
            assert await asked(path) == b"ASKED\n"
            new.shutdown()


@table(
    "change",
    {
        "nothing": lambda _path: None,
        "the socket file of another server, dead by now": make_stale,
        "a file": Path.touch,
        "a directory": Path.mkdir,
        "a link to nothing": link,
    },
)
async def test_file_that_was_replaced(change, path, caplog):
    """UX-04: what somebody has put in place of the socket file is not removed, and is no error."""

    def file():
        return look_at(path).st_ino if is_there(path) else None

    async with UnixStreamServer(path, Upper).serving():
        os.unlink(path)  # noqa: PTH108
        change(Path(path))
        before = file()
    assert file() == before
    assert caplog.text == ""


async def test_file_that_was_replaced_by_a_server(path):
    """UX-04: a server that took the path over meanwhile can still be reached there."""
    new = UnixStreamServer(path, Upper)
    async with trio.open_nursery() as nursery:
        async with UnixStreamServer(path, Upper).serving():
            os.unlink(path)  # noqa: PTH108
            await nursery.start(new.serve_forever)
        assert await asked(path) == b"ASKED\n"
        new.shutdown()
    assert not is_there(path)


async def test_file_of_an_adopted_socket_is_left(path):
    """UX-04: the file of an adopted socket was made by somebody else, and stays."""
    sock = bound(address=path)
    async with UnixStreamServer(sock, Upper).serving():
        assert await asked(path) == b"ASKED\n"
    assert sock.fileno() == -1
    assert is_there(path)


async def test_file_whose_folder_was_renamed(folder):
    """UX-04: a folder that was moved away, with a file in its place, is no error at the end."""
    place = folder / "place"
    place.mkdir()
    with trio.fail_after(10):
        async with UnixStreamServer(place / "socket", Upper).serving():
            place.rename(folder / "moved")
            place.touch()


async def test_file_that_cannot_be_removed(path, monkeypatch, caplog):
    """A socket file that may not be removed is told once in the log; all the rest is closed.

    So it is for a program that gave up its privileges after the bind.
    """

    def refuse(victim):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), victim)

    server = UnixStreamServer(path, Upper)
    with trio.fail_after(10), monkeypatch.context() as patch:
        async with server.serving():
            assert await asked(path) == b"ASKED\n"
            patch.setattr(os, "unlink", refuse)
        assert (await server.wait_closed()).clean
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert path in caplog.text


# The abstract namespace ------------------------------------------------------


@on_linux
@pytest.mark.parametrize("length", [30, LONGEST + 1])
@pytest.mark.parametrize("encode", [str, os.fsencode])
async def test_abstract_name(encode, length, folder, monkeypatch):
    """UX-10: a name in the abstract namespace is served, and is free again; it has no file.

    UX-06: it may have one byte more than a path, as it needs no NUL. In use,
    it is printed as other tools print it. A `mode` is nothing to it.
    """
    text = f"\0{folder.name}-".ljust(length, "x")
    name = encode(text)
    monkeypatch.chdir(folder)
    server = UnixStreamServer(name, Upper, mode=0o600)
    for _ in range(2):
        async with server.serving():
            assert server.server_address == os.fsencode(name)
            fault = f"cannot listen on unix:@{text[1:]}"
            await fails_to_listen(UnixStreamServer(name, Upper), errno.EADDRINUSE, fault)
            assert await asked(name) == b"ASKED\n"
            assert names_in(folder) == []
    assert names_in(folder) == []
    with pytest.raises(ValueError, match="at most 108 bytes"):
        UnixStreamServer(name + encode("x" * 79), Upper)


# Clients ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "client"])
async def test_unix_client_address(name, folder, path):
    """NW-06: a client's address is its path, `""` for the common one without."""
    handler = Looks(lambda request: [request.client_address, request.info.client_address])
    with trio.fail_after(10):
        async with UnixStreamServer(path, handler).serving():
            with trio.socket.socket(socket.AF_UNIX) as client:
                if name is not None:
                    await client.bind(str(folder / name))
                await client.connect(path)
                assert await client.recv(1) == b"!"
    assert handler.seen == [[str(folder / name) if name else ""] * 2]


@on_linux
async def test_peer_credentials(path):
    """UX-09: the server knows its client's process, user and group, as the kernel does."""
    handler = Looks(lambda request: request.peer_credentials)
    client = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); s.recv(1)"
    with trio.fail_after(10):
        async with UnixStreamServer(path, handler).serving():
            process = await trio.lowlevel.open_process([sys.executable, "-Sc", client])
            await process.wait()
    me = trioserver.PeerCredentials(pid=process.pid, uid=os.getuid(), gid=os.getgid())
    assert handler.seen == [me]


async def test_client_passes_descriptors(path):
    """UX-14: descriptors that a client sends along unasked do not stay in the server."""
    during = []

    async def look(request, client_address, server):
        before = open_descriptors()
        assert await request.receive_some() == b"take these"
        during.append(open_descriptors() - before)
        await request.send_all(b"!")

    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 10))]
    with trio.fail_after(10):
        async with UnixStreamServer(path, look).serving():
            with plain_client(path) as client:
                client.sendmsg([b"take these"], passed)
                assert await trio.to_thread.run_sync(client.recv, 1) == b"!"
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
def test_killed_program(number, path):
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
