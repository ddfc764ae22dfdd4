"""A socket whose descriptor the server has, too: shown, detached, closed, and left.

The rules this file keeps:

* The descriptor's mode is what the handler thinks it is from the moment in which it asks for
  the number.
* Closing ends the output and no more: the number is not free before the server has closed it.
  A handler that detaches gets the number, and the server another one.
* A handler that knows the number may have closed it. Then it may be anybody's, and is used by
  nobody any more.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from ..._facts.cpython import OpenSocket
from ..._sockets.descriptors import identity_of, is_lost, lost
from ..._sockets.making import RESET_ON_CLOSE, kind_of, socket_of, twin_of
from .blame import as_ended, went_wrong_before
from .waiting import Waiting

T = TypeVar("T")


class SharedDescriptor(Waiting, OpenSocket):
    """What a handler can do with the descriptor of its socket, and what the server does then."""

    __slots__ = ()

    def _number(self) -> int:
        return super().fileno()

    def fileno(self) -> int:
        """As `socket.socket.fileno`."""
        if not self._loan.state.shown:
            self._show()
        return super().fileno()

    def _show(self) -> None:
        """Have the descriptor's mode be what the handler thinks it is."""
        number = super().fileno()
        if number != -1 and sys.platform != "win32":  # which cannot tell programs a number
            if not self._loan.state.shown:
                self._loan.note_shown(identity_of(number))
            os.set_blocking(number, self._loan.state.timeout is None)

    def dup(self) -> socket.socket:  # type: ignore[override]
        """A plain socket for the same connection, with a descriptor of its own."""
        twin = twin_of(self)
        twin.settimeout(self.gettimeout())
        return twin

    def shutdown(self, how: int, /) -> None:
        """As `socket.socket.shutdown`."""
        if how != socket.SHUT_RD:
            self._loan.stream.output_ended = True
        super().shutdown(how)

    def detach(self) -> int:
        """As `socket.socket.detach`: the caller has the descriptor, the server another one."""
        number = self.fileno()
        if number != -1:
            self._loan.terms.hand_over(self._loan)
            super().detach()
        return number

    # When it is over -----------------------------------------------------------

    def call(self, function: Callable[[], T], *, may_close_number: bool = False) -> T:
        """Call ``function``; what the peer has done to this socket is raised as `RequestEnded`.

        Unless something else went wrong before: then that, which nobody would hear of.

        Args:
          may_close_number: whether the descriptor is all its own, so that it may close
            the number behind this object's back.
        """
        try:
            result = function()
        except OSError as error:
            self._let_go_if_lost(may_close_number=may_close_number)
            info = self._loan.terms.info
            ended, first = as_ended(error, info), went_wrong_before(error, info)
            try:
                if first is not None:
                    raise first
                if ended is None:
                    raise
                raise ended from error
            finally:
                del ended, first  # no cycles
        except BaseException:
            self._let_go_if_lost(may_close_number=may_close_number)
            raise
        if self._let_go_if_lost(may_close_number=may_close_number):
            raise lost()
        return result

    def _let_go_if_lost(self, *, may_close_number: bool) -> bool:
        """Have nobody use a number any more that may be anybody's; whether it is such a one."""
        if may_close_number or not self.is_lost():
            return False
        self.end()
        return True

    def is_lost(self) -> bool:
        """Whether the handler has closed the descriptor by its number: it may be anybody's now."""
        return is_lost(super().fileno(), self._loan.state.identity)

    def end(self) -> int:
        """Have nothing be done by this socket any more, whoever still has files made of it.

        Returns:
          The number of the descriptor, which stays open; -1 if it had none any more.
        """
        self._loan.wakeup.close()  # another thread may wait in it, and keep the connection open
        return super().detach()

    def end_for_good(self) -> None:
        """End the connection, too: the server has left the descriptor to this socket."""
        loan, number = self._loan, self.end()
        if number == -1:  # the handler had closed its socket
            number, loan.state.number = loan.state.number, -1
        if number == -1 or is_lost(number, loan.state.identity):
            return
        with socket_of(kind_of(self), number) as last:
            if loan.stream.broken is not None and loan.stream.sent:
                with suppress(OSError):  # half a reply must not look like a whole one
                    last.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)

    def close_at_last(self) -> None:
        """End the output, as far as the peer is concerned, and this socket; see `OpenSocket`."""
        if not self._loan.stream.output_ended and not self.is_lost():
            with suppress(OSError):  # the server still has it, so the peer would not be told
                self.shutdown(socket.SHUT_WR)
        number = self.end()
        if number != -1:  # to close twice is to close once
            self._loan.state.number = number
