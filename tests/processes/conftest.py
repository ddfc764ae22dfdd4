"""What tests of whole programs with worker processes share."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from support.processes import ENVIRONMENT


@pytest.fixture
def start(tmp_path):
    """Starts programs, each in a process group of its own, as a shell does."""
    programs = []

    def begin(text, *arguments):
        path = tmp_path / "program.py"
        path.write_text(text)
        program = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
            text=True,
            process_group=0,
            env=ENVIRONMENT,
        )
        programs.append(program)
        return program

    yield begin
    for program in programs:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.communicate()


@pytest.fixture
def missing(tmp_path):
    """What some workers cannot start with, while there is this file."""
    return tmp_path / "missing"
