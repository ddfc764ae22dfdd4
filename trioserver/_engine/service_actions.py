"""The hook ``service_actions``, called again and again until the drain begins."""

from __future__ import annotations

import trio

from .._facts.verdict import cancellations
from .hooks import ServerHooks, call_hook
from .request_nursery import why_it_ended
from .shutdown import Shutdown


async def act_every(seconds: float, server: ServerHooks, ending: Shutdown) -> None:
    """Call the hook, then wait so many seconds, and so on. What it raises ends the run."""
    # Not beside the accept loops: one that cannot be cancelled, in a
    # thread say, must not hold up the drain.
    with ending.acting:
        while True:
            try:
                await call_hook(server.service_actions)
            except BaseException as error:
                if not cancellations(error):
                    ending.fail(why_it_ended(error), culprit=None)
                raise
            await trio.sleep(seconds)
