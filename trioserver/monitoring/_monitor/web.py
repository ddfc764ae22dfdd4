"""The monitor for browsers: a page, and the same states as server-sent events.

HTTP is spoken by h11, a well-kept library that does nothing else. Each connection has one request.
Everything comes from here, and the page is allowed to ask nobody else (Content-Security-Policy).
A page of somebody else's, in the same browser, must not see or order anything: it cannot send
JSON here without being asked for by its Origin, and a name of its own that leads here (DNS
rebinding) is not among the hosts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from importlib import resources
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

import attrs
import trio

import trioserver

from .feed import Beat, Feed, with_dropped
from .orders import detail_of, obey
from .query import BadQuery, Query, query_from

_PAGE = resources.files(__package__) / "page"

FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    **{
        f"/{name}": (name, "text/javascript; charset=utf-8")
        for name in ("main.js", "rows.js", "view.js", "past.js", "words.js")
    },
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
"""The files of the page, each with its type."""

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
"""Hosts that the page may be asked for by; with any port, as a tunnel may lead here."""

LONGEST_BODY = 65_536

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", _POLICY),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("Connection", "close"),
)


@attrs.frozen
class Refused(Exception):
    """A request that is not served.

    Attributes:
      status: of HTTP.
      why: in words.
    """

    status: int
    why: str


@attrs.define(eq=False)
class Exchange:
    """One request of a browser, and the answer.

    Attributes:
      feed: where states come from.
      default: what is shown unless the browser says otherwise.
    """

    feed: Feed
    default: Query
    _request: trioserver.Connection
    _bytes: trioserver.RequestReader
    _is_head: bool = False

    async def serve(self, first: bytes) -> None:
        """Read the request, whose first line is ``first``, and answer it."""
        try:
            import h11  # noqa: PLC0415  (an extra)
        except ImportError:
            await self._request.send_all(_WITHOUT_H11)
            return
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_BODY)
        http.receive_data(first)
        try:
            asked, body = await self._read(http)
            await self._answer(http, asked, body)
        except h11.RemoteProtocolError as error:
            if http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                await self._refuse(http, error.error_status_hint, str(error))
        except Refused as refused:
            await self._refuse(http, refused.status, refused.why)
        except BadQuery as error:
            await self._refuse(http, 400, str(error))

    async def _read(self, http: Any) -> tuple[Any, bytes]:
        """The request, and its body; bounded."""
        import h11  # noqa: PLC0415

        asked, body = None, b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await self._bytes.read1())
            elif isinstance(event, h11.Request):
                asked = event
                _check_sender(event)
                if http.they_are_waiting_for_100_continue:
                    await self._send(http, h11.InformationalResponse(status_code=100, headers=[]))
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > LONGEST_BODY:
                    raise Refused(413, f"at most {LONGEST_BODY} bytes were expected")
            else:
                return asked, body

    async def _answer(self, http: Any, asked: Any, body: bytes) -> None:
        self._is_head = asked.method == b"HEAD"
        method, target = asked.method.decode(), _target_of(asked)
        values = dict(parse_qsl(target.query))
        if target.path == "/control":
            self._must_be(method, "POST")
            _check_json(asked)
            answer = obey(self.feed.servers, _parsed(body), allowed=self.feed.control)
            await self._send_json(http, answer)
            return
        self._must_be(method, "GET", "HEAD")
        if target.path == "/events":
            await self._show_states(http, _query_of(values, self.default))
        elif target.path == "/request":
            facts = {"server": _number_in(values, "server"), "request": _number_in(values, "id")}
            if "worker" in values:
                facts["worker"] = _number_in(values, "worker")
            await self._send_json(http, detail_of(self.feed.servers, facts))
        elif target.path in FILES:
            name, kind = FILES[target.path]
            await self._send_whole(http, 200, kind, (_PAGE / name).read_bytes())
        else:
            raise Refused(404, "there are /, /events, /request and /control here")

    def _must_be(self, method: str, *expected: str) -> None:
        if method not in expected:
            raise Refused(405, f"{' or '.join(expected)} was expected")

    # Answering ------------------------------------------------------------------

    async def _show_states(self, http: Any, query: Query) -> None:
        """Send states until the browser has left."""
        import h11  # noqa: PLC0415

        headers = [*_HEADERS, ("Content-Type", "text/event-stream")]
        await self._send(http, h11.Response(status_code=200, headers=headers, reason="OK"))
        if self._is_head:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_left, nursery.cancel_scope)
            beat = Beat(self.feed)
            while True:
                state = with_dropped(self.feed.state(query), beat.dropped)
                await self._send(http, h11.Data(data=b"data: %b\n\n" % state))
                await beat.next(query)

    async def _until_left(self, whole: trio.CancelScope) -> None:
        while await self._bytes.read1():
            pass  # a browser has nothing more to say
        whole.cancel(reason="the browser has left")

    async def _send_json(self, http: Any, answer: Mapping[str, Any]) -> None:
        await self._send_whole(http, 200, "application/json", json.dumps(answer).encode())

    async def _refuse(self, http: Any, status: int, why: str) -> None:
        await self._send_whole(http, status, "text/plain; charset=utf-8", f"{why}\n".encode())

    async def _send_whole(self, http: Any, status: int, kind: str, body: bytes) -> None:
        import h11  # noqa: PLC0415

        headers = [*_HEADERS, ("Content-Type", kind), ("Content-Length", str(len(body)))]
        if status == 405:
            headers.append(("Allow", "GET, HEAD, POST"))
        await self._send(
            http,
            h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase),
            h11.Data(data=b"" if self._is_head else body),
            h11.EndOfMessage(),
        )

    async def _send(self, http: Any, *events: Any) -> None:
        await self._request.send_all(b"".join(http.send(event) or b"" for event in events))


_WITHOUT_H11 = (
    b"HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"The page needs h11: pip install 'trioserver[monitor]'. Lines of JSON work without it.\n"
)


def _header(asked: Any, name: str) -> str | None:
    """A header of a request; None if it has none. Of several that is no text that fits."""
    found = [value for key, value in asked.headers if key == name.encode()]
    return b", ".join(found).decode("latin-1") if found else None


def _check_sender(asked: Any) -> None:
    """Refuse what another page has sent, or what was sent to another host."""
    host = _header(asked, "host") or ""
    name = host if host in LOOPBACK else host.rpartition(":")[0]
    if name.lower() not in LOOPBACK:
        raise Refused(403, f"a Host of this machine was expected, such as localhost, not {host!r}")
    origin = _header(asked, "origin")
    if origin is not None and origin != f"http://{host}":
        raise Refused(403, f"this is not for pages of {origin!r}")


def _target_of(asked: Any) -> SplitResult:
    target: str = asked.target.decode("latin-1")
    try:
        return urlsplit(target)
    except ValueError as error:
        raise Refused(400, f"a URL was expected: {error}") from error


def _check_json(asked: Any) -> None:
    kind = (_header(asked, "content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "application/json was expected")


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadQuery(f"an object of JSON was expected: {error}") from error


def _query_of(values: Mapping[str, str], default: Query) -> Query:
    facts: dict[str, object] = dict(values)
    facts.update(
        {name: _number_in(values, name) for name in ("interval", "most") if name in values}
    )
    return query_from(facts, default)


def _number_in(values: Mapping[str, str], name: str) -> object:
    """What a query says of a number: that, or the text as it is, which is refused then."""
    text = values.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else text
