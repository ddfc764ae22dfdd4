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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
import trio
from support import Upper, descriptors, hold, plain_client, until
from support.listening import Looks, answered, asked, bound, fails_to_listen, is_there, on_linux
from support.memory import raising
from support.scenes import table

import trioserver
from trioserver import UnixDatagramServer, UnixStreamServer
from trioserver.testing import open_descriptors

LONGEST = 107 if sys.platform == "linux" else 103

pytestmark = pytest.mark.usefixtures("nothing_stays_open")

both = pytest.mark.parametrize("kind", [UnixStreamServer, UnixDatagramServer])


def rights_of(path):
    """The permission bits of the file at ``path``."""
    return stat.S_IMODE(os.lstat(path).st_mode)


def make_stale(path, kind=socket.SOCK_STREAM):
    """Leave a socket file whose server is dead."""
    bound(kind, str(path)).close()


def link(path):
    """Make a symbolic link to what may be beside it."""
    path.symlink_to("target")


async def check_refused(path, reason=""):
    """A server is refused ``path``, says so with its name, and leaves all as it was."""
    file = os.lstat(path)
    server = UnixStreamServer(path, Upper)
    await fails_to_listen(server, errno.EADDRINUSE, f"{reason}.*cannot listen on unix:")
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode, after.st_size) == (file.st_ino, file.st_mode, file.st_size)


async def test_path(folder):
    """UX-06: one of as many bytes as an address holds, a `pathlib` one, bytes that are not UTF-8.

    It is the server's address, bound and unbound; it serves there, again and again.
    """
    longest, odd = f"{folder}/".ljust(LONGEST, "x"), os.fsencode(folder) + b"/\xff\xfe"
    for path in (longest, folder / "socket", odd):
        server = UnixStreamServer(path, Upper)
        for _ in range(2):
            async with server.serving():
                assert os.fsencode(server.server_address) == os.fsencode(path)
                await check_refused(os.fsencode(path))
                assert await asked(os.fsencode(path)) == b"ASKED\n"
            assert os.fsencode(server.server_address) == os.fsencode(path)
            assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["here", "x" * 150])
@both
async def test_relative_path(kind, name, folder, monkeypatch):
    """UX-06, UX-07: its file is removed, though the program has moved, and none of that name there.

    So it is where its absolute form would not fit.
    """
    here, elsewhere = folder / name, folder / "elsewhere"
    for place in (here, elsewhere):
        place.mkdir()
    (elsewhere / "socket").touch()
    monkeypatch.chdir(here)
    async with kind("socket", Looks(str)).serving() as server:
        assert server.server_address == "socket"
        assert await answered(server) == b"!"
        monkeypatch.chdir(elsewhere)
    assert sorted(folder.rglob("*")) == sorted([here, elsewhere, elsewhere / "socket"])


@pytest.mark.parametrize("platform", [sys.platform, "another POSIX"])
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
async def test_mode_without_a_window(mask, platform, path, monkeypatch):
    """The file never has a right beyond `mode`, and exactly those before anybody can connect.

    The umask belongs to the program: it is the same afterwards, and decides without `mode`.
    """
    seen = []
    bind, listen = socket.socket.bind, socket.socket.listen

    def look_after_bind(sock, address):
        bind(sock, address)
        seen.append(rights_of(address))

    def look_before_listen(sock, backlog):
        seen.append(rights_of(sock.getsockname()))
        listen(sock, backlog)

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(socket.socket, "bind", look_after_bind)
    monkeypatch.setattr(socket.socket, "listen", look_before_listen)
    usual = os.umask(mask)
    try:
        for mode in (0o000, 0o600, 0o660, 0o777):
            async with UnixStreamServer(path, Upper, mode=mode):
                assert seen.pop() == mode
                assert seen.pop() | mode == mode
        async with UnixStreamServer(path, Upper):
            assert rights_of(path) == 0o777 & ~mask
            await fails_to_listen(UnixStreamServer(path, Upper, mode=0o600), errno.EADDRINUSE)
    finally:
        assert os.umask(usual) == mask


