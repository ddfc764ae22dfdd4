"""Programs of other people that some tests need."""

import os
import shutil

import pytest


def where_is(name, packages, *, is_complete=True):
    """Where a program is; a test without it is skipped, but in CI it fails.

    Args:
      name: of the program.
      packages: Debian's, which have it.
      is_complete: whether what else it needs is there.
    """
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None or not is_complete:
        message = f"{name} is not installed: apt-get install {packages}"
        if "CI" in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    return path
