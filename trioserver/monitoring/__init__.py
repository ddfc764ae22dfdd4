"""Looking at what runs: the tree of all tasks of a Trio program, and its servers.

Whatever shows a tree of tasks is made of Trio's public names alone, so it works in every Trio
program. Each part is loaded with the first look at one of its names.
"""

import typing

from .._published import load as _load

if typing.TYPE_CHECKING:  # see _LATER
    from ._html.as_html import as_html
    from ._lints.linter import Linter
    from ._lints.log_findings import log_findings
    from ._log.json_formatter import JSONLogFormatter
    from ._metrics.opentelemetry import OpenTelemetryObserver
    from ._metrics.prometheus import PrometheusCollector, PrometheusObserver
    from ._monitor.monitor import Monitor
    from ._recording.events import RecordedEvent
    from ._recording.recorder import Recorder
    from ._recording.recording import Recording
    from ._recording.timeline import timeline
    from ._rich.as_rich import as_rich
    from ._schemas.schemas import SNAPSHOT_SCHEMA, TASK_TREE_SCHEMA
    from ._text.as_text import as_text
    from ._text.finding import Finding
    from ._top.feed import ask_monitor
    from ._top.live import LiveScreen
    from ._top.parts import MonitorError
    from ._top.state import MonitorState
    from ._top.top import top
    from ._tree.taking import task_tree, tasks_below
    from ._tree.tree import TaskTree
    from ._tree.views import Cancellation, ScopeView, TaskView
    from ._watchdog.blocked import Blocked
    from ._watchdog.watchdog import Watchdog, watch_loop

__all__ = [  # noqa: RUF022  (in the order of `sorted`)
    "Blocked",
    "Cancellation",
    "Finding",
    "JSONLogFormatter",
    "Linter",
    "LiveScreen",
    "Monitor",
    "MonitorError",
    "MonitorState",
    "OpenTelemetryObserver",
    "PrometheusCollector",
    "PrometheusObserver",
    "RecordedEvent",
    "Recorder",
    "Recording",
    "SNAPSHOT_SCHEMA",
    "ScopeView",
    "TASK_TREE_SCHEMA",
    "TaskTree",
    "TaskView",
    "Watchdog",
    "as_html",
    "as_rich",
    "as_text",
    "ask_monitor",
    "log_findings",
    "task_tree",
    "tasks_below",
    "timeline",
    "top",
    "watch_loop",
]

_LATER = {
    "_html.as_html": ("as_html",),
    "_lints.linter": ("Linter",),
    "_lints.log_findings": ("log_findings",),
    "_log.json_formatter": ("JSONLogFormatter",),
    "_metrics.opentelemetry": ("OpenTelemetryObserver",),
    "_metrics.prometheus": ("PrometheusCollector", "PrometheusObserver"),
    "_monitor.monitor": ("Monitor",),
    "_recording.events": ("RecordedEvent",),
    "_recording.recorder": ("Recorder",),
    "_recording.recording": ("Recording",),
    "_recording.timeline": ("timeline",),
    "_rich.as_rich": ("as_rich",),
    "_schemas.schemas": ("SNAPSHOT_SCHEMA", "TASK_TREE_SCHEMA"),
    "_text.as_text": ("as_text",),
    "_text.finding": ("Finding",),
    "_top.feed": ("ask_monitor",),
    "_top.live": ("LiveScreen",),
    "_top.parts": ("MonitorError",),
    "_top.state": ("MonitorState",),
    "_top.top": ("top",),
    "_tree.taking": ("task_tree", "tasks_below"),
    "_tree.tree": ("TaskTree",),
    "_tree.views": ("Cancellation", "ScopeView", "TaskView"),
    "_watchdog.blocked": ("Blocked",),
    "_watchdog.watchdog": ("Watchdog", "watch_loop"),
}


if not typing.TYPE_CHECKING:  # or checkers would take any name for one of ours

    def __getattr__(name: str) -> typing.Any:
        return _load(__name__, globals(), _LATER, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
