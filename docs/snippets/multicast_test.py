import itertools
import socket
from functools import partial

import pytest
import trio

import multicast

LO = "127.0.0.1"


async def test_multicast():
    """Two servers of one machine that have joined a group both answer who asks it."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        joined = socket.inet_aton(multicast.GROUP) + socket.inet_aton(LO)
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        except OSError as error:
            pytest.skip(f"no multicast on the loopback interface: {error}")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            port = 0
            for _ in range(2):
                serve = partial(multicast.serve_group, multicast.GROUP, port, multicast.here, LO)
                port = (await nursery.start(serve)).server_address[1]

            def ask_group():
                answers = multicast.who_is_there(multicast.GROUP, port, LO, seconds=5)
                return list(itertools.islice(answers, 2))

            answers = await trio.to_thread.run_sync(ask_group)
            nursery.cancel_scope.cancel()
    assert answers == [(LO, socket.gethostname())] * 2
