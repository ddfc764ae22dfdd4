"""The file of a Unix socket: made with its rights, taken over only when dead, removed only if ours.

The rules this file keeps, and why:

* A path is looked at, removed and bound while its directory is locked
  (flock(2)), because "nobody listens there" can be untrue a moment later: of
  two servers that find one stale file at the same time, the second would remove
  the first one's new socket. A program that does not take the lock is not
  stopped by it.
* A socket listens before the lock is given back: between bind and listen it
  refuses connections and would look dead.
* Where the directory cannot be locked nothing is ever removed from it.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from .._facts.address import is_abstract, with_address
from .._facts.observers import error_log, log_safely
from .making import new_socket

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.platform != "win32":
    import fcntl

# The lock is held for a few system calls, so a second of tries means that
# something else holds it for good.
_LOCK_TRIES, _LOCK_PAUSE = 100, 0.01


@attrs.frozen
class BoundPath:
    """A socket file that we made: where it was, and which file it is."""

    path: bytes
    device: int
    inode: int

    @classmethod
    def of(cls, path: bytes) -> BoundPath:
        """The file at ``path`` now, which may not be a relative path for long."""
        found = os.lstat(path)
        return cls(os.path.abspath(path), found.st_dev, found.st_ino)  # noqa: PTH100  (bytes)

    def is_there(self) -> bool:
        """Whether the file is still ours."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return self._is(found)

    def _is(self, found: os.stat_result) -> bool:
        return (found.st_dev, found.st_ino) == (self.device, self.inode)

    def unlink(self) -> None:
        """Remove the file if it is still ours; gone or replaced is no error.

        To be called before the socket is closed: while that lives, the file's inode
        number cannot be given to another file.

        One that cannot be removed is told, and left: whoever closes a listener
        has more to close.
        """
        lock = _lock_now(self.path)
        try:
            if self._is(os.lstat(self.path)):
                os.unlink(self.path)  # noqa: PTH108  (bytes)
        except FileNotFoundError:
            pass
        except OSError as error:
            log_safely(error_log, logging.WARNING, "cannot remove a socket file: %s", error)
        finally:
            if lock is not None:
                os.close(lock)


async def bind_path(
    sock: socket.socket,
    path: str | bytes | os.PathLike[str],
    *,
    mode: int | None,
    backlog: int | None,
) -> BoundPath | None:
    """Bind ``sock`` to ``path`` and listen, replacing a file whose server is dead.

    Args:
      sock: an unbound Unix socket.
      path: where; a name of the abstract namespace has no file.
      mode: permission bits of the file, in force before it can be reached;
        None leaves them to the umask.
      backlog: as for listen(2); None for a datagram socket, which does not.

    Returns:
      The file to remove at the end, None if there is none.

    Raises:
      OSError: with the path in its message. ``EADDRINUSE`` when somebody
        listens there, when something that is not a socket is there, or when
        that could not be told.
    """
    raw = os.fsencode(path)
    try:
        if is_abstract(raw):
            sock.bind(raw)
            _listen(sock, backlog)
            return None
        async with _directory_lock(raw) as locked:
            if locked:
                _remove_if_dead(raw, sock.type)
            with _rights(sock, mode):
                sock.bind(raw)
            bound = BoundPath.of(raw)
            try:
                _widen(raw, mode)
                _listen(sock, backlog)
            except BaseException:
                bound.unlink()
                raise
            return bound
    except OSError as error:
        raise with_address(error, "listen on", path) from error


def _listen(sock: socket.socket, backlog: int | None) -> None:
    if backlog is not None:
        sock.listen(backlog)


def _remove_if_dead(path: bytes, kind: int) -> None:
    """Remove the socket file at ``path`` if nobody is behind it; the directory is locked."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EADDRINUSE, "The path exists and is not a socket")
    # Non-blocking: a server whose queue is full answers EAGAIN, and lives.
    with new_socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108  (bytes)
        except OSError:
            return  # Alive, or cannot be told: bind will say that it is in use.


@contextmanager
def _rights(sock: socket.socket, mode: int | None) -> Iterator[None]:
    """Have the file that a bind makes inside the block start with no right beyond ``mode``."""
    if mode is None:
        yield
    elif sys.platform == "linux":
        # The file gets the mode of the socket's own inode, less the umask
        # (unix_bind in net/unix/af_unix.c).
        os.fchmod(sock.fileno(), mode)
        yield
    else:
        # Narrower for an instant for the other threads of the program, never wider.
        before = os.umask(0o777)
        os.umask(before | (~mode & 0o777))
        try:
            yield
        finally:
            os.umask(before)


def _widen(path: bytes, mode: int | None) -> None:
    """Give back the rights that the umask took from ``mode``."""
    if mode is not None and stat.S_IMODE(os.lstat(path).st_mode) != mode:
        os.chmod(path, mode)  # noqa: PTH101  (bytes)


@asynccontextmanager
async def _directory_lock(path: bytes) -> AsyncIterator[bool]:
    """Hold the lock of the directory of ``path``; false where it cannot be locked.

    Nothing inside the block may wait.
    """
    for _ in range(_LOCK_TRIES):
        try:
            lock = _lock_now(path, or_raise=BlockingIOError)
        except BlockingIOError:
            await trio.sleep(_LOCK_PAUSE)
            continue
        break
    else:
        raise OSError(errno.EAGAIN, "Another program holds the lock of the directory")
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _lock_now(path: bytes, *, or_raise: type[OSError] | tuple[()] = ()) -> int | None:
    """A descriptor that holds the lock of the directory of ``path``, None where there is none.

    Args:
      or_raise: the error to let out rather than go on without the lock.
    """
    if sys.platform == "win32":
        return None
    try:
        directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)  # noqa: PTH100, PTH120
    except OSError:
        return None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except or_raise:
        os.close(directory)
        raise
    except OSError:
        os.close(directory)
        return None
    return directory
