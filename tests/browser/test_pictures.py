"""The pictures of the docs are of the views as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
SCRIPT = ROOT / "tests" / "tools" / "pictures.py"

VIEWS = ["document", "monitor", "monitor-phone", "timeline"]


@pytest.fixture(scope="module")
def made(chromium, tmp_path_factory):
    """All pictures, made anew."""
    folder = tmp_path_factory.mktemp("pictures")
    subprocess.run([sys.executable, SCRIPT, folder], check=True, timeout=100)
    return folder


@pytest.mark.parametrize("view", VIEWS)
def test_pictures_show_what_is_so(view, made):
    """What can be read in a picture of the docs is what can be read in the view; see its script."""
    assert (made / f"{view}.txt").read_text() == (PICTURES / f"{view}.txt").read_text()
    assert (PICTURES / f"{view}.png").read_bytes().startswith(b"\x89PNG")


def test_all_pictures_are_looked_at():
    """None is left over."""
    assert sorted(path.stem for path in PICTURES.glob("*.png")) == VIEWS