@pytest.mark.parametrize("stale", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@both
async def test_stale_file_is_replaced(kind, stale, path):
    """UX-01: a socket file whose server is dead is replaced, whatever that server spoke."""
    make_stale(Path(path), stale)
    async with kind(path, Looks(str), mode=0o600).serving() as server:
        assert rights_of(path) == 0o600
        await fails_to_listen(UnixDatagramServer(path, Upper), errno.EADDRINUSE)
        await check_refused(path)
        assert await answered(server) == b"!"
    assert not is_there(path)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@on_linux
async def test_live_file_is_left_alone(kind, path):
    """UX-01: one with a living server is in use, whatever it speaks, be it too busy to accept."""
    with bound(kind, path) as living, socket.socket(socket.AF_UNIX, kind) as second:
        living.listen(0)
        second.setblocking(False)
        with plain_client(path, kind):
            with pytest.raises(BlockingIOError):
                second.connect(path)
            await check_refused(path)


@table(
    "make_target, make",
    {
        "a file": (None, lambda path: path.write_text("precious")),
        "a directory": (None, Path.mkdir),
        "a named pipe, which would block who opens it": (None, os.mkfifo),
        "a link to a file": (Path.touch, link),
        "a link to the socket file of a dead server": (make_stale, link),
        "a link to nothing": (None, link),
    },
)
async def test_other_file_is_left_alone(make_target, make, path):
    """UX-02: what is not a socket is refused, and untouched, and so is what a link points to."""
    target = Path(path).parent / "target"
    if make_target is not None:
        make_target(target)
    make(Path(path))
    await check_refused(path, "is not a socket")
    assert is_there(target) == (make_target is not None)


async def test_folder_that_cannot_be_locked(path, monkeypatch):
    """Where the file system has no locks, a free path is bound, and nothing is removed for it.

    A path in a folder that does not exist is an OSError that names it.
    """

    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    async with UnixStreamServer(path, Upper).serving():
        assert await asked(path) == b"ASKED\n"
    make_stale(Path(path))
    await check_refused(path)
    server = UnixStreamServer(f"{path}-missing/socket", Upper)
    await fails_to_listen(server, errno.ENOENT, "socket-missing/socket", FileNotFoundError)


async def test_two_servers_race_for_a_stale_file(path, monkeypatch):
    """UX-01: of two servers that find one stale file, one wins, and nobody removes its new file.

    At the worst moment: the second one starts when the first has found that
    nobody listens, and has not yet removed the file.
    """
    make_stale(Path(path))
    unlink, flock = os.unlink, fcntl.flock
    met_the_lock, rivals = threading.Event(), []

    def unlink_late(victim):
        if not rivals:
            rival = UnixStreamServer(path, Upper)
            rivals.append(pool.submit(trio.run, fails_to_listen, rival, errno.EADDRINUSE))
            # Until it either waits for our lock, or is through with everything.
            while not (met_the_lock.wait(0.001) or rivals[0].done()):
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
    with ThreadPoolExecutor(1) as pool:
        async with UnixStreamServer(path, Upper).serving():
            await trio.to_thread.run_sync(rivals[0].result, 10)
            assert await asked(path) == b"ASKED\n"
    assert not is_there(path)


async def test_lock_of_the_folder(folder, path, autojump_clock):
    """LC-13: a start waits for who has locked the folder; cancelled in its wait, it leaves nothing.

    It gives up after a second, with the path in its message.
    """
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    server, before = UnixStreamServer(path, Upper), descriptors()
    with trio.move_on_after(0.3) as patience:
        await server.serve_forever()
    assert patience.cancelled_caught
    assert open_descriptors() == before
    await fails_to_listen(server, errno.EAGAIN, r"holds the lock of the directory.*unix:/")
    assert trio.current_time() == pytest.approx(1.3)
    assert not is_there(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_forever)
        await trio.sleep(0.5)
        os.close(lock)
        await trio.sleep(0.1)
        assert is_there(path)
        server.shutdown()


# The end ---------------------------------------------------------------------


ENDS = ["drains", "is cancelled", "fails", "exits", "listen", "server_bind", "server_activate"]


@pytest.mark.parametrize("end", ENDS)
async def test_file_is_removed_at_the_end(end, path, monkeypatch):
    """UX-08: however a server ends, its socket file is gone, and so are its descriptors.

    So they are after a start that fails, be it between its bind and its listen, or in a hook.
    """

    async def fails(self):
        await getattr(UnixStreamServer, end)(self)
        raise KeyError(end)

    kind = type("Server", (UnixStreamServer,), {end: fails} if "server" in end else {})
    server = kind(path, raising(SystemExit()) if end == "exits" else Upper)
    if end == "listen":
        monkeypatch.setattr(socket.socket, "listen", mock.Mock(side_effect=KeyError))
    with trio.fail_after(10), trio.CancelScope() as scope, suppress(KeyError, SystemExit):
        async with server.serving():
            assert is_there(path)
            match end:
                case "drains":
                    assert await asked(path) == b"ASKED\n"
                case "is cancelled":
                    scope.cancel()
                case "fails":
                    raise KeyError
                case "exits":
                    with plain_client(path):
                        await trio.sleep_forever()
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


@pytest.mark.parametrize("change", [id, make_stale, Path.touch, Path.mkdir, link])
async def test_file_that_was_replaced(change, path, caplog):
    """UX-04: what somebody has put in place of the socket file is not removed, and is no error.

    Be it nothing, the socket file of another server, a file, a directory, a link to nothing.
    """
    async with UnixStreamServer(path, Upper).serving():
        os.unlink(path)  # noqa: PTH108
        change(Path(path))
        before = is_there(path) and os.lstat(path).st_ino
    assert before == (is_there(path) and os.lstat(path).st_ino)
    assert caplog.text == ""


async def test_file_whose_folder_was_renamed(folder):
    """UX-04: a folder that was moved away, with a file in its place, is no error at the end."""
    place = folder / "place"
    place.mkdir()
    async with UnixStreamServer(place / "socket", Upper).serving():
        place.rename(folder / "moved")
        place.touch()


async def test_file_that_cannot_be_removed(path, monkeypatch, caplog):
    """A socket file that may not be removed is told once in the log; all the rest is closed.

    So it is for a program that gave up its privileges after the bind.
    """

    def refuse(victim):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), victim)

    with monkeypatch.context() as patch:
        async with UnixStreamServer(path, Upper).serving() as server:
            patch.setattr(os, "unlink", refuse)
        assert (await server.wait_closed()).clean
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert path in caplog.text


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
            assert list(folder.iterdir()) == []
    with pytest.raises(ValueError, match="at most 108 bytes"):
        UnixStreamServer(name + encode("x" * 79), Upper)


