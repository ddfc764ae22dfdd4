"""What those need of other tasks who follow them from step to step; see `_facts.trio_tasks`."""

from ..._facts.address import describe, printable
from ..._facts.events import request_of
from ..._facts.trio_tasks import (
    cancellation_of,
    innermost,
    is_as_before,
    is_cancelled,
    own_scopes,
    task_number,
    values_of,
)

__all__ = [
    "cancellation_of",
    "describe",
    "innermost",
    "is_as_before",
    "is_cancelled",
    "own_scopes",
    "printable",
    "request_of",
    "task_number",
    "values_of",
]
