"""What the pages on running servers show: commands, units, a container; and that numbers fit."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.installed import where_is
from support.pages import EXAMPLES
from support.scenes import table

from trioserver import Timeouts
from trioserver._cli.commands import COMMANDS, parser

ROOT = EXAMPLES.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.rst")]
UNITS = ROOT / "examples" / "systemd"
CONTAINER = ROOT / "examples" / "container"


def commands():
    """Every command line that a page shows, and where."""
    names = "|".join(COMMANDS)
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text())
        for line in re.findall(
            # Not what is told of a command in a sentence, nor the head of what `top` shows.
            rf"^(?: .*\b)?trioserver (?=(?:{names})\b(?!``|  ))(.*)$",
            f" {text}",
            re.MULTILINE,
        ):
            yield page.name, line.partition(" | ")[0]


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_commands_are_understood(page, line):
    """They can be typed as they stand there."""
    words = shlex.split(line.replace("${CREDENTIALS_DIRECTORY}", "/x"), comments=True)
    assert parser().parse_args(words).chosen


def test_there_are_some():
    """The pages are looked at."""
    assert len(set(commands())) > 15


def test_units(tmp_path):
    """The service manager itself finds nothing to say about them."""
    script = Path(sys.exec_prefix) / "bin" / "trioserver"
    for unit in ("upper.service", "upper.socket"):
        text = (UNITS / unit).read_text()
        installed = text.replace("/opt/upper/venv/bin/trioserver", str(script))
        (tmp_path / unit).write_text(installed.replace("/opt/upper", str(UNITS)))
    command = [
        where_is("systemd-analyze", "systemd"),
        "verify",
        "--man=no",
        str(tmp_path / "upper.service"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    about_ours = [line for line in done.stderr.splitlines() if "upper." in line]
    assert (done.returncode, about_ours) == (0, [])


def seconds_in(text, option):
    """How many seconds an option is given."""
    return int(re.search(rf'"{option}",\s+"(\d+)s"', text)[1])


@table(
    "name",
    {"the manifest": "kubernetes.yaml", "the image": "Containerfile"},
)
def test_times_of_a_container(name):
    """Both have the same command, whose times are those of the page."""
    text = (CONTAINER / name).read_text()
    page = (ROOT / "docs/how-to/containers.rst").read_text()
    ready_off, grace = seconds_in(text, "--ready-off"), seconds_in(text, "--grace")
    cleanup = Timeouts().cleanup
    assert f"{ready_off} s + {grace} s + {cleanup:g} s" in page
    assert f"{ready_off + grace + cleanup:g} s" in page


def test_times_in_kubernetes():
    """A pod that is to end has the time for it, and nobody is sent to it when it drains."""
    text = (CONTAINER / "kubernetes.yaml").read_text()
    page = (ROOT / "docs/how-to/containers.rst").read_text()
    (readiness, liveness) = (
        [int(number) for number in found]
        for found in re.findall(r"periodSeconds: (\d+)\n +failureThreshold: (\d+)", text)
    )
    until_killed = int(re.search(r"terminationGracePeriodSeconds: (\d+)", text)[1])
    ready_off, grace = seconds_in(text, "--ready-off"), seconds_in(text, "--grace")
    noticed = readiness[0] * readiness[1]
    assert noticed < ready_off
    assert ready_off + grace + Timeouts().cleanup < until_killed
    for period, threshold in (readiness, liveness):
        assert f"{period} s x {threshold} = {period * threshold} s" in page
    assert f"{until_killed} s" in page


def test_times_of_the_unit():
    """The service manager waits longer than the program takes to end."""
    text = (UNITS / "upper.service").read_text()
    stop = int(re.search(r"TimeoutStopSec=(\d+)", text)[1])
    assert Timeouts().shutdown + Timeouts().cleanup < stop