@on_linux
@pytest.mark.parametrize("name", [None, "client"])
async def test_unix_client(name, folder, path):
    """NW-06: a client's address is its path, `""` for the common one without.

    UX-09: the server knows its process, user and group, as the kernel does.
    """
    look = Looks(lambda it: [it.client_address, it.info.client_address, it.peer_credentials])
    own = str(folder / name) if name else ""
    bind = f"s.bind({own!r}); " if name else ""
    client = f"import socket; s = socket.socket(socket.AF_UNIX); {bind}s.connect({path!r})"
    with trio.fail_after(10):
        async with UnixStreamServer(path, look).serving():
            command = [sys.executable, "-Sc", f"{client}; s.recv(1)"]
            process = await trio.lowlevel.open_process(command)
            await process.wait()
    me = trioserver.PeerCredentials(pid=process.pid, uid=os.getuid(), gid=os.getgid())
    assert look.seen == [[own, own, me]]


async def test_client_passes_descriptors(path):
    """UX-14: descriptors that a client sends along unasked do not stay in the server."""
    during = []

    async def look(request, client_address, server):
        before = descriptors()
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


PROGRAM = """
import sys, types, trioserver

tells = types.SimpleNamespace(server_listening=lambda addresses: print(addresses[0], flush=True))
nothing = trioserver.StreamRequestHandler
trioserver.run(trioserver.UnixStreamServer(sys.argv[1], nothing, observers=[tells]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_program(number, path):
    """UX-08: SIGTERM removes the file; SIGKILL cannot, and the next start recovers."""
    for _ in range(2):
        command = [sys.executable, "-c", PROGRAM, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout.readline().strip() == path
            program.send_signal(number)
            status = program.wait(10)
        assert status == (0 if number == signal.SIGTERM else -number)
        assert is_there(path) == (number == signal.SIGKILL)
