"""CPython's own tests of its servers, with `adopt` in the place of every ``serve_forever``.

    python tests/compat/cpython.py            # of the interpreter that runs this
    python tests/compat/cpython.py --theirs   # as CPython runs them, to compare

Exits 1 if a test fails. Those that are left out stand below, each with its reason.
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

LEFT_OUT = {}
"""Ids of tests that cannot pass, and why."""

adopted = []


def serve_forever(self, poll_interval=0.5):
    """Serve with `adopt`; forking servers in threads, for nothing may fork here."""
    adopted.append(self)
    trio.run(partial(trioserver.adopt, self, forking="threads"))


serve_forever.__module__ = socketserver.__name__  # not a subclass's own, which adopt warns of


def tests_of(suite):
    """The tests in a suite, one by one."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_of(test)
        else:
            yield test


def main():
    """Run them all."""
    theirs = "--theirs" in sys.argv[1:]
    if not theirs:
        socketserver.BaseServer.serve_forever = serve_forever  # before anybody takes it
    support.verbose = 0
    found = list(tests_of(unittest.defaultTestLoader.loadTestsFromNames(MODULES)))
    unknown = LEFT_OUT.keys() - {test.id() for test in found}
    if unknown:
        sys.exit(f"left out, but there is no such test: {', '.join(sorted(unknown))}")
    chosen = unittest.TestSuite(test for test in found if theirs or test.id() not in LEFT_OUT)
    result = unittest.TextTestRunner(buffer=True).run(chosen)
    print(f"CPython {sys.version.split()[0]}: {len(adopted)} servers were adopted")
    for name, reason in LEFT_OUT.items():
        print(f"left out: {name}: {reason}")
    if not result.wasSuccessful() or not (theirs or adopted):
        sys.exit(1)


if __name__ == "__main__":
    main()
