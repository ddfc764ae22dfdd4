"""Errors of a handler's socket that are the peer's doing, and not the handler's.

A handler sees the classic exceptions of `socket.socket`. The server wants to know what the
peer has done: so each such exception carries a note, and is told in the server's words when
the handler lets it out.
"""

from __future__ import annotations

from ..._facts.errors import IdleTimeout, PeerGone, RequestEnded, WriteTimeout
from ..._facts.events import RequestInfo
from ..._facts.verdict import left_handle, peers_doing

_IN_WORDS: dict[type[RequestEnded], str] = {
    PeerGone: "the peer is gone",
    IdleTimeout: "the peer was silent for too long",
    WriteTimeout: "the peer took nothing for too long",
}


def blame_peer(error: OSError, kind: type[RequestEnded], info: RequestInfo) -> None:
    """Note on ``error`` that the peer of a request is behind it, and which way."""
    vars(error)["_means"] = kind, info


def as_ended(error: BaseException, info: RequestInfo) -> RequestEnded | None:
    """``error`` in the server's words; None unless it is what this request's peer has done."""
    kind: type[RequestEnded] | None
    kind, blamed = vars(error).get("_means", (None, None))
    if kind is None or blamed is not info or not isinstance(error, OSError):
        return None
    return kind(f"{_IN_WORDS[kind]}: {error.strerror or error}", info=info)


def went_wrong_before(error: BaseException, info: RequestInfo) -> BaseException | None:
    """What had gone wrong before the peer's doing, and nobody would hear of; None if nothing."""
    first = left_handle(error)
    if first is None or not _is_peers(error, info) or _is_peers(first, info):
        return None
    return first


def _is_peers(error: BaseException, info: RequestInfo) -> bool:
    return peers_doing(as_ended(error, info) or error, info) is not None
