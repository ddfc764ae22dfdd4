"""Handlers in worker processes: what both sides say, the worker's side, the server's.

``protocol`` is imported by both sides, ``worker`` runs in the child alone, and ``server``
starts it. The protocol must not know either side.
"""
