"""The private names of CPython that the library rests on, by names of ours.

A change of Python's, or another Python, is to be looked for here alone; what is missing is
told by its name. There is no public way

* to have a socket of another make be an `ssl.SSLSocket` that tells what was agreed on by TLS;
* to know whether the calling thread has a lock, so that a signal handler does not wait for it;
* to be told that a socket and all files made of it are closed, to make a file that keeps the
  socket open, or to have ``sendfile`` send portion by portion;
* to have the ``shutdown`` of a server of `socketserver` end a run of ours: it sets a flag, and
  waits for an event that ``serve_forever`` alone sets;
* to end the fork server of `multiprocessing`, to tell a process's end that somebody else has
  reaped, or to know what a process is about to do.
"""

from __future__ import annotations

import socket
import socketserver
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who has no workers does without it
    from multiprocessing.process import BaseProcess


class PythonHasChanged(Exception):
    """A private name, on which something of the library rests, is not there."""


def _private(owner: object, name: str, rests_on_it: str) -> Any:
    """Get a private attribute of CPython.

    Raises:
      PythonHasChanged: there is none; says which one, and what rests on it.
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        python = f"{sys.implementation.name} {sys.version.split()[0]}"
        kind = type(owner).__name__
        message = f"{python} has no {name} in {kind}, on which {rests_on_it} rests"
        raise PythonHasChanged(message) from None


# Of socketserver ---------------------------------------------------------------------


def end_of_serve_forever(server: socketserver.BaseServer) -> threading.Event:
    """What the ``shutdown`` of a foreign server waits for."""
    event = _private(server, "_BaseServer__is_shut_down", "adopt()")
    assert isinstance(event, threading.Event)  # noqa: S101  (for the type)
    return event


def is_asked_to_shut_down(server: socketserver.BaseServer) -> bool:
    """Whether its ``shutdown`` was called, and nothing has ended since."""
    return bool(_private(server, "_BaseServer__shutdown_request", "adopt()"))


def forget_shutdown(server: socketserver.BaseServer) -> None:
    """Have it be served again, as its own ``serve_forever`` does at its end."""
    server._BaseServer__shutdown_request = False  # type: ignore[attr-defined]


# Of multiprocessing ------------------------------------------------------------------


def fork_server_pid() -> int | None:
    """The process id of this program's fork server; None if there is none."""
    from multiprocessing import forkserver  # noqa: PLC0415

    server = _private(forkserver, "_forkserver", "the end of a fork server that hangs")
    pid: int | None = _private(server, "_forkserver_pid", "the end of a fork server that hangs")
    return pid


def set_exit_status(process: BaseProcess, status: int) -> None:
    """Say with what a process has ended, where the system does not tell any more."""
    _private(
        process, "_popen", "the end of a worker that somebody else has reaped"
    ).returncode = status


def is_about_to(process: BaseProcess, function: object) -> bool:
    """Whether a process was started for ``function``."""
    return getattr(process, "_target", None) is function


# Of sockets --------------------------------------------------------------------------

PRIVATE = ("_io_refs", "_real_close", "_sendfile_use_send")


def require_private_names() -> None:
    """See to it that all the names are there.

    Raises:
      PythonHasChanged: one is not; says which.
    """
    for name in PRIVATE:
        if not hasattr(socket.socket, name):
            python = f"{sys.implementation.name} {sys.version.split()[0]}"
            raise PythonHasChanged(
                f"{python} has no socket.socket.{name}, without which no handler can have its"
                " connection in a thread or in a worker process: run it as a task of Trio"
            )


class OpenSocket(socket.socket):
    """A `socket.socket` that says when it is closed, and can be kept open by files."""

    __slots__ = ()

    def keep_open(self) -> None:
        """Count one more file that is made of it: the socket closes after that."""
        self._io_refs += 1  # type: ignore[attr-defined]

    def send_in_portions(self, file: Any, offset: int, count: int | None) -> int:
        """Send a file as `socket.socket.sendfile` does, but by ``send``; the bytes sent."""
        sent: int = self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined]
        return sent

    def close_at_last(self) -> None:
        """Close: called when the socket was closed, and no file is left that was made of it."""
        raise NotImplementedError

    def _real_close(self, *_arguments: Any) -> None:
        self.close_at_last()


def is_owned(lock: threading.RLock) -> bool:
    """Whether the calling thread has a lock.

    Raises:
      PythonHasChanged: see `_private`.
    """
    return bool(_private(lock, "_is_owned", "TLS in threads")())


def dress_as_tls_socket(sock: ssl.SSLSocket, tls: ssl.SSLObject) -> None:
    """Have a socket tell of TLS what ``tls`` does: certificates, versions, ciphers.

    Raises:
      PythonHasChanged: see `_private`.
    """
    own: Any = sock
    own._sslobj = _private(tls, "_sslobj", "TLS in threads")
    own._context, own._session, own._connected = tls.context, None, True
    own.server_side, own.server_hostname = True, None
    own.do_handshake_on_connect = own.suppress_ragged_eofs = False
