"""Lints: what is wrong with a program that runs, found in its tree of tasks and its snapshots.

They know values alone: a tree and snapshots in, findings out. They must not know how a finding is
shown, nor change anything of what they look at. Only `log_findings` looks at a running program.
"""
