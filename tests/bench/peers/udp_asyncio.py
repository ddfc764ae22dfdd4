"""asyncio's `DatagramProtocol`."""

from __future__ import annotations

import asyncio

from _protocols import serve_datagrams

asyncio.run(serve_datagrams())
