"""CPython's own tests of its servers, with `adopt` in the place of every ``serve_forever``.

    python tests/compat/cpython.py            # of the interpreter that runs this
    python tests/compat/cpython.py --theirs   # as CPython runs them, to compare

Exits 1 if a test fails.
"""

import socketserver
import sys
import unittest
from functools import partial

import trio
from test import support

import trioserver

MODULES = (
    "test.test_socketserver",
    "test.test_httpservers",
    "test.test_wsgiref",
    "test.test_urllib2_localnet",
    "test.test_xmlrpc",
)

adopted = []


def serve_forever(self, poll_interval=0.5):
    """Serve with `adopt`; forking servers in threads, for nothing may fork here."""
    adopted.append(self)
    trio.run(partial(trioserver.adopt, self, forking="threads"))


serve_forever.__module__ = socketserver.__name__  # not a subclass's own, which adopt warns of


def main():
    """Run them all."""
    theirs = "--theirs" in sys.argv[1:]
    if not theirs:
        socketserver.BaseServer.serve_forever = serve_forever  # before anybody takes it
    support.verbose = 0
    tests = unittest.defaultTestLoader.loadTestsFromNames(MODULES)
    result = unittest.TextTestRunner(buffer=True).run(tests)
    print(f"CPython {sys.version.split()[0]}: {len(adopted)} servers were adopted")
    if not result.wasSuccessful() or not (theirs or adopted):
        sys.exit(1)


if __name__ == "__main__":
    main()
