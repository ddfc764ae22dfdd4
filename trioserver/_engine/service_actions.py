"""The hook ``service_actions``, called again and again until the drain begins."""

from __future__ import annotations

import trio

from .._facts.verdict import cancellations
from .hooks import ServerHooks, call_hook
from .request_nursery import why_it_ended
from .shutdown import Shutdown


async def act_every(seconds: float, server: ServerHooks, ending: Shutdown) -> None:
    """Call the hook every so many seconds, until cancelled. What it raises ends the run."""
    # It has a scope of its own, not that of the accept loops: a hook that cannot be
    # cancelled, because it waits for a thread for example, must not hold up the drain.
    with ending.acting:
        while True:
            try:
                await call_hook(server.service_actions)
            except BaseException as error:
                if not cancellations(error):
                    ending.fail(why_it_ended(error), culprit=None)
                raise
            await trio.sleep(seconds)
