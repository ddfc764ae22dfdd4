"""A recording as a page: one file of HTML with its script and style, and nothing from outside."""

from __future__ import annotations

import html
import importlib.resources

from .recording import Recording, json_of

_UNSAFE = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&"})
"""What could end a script's element. To JSON it is the same text, in ASCII as all of it."""


def timeline(recording: Recording, *, title: str = "Timeline") -> str:
    """A page that shows a recording: the tasks in their nurseries, their scopes, who cancels whom.

    It can be zoomed, moved, gone through event by event, and played. It is one file, and asks for
    nothing else: no network, no other file. What clients and programs have named is text in it,
    whatever it is.

    Args:
      recording: what `Recorder.recording` has returned.
      title: what the page is called.

    Returns:
      The HTML, to be written to a file in UTF-8.

    Raises:
      TypeError: ``recording`` is something else.
    """
    if not isinstance(recording, Recording):
        raise TypeError(f"a Recording was expected, not {recording!r:.99}")
    page = _part("page.html")
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _part("timeline.css"),
        "DATA": _as_script(recording),
        "SCRIPT": "\n".join(map(_part, ("model.js", "drawing.js", "timeline.js"))),
    }
    # Each piece is put where its name is, once: what is in a piece is not looked at again.
    pieces = page.split("@@")
    return "".join(parts.get(piece, piece) for piece in pieces)


def _part(name: str) -> str:
    return importlib.resources.files(__package__).joinpath("page", name).read_text("utf-8")


def _as_script(recording: Recording) -> str:
    """Its JSON, such that it cannot end the script's element that it is in."""
    return "".join(piece.translate(_UNSAFE) for piece in json_of(recording))
