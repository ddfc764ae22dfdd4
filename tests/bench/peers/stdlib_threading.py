"""The standard library's `socketserver.ThreadingTCPServer`, with a backlog that fits."""

from __future__ import annotations

import socketserver

from _stdlib import serve

serve(socketserver.ThreadingMixIn, daemon_threads=True)
