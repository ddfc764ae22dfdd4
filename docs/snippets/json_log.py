"""Set the log up so that programs can read it."""

import logging

from trioserver import RequestLogFilter
from trioserver.monitoring import JSONLogFormatter


def set_up_logging() -> None:
    """Write each record as a line of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLogFormatter())
    handler.addFilter(RequestLogFilter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
