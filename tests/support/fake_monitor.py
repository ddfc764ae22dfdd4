"""Something that talks as a monitor does, of servers that a test has made up."""

import json
import os

import attrs
import trio

import trioserver
from trioserver.monitoring import as_text

from .seen import a_request, a_server, a_tree


@attrs.define(eq=False)
class FakeMonitor:
    """A monitor of made-up servers; its ``handle`` is to be served.

    Attributes:
      servers: what it tells of; a test may change them.
      control: whether it takes orders.
      more: what else is in a state, or in the place of what is.
      heard: all that it was told.
      at: the time that passes: a second with each state.
    """

    servers: list = attrs.field(factory=lambda: [a_server(a_request(1), a_request(2))])
    control: bool = False
    more: dict = attrs.field(factory=dict)
    heard: list = attrs.field(factory=list)
    at: float = 0.0

    def state(self):
        """What the program is like now."""
        self.at += 1
        servers = [{**server.as_json(), "hidden": 0} for server in self.servers]
        return {
            "type": "state",
            "version": 1,
            "at": self.at,
            "time": 1_700_000_000.0 + self.at,
            "pid": os.getpid(),
            "control": self.control,
            "dropped": 0,
            "interval": 1.0,
            "servers": servers,
            "tasks": {},
            "findings": [],
            **self.more,
        }

    async def handle(self, request, client_address, server):
        """Serve one who watches."""
        lines = trioserver.RequestReader(request)
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            async for line in lines:
                message = json.loads(line)
                self.heard.append(message)
                if "watch" in message:
                    scope.cancel(reason="another watch")
                    scope = trio.CancelScope()
                    interval = message["watch"]["interval"]
                    nursery.start_soon(self._tell, request, interval, scope)
                else:
                    await say(request, self._answer(message))
            nursery.cancel_scope.cancel(reason="the client has gone")

    async def _tell(self, request, interval, scope):
        with scope:
            while True:
                await say(request, self.state())
                await trio.sleep(interval)

    def _answer(self, message):
        if "control" in message:
            if not self.control:
                return {"type": "error", "message": "no control"}
            number = message["control"]["request"]
            return {"type": "done", "message": f"request {number} is cancelled"}
        number, text = message["show"]["request"], as_text(a_tree())
        found = [it for it in self.servers[0].requests if it.info.id == number]
        request = found[0].as_json() if found else None
        return {"type": "request", "server": 0, "request": request, "tasks": [], "text": text}


async def say(request, message):
    """Send a message."""
    # Shielded for as long as a test lasts at most: half a line would be none.
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
        await request.send_all(json.dumps(message).encode() + b"\n")
