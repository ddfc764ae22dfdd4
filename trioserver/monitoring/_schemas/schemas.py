"""The JSON Schemas of snapshots and trees of tasks, as JSON Schema 2020-12 has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final


def _read(name: str) -> Mapping[str, Any]:
    file = resources.files("trioserver.monitoring") / "schemas" / f"{name}.json"
    schema: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return schema


SNAPSHOT_SCHEMA: Final[Mapping[str, Any]] = _read("snapshot")
TASK_TREE_SCHEMA: Final[Mapping[str, Any]] = _read("task_tree")
