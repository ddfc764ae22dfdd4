"""How a document looks: by light and by night, on a desk and on a phone."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --quiet: light-dark(#566070, #a3adbb);
  --line: light-dark(#d9dde3, #323842); --bad: light-dark(#b3261e, #ff9a92); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 1rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 1.5rem; }
ul { list-style: none; margin: 0; padding-left: 1.1rem; border-left: 1px solid var(--line); }
li { margin: .25rem 0; overflow-wrap: anywhere; }
code { font-size: .85em; color: var(--quiet); }
.badge { font-size: .8rem; border: 1px solid currentColor; border-radius: .8rem; padding: 0 .5rem; }
.quiet { color: var(--quiet); } .bad { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; } meter { width: 6rem; vertical-align: middle; }
"""  # noqa: E501  (one rule a line)
