"""The files of a folder over HTTP, by the standard library's own handler.

    python examples/http_files.py [PORT [FOLDER]]

Like `python -m http.server`, but that clients may keep their connections, and
that it stops as other servers here do.
"""

import logging
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler

import trio

import trioserver


class Files(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # many requests on one connection

    def log_message(self, text: str, *values: object) -> None:
        logging.getLogger("http_files").info(text, *values)  # instead of printing


def make_server(port: int, folder: str = ".") -> trioserver.ThreadingTCPServer:
    return trioserver.ThreadingTCPServer(
        ("localhost", port),
        partial(Files, directory=folder),
        # A connection has its thread as long as it lasts, so be quick to end idle ones.
        max_threads=100,
        timeouts=trioserver.Timeouts(idle=20),
    )


async def main(
    port: int,
    folder: str = ".",
    *,
    task_status: trio.TaskStatus[trioserver.ThreadingTCPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, port)``."""
    await make_server(port, folder).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port, *folder = sys.argv[1:] or ["9999"]
    trioserver.run(make_server(int(port), *folder))
