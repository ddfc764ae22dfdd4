"""Sockets that a program leaves bound for the next one, and how that one finds its own.

By a name, which says the kind of a socket and the address that its server was configured with,
whatever port that has come to. So the same script finds its sockets, in whichever order it
makes its servers. The name of a socket that has a file says which file, too.

A service manager keeps them by these names (``FDNAME=``, sd_notify(3)), and a program that
starts its successor passes them by these names.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket

import attrs

from .._facts.address import Address, is_abstract
from .unix_path import BoundPath

PREFIX = "trioserver-"
"""How such names begin; they are not for `inherited_sockets`."""

_FILE = re.compile(rf"{PREFIX}[0-9a-f]+-([0-9a-f]+)-([0-9a-f]+)")


@attrs.frozen
class LeftSocket:
    """One of them, and its file if it has one."""

    socket: socket.socket
    path: BoundPath | None


@attrs.frozen
class Place:
    """What a server has in common with itself in the next run of the program.

    Args:
      kind: the type of its sockets.
      address: as it was configured.
      nth: how many servers of the same kind and address come before it.
    """

    kind: int
    address: Address
    nth: int

    @property
    def name(self) -> str:
        """The name of its sockets that have no file: letters, digits and a hyphen."""
        where = repr((int(self.kind), self._absolute(), self.nth))
        return PREFIX + hashlib.sha256(where.encode(errors="surrogateescape")).hexdigest()[:24]

    def name_for(self, path: BoundPath | None) -> str:
        """The name of a socket of its own, which may have a file."""
        return self.name if path is None else f"{self.name}-{path.device:x}-{path.inode:x}"

    def is_of(self, name: str) -> bool:
        """Whether a socket of this name is its own."""
        return name == self.name or name.startswith(f"{self.name}-")

    def left_as(self, name: str, sock: socket.socket) -> LeftSocket | None:
        """A socket of this name, to go on with.

        None if its file is gone, or is another one by now: nobody reaches it any more, and
        it is closed.
        """
        file = _FILE.fullmatch(name)
        if file is None:
            return LeftSocket(sock, None)
        device, inode = (int(part, 16) for part in file.groups())
        path = BoundPath(os.fsencode(self._absolute()), device, inode)
        if path.is_there():
            return LeftSocket(sock, path)
        sock.close()
        return None

    def _absolute(self) -> Address:
        if isinstance(self.address, (str, bytes, os.PathLike)):
            raw = os.fsencode(self.address)
            return raw if is_abstract(raw) else os.path.abspath(raw)  # noqa: PTH100  (bytes)
        host, *rest = self.address
        return (host or "", *rest)
