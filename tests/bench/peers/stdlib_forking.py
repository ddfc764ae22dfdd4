"""The standard library's `socketserver.ForkingTCPServer`, with a backlog that fits."""

from __future__ import annotations

import socketserver

from _stdlib import serve

serve(socketserver.ForkingMixIn, block_on_close=False, max_children=1000)
