"""What the tests of the documentation, of its snippets, and of the examples share."""

import importlib.util
import sys
from pathlib import Path

import attrs

from trioserver.testing import MemoryMixIn

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = DOCS.parent / "examples"
MEMORY = ("memory", 1)


def example(name):
    """An example, imported."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def page(name):
    """The source of a page."""
    return (DOCS / f"{name}.rst").read_text(encoding="utf-8")


def assert_shown(lines, name):
    """Each line is somewhere on the page."""
    shown = page(name)
    for line in lines.splitlines():
        assert line in shown


def in_memory(server):
    """The same server, in memory."""
    kind = type("InMemory", (MemoryMixIn, type(server)), {})
    fields = attrs.fields_dict(type(server)).values()
    values = {field.alias: getattr(server, field.name) for field in fields}
    return kind(**{**values, "server_address": MEMORY})
