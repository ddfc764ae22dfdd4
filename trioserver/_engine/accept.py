"""The accept loop, of which each listener has one, and the last look when it is over.

A slot is free before a client is accepted, and between the accept and the start of
the request's task nothing waits.
"""

from __future__ import annotations

from functools import partial

import trio
from trio.lowlevel import checkpoint, enable_ki_protection

from .._sockets.binding import most_queued
from .._sockets.transport import Listener
from .accept_errors import Shortage, Tier, tier_of
from .admission import Admission

STARTS_AT_ONCE = 16
"""How many tasks are started in a row before they, and others, run. A burst is taken in at once,
and a flood does not starve the requests that are being served. With 64, what they hold outlives
more of the garbage collector's looks: a seventh less datagrams a second."""

ENDS_AT_ONCE = 64
"""The same of clients that need no task: datagrams that are answered, connections that are shed."""

ONE_BY_ONE = 7
"""After a client that came alone, how many are accepted without a look whether there is one more.
That look, which finds nobody, would be a fifteenth of the time in which a lone client is served."""


class _Portions:
    """How many clients one listener's loop accepts each time that some are there.

    Args:
      is_shared: whether others accept from it, too, so that each takes one at a time.
    """

    def __init__(self, *, is_shared: bool) -> None:
        self._one_by_one = 0
        self._is_shared = is_shared

    def most(self, admission: Admission) -> int:
        """How many to accept in a row now, at most."""
        if self._one_by_one or self._is_shared:
            return 1
        return ENDS_AT_ONCE if admission.answers_at_once else STARTS_AT_ONCE

    def note(self, admitted: int, error: OSError | None) -> None:
        """Note how many there were, and what was met instead of one more."""
        if error is not None:
            self._one_by_one = 0  # it is only over once there is a look that does not meet it
        elif self._one_by_one:
            self._one_by_one -= 1
        elif admitted == 1 and not self._is_shared:
            self._one_by_one = ONE_BY_ONE


@enable_ki_protection
async def accept_loop(listener: Listener, admission: Admission) -> None:
    """Accept on ``listener`` as long as clients are admitted and there is room.

    Protected from Ctrl-C, as everything between an accept and its task is; a
    signal then reaches the main task at its next checkpoint.

    Raises:
      OSError: of the fatal tier.
    """
    shortage: Shortage | None = None
    portions = _Portions(is_shared=admission.peers is not None)
    while admission.is_open():
        if not admission.has_room():
            await admission.wait_for_room()
            continue  # the drain may have closed the listener in the same tick
        await _wait_for_client(listener, admission)
        admitted, error = _accept_batch(listener, admission, portions.most(admission))
        portions.note(admitted, error)
        if error is None:
            if not admitted:
                await checkpoint()  # a listener may wait without one; other tasks must still run
            elif shortage is not None:
                shortage.over()
                shortage = None
            continue
        admission.accept_failed(listener.address, error)
        tier = tier_of(error)
        if tier is Tier.FATAL:
            raise error
        if tier is Tier.CAPACITY:
            shortage = shortage or Shortage(listener.address)
            if admitted:
                shortage.eases()
            if shortage.lasts() and admission.reserve.helps_with(error):
                admission.reserve.release_for(partial(_shed_all, listener, admission))
            await trio.sleep(shortage.pause(error))
        else:
            await checkpoint()


async def _wait_for_client(listener: Listener, admission: Admission) -> None:
    try:
        await listener.wait_acceptable()
        if admission.peers is not None:
            await admission.peers.give_way()
    except trio.ClosedResourceError:
        if admission.is_open():
            raise
        # The drain has closed it in the very step in which this task was to wake up.


def accept_now(listener: Listener, admission: Admission) -> None:
    """Admit the clients that are there now, as long as clients are admitted.

    A client that is dropped or turned away, or whose accept fails, does not hide the
    next one.

    Raises:
      OSError: of the fatal tier.
    """
    for _ in range(most_queued(listener)):
        if not admission.is_open() or admission.slots.suspended:
            return
        try:
            if not admission.admit(listener):
                return
        except OSError as error:
            admission.accept_failed(listener.address, error)
            tier = tier_of(error)
            if tier is Tier.FATAL:
                raise
            if tier is Tier.CAPACITY:
                return


def _accept_batch(
    listener: Listener, admission: Admission, most: int
) -> tuple[int, OSError | None]:
    """Admit up to ``most`` clients; how many, and the error that ended it, if one did."""
    admitted = 0
    try:
        while admitted < most and admission.is_open() and admission.has_room():
            if not admission.admit(listener):
                break
            admitted += 1
    except OSError as error:
        return admitted, error
    return admitted, None


def _shed_all(listener: Listener, admission: Admission) -> None:
    for _ in range(ENDS_AT_ONCE):
        if not admission.shed(listener):
            return
