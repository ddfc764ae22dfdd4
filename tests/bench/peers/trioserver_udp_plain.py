"""trioserver's datagram server, with a plain function."""

from __future__ import annotations

from typing import Any

from _datagrams import serve_datagrams


def upper(data: bytes, client_address: Any, server: Any) -> bytes:
    """Answer a datagram."""
    return data.upper()


if __name__ == "__main__":
    serve_datagrams(upper)
