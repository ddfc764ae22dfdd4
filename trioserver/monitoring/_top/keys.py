"""What is typed, as the names of keys: of the bytes that a terminal sends for them."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

import attrs

_NAMES = {
    "A": "up",
    "B": "down",
    "H": "home",
    "F": "end",
    "1~": "home",
    "4~": "end",
    "7~": "home",
    "8~": "end",
    "5~": "page up",
    "6~": "page down",
}
_PLAIN = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace"}
_SEQUENCE = re.compile(r"\x1b(?:\[([0-9;]*[@-~])|O([@-~]))")
_BEGUN = re.compile(r"\x1b(?:\[[0-9;]*|O)?")
_LONGEST = 16
"""Characters of a sequence; what goes on for longer is none."""


@attrs.define
class Keys:
    """Makes keys of bytes, as they come; a sequence may come in parts."""

    _decoder: codecs.IncrementalDecoder = attrs.field(
        factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    _rest: str = ""

    @property
    def has_begun(self) -> bool:
        """Whether what came last may be the Esc key, or the beginning of another one."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[str]:
        """The keys that are whole: ``up``, ``esc``, ``enter``, or a character."""
        text = self._rest + self._decoder.decode(data)
        self._rest = ""
        return list(self._keys(text))

    def _keys(self, text: str) -> Iterator[str]:
        while text:
            if text[0] != "\x1b":
                if text[0] in _PLAIN or text[0].isprintable():
                    yield _PLAIN.get(text[0], text[0])
                text = text[1:]
            elif found := _SEQUENCE.match(text):
                name = _NAMES.get((found[1] or found[2]).replace("1;5", ""))
                if name is not None:
                    yield name
                text = text[found.end() :]
            elif len(text) < _LONGEST and _BEGUN.fullmatch(text):
                self._rest = text
                return
            else:
                yield "esc"
                text = text[1:]

    def flush(self) -> list[str]:
        """Nothing more has come for a while: what has begun was the Esc key."""
        had_begun, self._rest = self._rest, ""
        return ["esc"] if had_begun else []
