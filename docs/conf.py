"""How Sphinx builds these pages: `sphinx-build -W --keep-going -n docs docs/_build`."""

from __future__ import annotations

import builtins
import os
import re
import sys
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "trioserver"
author = "The trioserver maintainers"
project_copyright = "the trioserver contributors"
release = metadata.version("trioserver")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxarg.ext",  # the reference of the command line, from its parser
    "sphinxcontrib_trio",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"trioserver {release}"

smartquotes = False  # an option begins with two hyphens
default_role = "obj"  # `trioserver.Limits` is a link, in docstrings as here
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
autodoc_typehints = "signature"
napoleon_numpy_docstring = False

# Every reference must lead somewhere.
nitpicky = True

# Links into other projects' pages need their inventories, which are fetched. A
# build must work without a network, so they are asked for:
#
#     TRIOSERVER_DOCS_INTERSPHINX=1 sphinx-build ...
#
# Without them the names of Python, Trio and attrs are taken on trust; a wrong
# name of our own is an error either way.
if os.environ.get("TRIOSERVER_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "trio": ("https://trio.readthedocs.io/en/stable", None),
        "attrs": ("https://www.attrs.org/en/stable", None),
    }
else:
    _modules = "|".join(sorted({*sys.stdlib_module_names, "attr", "attrs", "trio"}))
    _builtins = "|".join(sorted(vars(builtins)))
    nitpick_ignore_regex = [("py:.*", rf"({_modules})(\..+)?|({_builtins})(\.\w+)?")]


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement
) -> Element | None:
    """Link `trioserver._room.Name`, as signatures print it, to `trioserver.Name`."""
    private = re.fullmatch(r"trioserver\.(?:_\w+\.)+([\w.]+)", node.get("reftarget", ""))
    if private is None:
        return None
    return env.domains.python_domain.resolve_xref(
        env,
        node["refdoc"],
        app.builder,
        node["reftype"],
        f"trioserver.{private[1]}",
        node,
        content,
    )


def setup(app: Sphinx) -> None:
    """Connect the hook above."""
    app.connect("missing-reference", resolve_public_name)
