"""The mutants: they can still be applied, and the tests that must notice them exist.

Whether these notice is tried by ``python tests/tools/mutants.py``, which takes minutes.
"""

import os
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
from mutants import Mutant, Unfit
from support.scenes import table

import trioserver

PACKAGE = Path(trioserver.__file__).parent

PATCH = """\
# breaks: sums are right
# killed by: tests/test_sums.py -k test_sum
--- a/trioserver/sums.py
+++ b/trioserver/sums.py
@@ -1,3 +1,3 @@
 def add(a, b):
     # as ever
-    return a + b
+    return a - b
"""
SUMS = "# Sums.\n\ndef add(a, b):\n    # as ever\n    return a + b\n"


@pytest.fixture
def patch(tmp_path, monkeypatch):
    """A patch of a package with one file, in the place of ours, and no tests yet."""
    root, patch = tmp_path / "repository", tmp_path / "wrong-sums.patch"
    monkeypatch.setattr(mutants, "ROOT", root)
    for folder in ("trioserver", "tests"):
        (root / folder).mkdir(parents=True)
    # pytest looks for its plugin where it is in the place of ours.
    files = {"__init__.py": "", "pytest_plugin.py": "", "sums.py": SUMS}
    for name, source in files.items():
        (root / "trioserver" / name).write_text(source, "utf-8")
    patch.write_text(PATCH, "utf-8")
    return patch


def in_repository(*parts):
    """A path in the place of ours."""
    return mutants.ROOT.joinpath(*parts)


def write_test(source):
    """A test of that package."""
    in_repository("tests", "test_sums.py").write_text(source, "utf-8")


def sum_is(expected):
    """A test that knows the sum of 1 and 2."""
    return f"from trioserver.sums import add\ndef test_sum(): assert add(1, 2) == {expected}\n"


def test_every_patch_applies_and_has_its_test():
    """Nobody has changed what they change, or renamed what must notice."""
    found = mutants.load()
    for mutant in found:
        mutant.check(PACKAGE)
    assert len(found) > 25


STALE = "it does not apply any more: "


@table(
    "text, sums, message",
    {
        "no promise": (PATCH.partition("\n")[2], SUMS, "it must begin with"),
        "no test": (PATCH.replace("killed", "noticed"), SUMS, "it must begin with"),
        "no change": (PATCH[: PATCH.index("---")], SUMS, "it changes nothing"),
        "its lines are not there": (
            *(PATCH, SUMS.replace("as ever", "as always")),
            f"{STALE}0 places in trioserver/sums.py",
        ),
        "or twice": (PATCH, SUMS * 2, f"{STALE}2 places in trioserver/sums.py"),
        "nor is its file": (
            PATCH.replace("sums.py", "no.py"),
            "",
            f"{STALE}.*No such file",
        ),
    },
)
def test_unfit_patch(text, sums, message, patch):
    """A patch that is not written as it should be, or does not apply, is named."""
    patch.write_text(text, "utf-8")
    in_repository("trioserver", "sums.py").write_text(sums, "utf-8")
    with pytest.raises(Unfit, match=f"wrong-sums: {message}"):
        Mutant.read(patch).changed(in_repository("trioserver"))


def test_patch_without_its_test(patch):
    """A test that was renamed is missed at once, and checking has left the package alone."""
    mutant, package = Mutant.read(patch), in_repository("trioserver")
    with pytest.raises(Unfit, match=r"there is no test test_sum in tests/test_sums\.py"):
        mutant.check(package)
    write_test(sum_is(3))
    mutant.check(package)
    assert (package / "sums.py").read_text("utf-8") == SUMS


@pytest.mark.slow
@table(
    "source, word",
    {
        "A test that fails because of the patch kills it": (sum_is(3), "killed"),
        "One that passes has not noticed": (sum_is(-1), "SURVIVED"),
        "No test that runs is no proof, either": ("import nowhere\n", "NOT TESTED"),
    },
)
def test_verdict(source, word, patch):
    """What became of a patch."""
    write_test(source)
    verdict = mutants.judge(Mutant.read(patch), in_repository("trioserver"))
    assert (verdict.word, verdict.ok) == (word, word == "killed")


@pytest.mark.slow
def test_test_that_fails_without_a_patch(patch):
    """A test that always fails proves nothing."""
    write_test(sum_is(4))
    [tests] = mutants.tests_of([Mutant.read(patch)]).items()
    problem = mutants.failing_unpatched(tests, in_repository("trioserver"))
    assert "tests/test_sums.py does not pass without any patch" in problem
    assert "1 failed" in problem


def test_script(tmp_path):
    """The script checks what is there, and knows what is not."""
    script = [sys.executable, mutants.__file__, "--package", str(PACKAGE)]
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    options = {"capture_output": True, "text": True, "env": environment}
    checked = subprocess.run([*script, "--check", "no-linger"], **options, check=True)
    assert checked.stdout == "1 mutants, 0 problems\n"
    unknown = subprocess.run([*script, "none-such"], **options, check=False)
    assert (unknown.returncode, unknown.stderr) == (1, "no such patch: none-such\n")
