from support.pages import in_memory

import proxy


async def test_behind_a_proxy(autojump_clock):
    """The client is who the header says, from a proxy that is trusted."""
    server = in_memory(proxy.behind_a_proxy())
    async with server.serving():
        balancer = await server.connect(("10.1.2.3", 1))
        await balancer.send_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 443\r\n")
        assert await balancer.receive_some() == b"you are 192.0.2.7\n"
        stranger = await server.connect(("192.0.2.66", 1))
        assert await stranger.receive_some() == b""
        assert server.statistics().arrivals_failed == 1
