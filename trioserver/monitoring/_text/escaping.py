"""Text that clients and programs have made up, made fit to be shown: on one line, and inert."""

from ..._facts.address import describe, printable

__all__ = ["describe", "printable"]
