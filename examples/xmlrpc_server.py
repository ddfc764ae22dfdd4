"""Functions that other programs can call: the standard library's XML-RPC, in threads.

    python examples/xmlrpc_server.py [PORT]

Call them from anywhere:

    >>> proxy = xmlrpc.client.ServerProxy("http://localhost:9999")
    >>> proxy.add(40, 2)
    42
"""

import logging
import sys
import threading
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCRequestHandler

import trio

import trioserver


class XMLRPCServer(SimpleXMLRPCDispatcher, trioserver.ThreadingTCPServer):
    logRequests = False  # noqa: N815 - what the handler looks for; the server has a log of its own

    def __init__(self, port: int) -> None:
        SimpleXMLRPCDispatcher.__init__(self)
        trioserver.ThreadingTCPServer.__init__(
            self, ("localhost", port), SimpleXMLRPCRequestHandler
        )


class Functions:
    """What can be called. Calls come in threads, several at once: what they share needs a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def add(self, a: int, b: int) -> int:
        """Their sum."""
        return a + b

    def count(self) -> int:
        """How often this was called."""
        with self._lock:
            self._count += 1
            return self._count


def make_server(port: int) -> XMLRPCServer:
    server = XMLRPCServer(port)
    server.register_introspection_functions()
    server.register_instance(Functions())
    return server


async def main(
    port: int,
    *,
    task_status: trio.TaskStatus[XMLRPCServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trioserver.run(make_server(int(sys.argv[1]) if len(sys.argv) > 1 else 9999))
