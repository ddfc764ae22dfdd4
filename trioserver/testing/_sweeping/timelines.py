"""The timeline of a run in which harm was done: it is run once more, and recorded."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ...monitoring import Recorder, timeline
from .surroundings import warnings_into

FOLDER = "TRIOSERVER_TIMELINES"
"""The variable of the environment that says where timelines go; else they go to where temporary
files do."""


def note_timeline(finding: BaseException, run_again: Callable[[Recorder], None]) -> None:
    """Write the timeline of a run, and note on what was found where it is.

    Args:
      finding: what was found in it.
      run_again: does the same once more, with a recorder.
    """
    recorder = Recorder(scopes=True)
    complaints: list[str] = []  # the same as before: what was found says them
    try:
        with warnings_into(complaints):
            run_again(recorder)
            gc.collect()
        finding.add_note(f"its timeline: {_written(recorder, str(finding).partition(chr(10))[0])}")
    except Exception as error:  # noqa: BLE001  (what was found is worth more)
        finding.add_note(f"its timeline could not be written: {error!r}")


def _written(recorder: Recorder, title: str) -> Path:
    folder = os.environ.get(FOLDER) or None
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(".html", "trioserver-sweep-", folder)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  (it is open already)
        file.write(timeline(recorder.recording(), title=title))
    return Path(path)
