"""trioserver's datagram server, with an async function."""

from __future__ import annotations

from typing import Any

from _datagrams import serve_datagrams


async def upper(request: Any, client_address: Any, server: Any) -> None:
    """Answer a datagram."""
    await request.reply(request.data.upper())


if __name__ == "__main__":
    serve_datagrams(upper)
