import collections
import logging
import sys

import trioserver

log = logging.getLogger("upper")


class Upper(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            log.info("a line of %d bytes", len(line))
            await self.wfile.write(line.upper())


def set_up_logging():
    handler = logging.StreamHandler()
    handler.addFilter(trioserver.RequestLogFilter())
    logging.basicConfig(
        level=logging.INFO,
        format="%(levelname)s %(name)s [%(request_id)s] %(message)s",
        handlers=[handler],
    )


class Counter(trioserver.Observer):
    def __init__(self):
        self.outcomes = collections.Counter()
        self.refused = 0

    def request_finished(self, info, outcome, record):
        self.outcomes[outcome] += 1

    def request_refused(self, client_address, reason):
        self.refused += 1


class Reporting(trioserver.TCPServer):
    async def handle_error(self, request, client_address):
        self.last_error = sys.exception()
        await super().handle_error(request, client_address)
        await request.sendall(b"500 that was our fault\r\n")
