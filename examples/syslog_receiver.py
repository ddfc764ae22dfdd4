"""A receiver of log messages, as syslog (RFC 3164, RFC 5424) and Python's SysLogHandler send them.

    python examples/syslog_receiver.py [PORT|PATH]

A port is one of UDP, a path that of a Unix socket. Nobody gets a reply.
"""

import logging
import re
import socket
import sys

import trio

import trioserver

SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron"),
    *("authpriv", "ftp", "ntp", "audit", "alert", "clock"),
    *(f"local{number}" for number in range(8)),
)
USER_NOTICE = 13  # what a message counts as that does not say


async def show(request: trioserver.Datagram, _address: object, _server: object) -> None:
    priority, text = USER_NOTICE, request.data
    found = re.match(rb"<(\d{1,3})>", text)
    if found and int(found[1]) < 8 * len(FACILITIES):
        priority, text = int(found[1]), text[found.end() :]
    facility, severity = divmod(priority, 8)
    line = text.rstrip(b"\0\n").decode(errors="backslashreplace")
    # Whatever was sent, it stays one line, and does nothing to a terminal.
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
    print(f"{FACILITIES[facility]}.{SEVERITIES[severity]} {line}", flush=True)


IN_ORDER = trioserver.Limits(requests=1)  # one after the other, as they came
FOR_BURSTS = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)]  # what comes meanwhile waits there


def make_server(where: str) -> trioserver.UDPServer:
    if where.isdigit():
        address = ("localhost", int(where))
        return trioserver.UDPServer(address, show, limits=IN_ORDER, socket_options=FOR_BURSTS)
    return trioserver.UnixDatagramServer(where, show, limits=IN_ORDER)


async def main(
    where: str,
    *,
    task_status: trio.TaskStatus[trioserver.UDPServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """For a bigger program: ``await nursery.start(main, where)``."""
    await make_server(where).serve_forever(task_status=task_status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trioserver.run(make_server(sys.argv[1] if len(sys.argv) > 1 else "9514"))
