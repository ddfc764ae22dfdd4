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
def patch(tmp_path):
    """A patch of a package with one file."""
    file = tmp_path / "wrong-sums.patch"
    file.write_text(PATCH, encoding="utf-8")
    return file


@pytest.fixture
def package(tmp_path):
    """That package, and a test of it, in the place of the repository."""
    package = tmp_path / "repository" / "trioserver"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "pytest_plugin.py").touch()  # pytest looks for it where it is in the place of ours
    (package / "sums.py").write_text(SUMS, encoding="utf-8")
    return package


@pytest.fixture
def root(package, monkeypatch):
    """The folder of that package, which has an empty folder of tests."""
    monkeypatch.setattr(mutants, "ROOT", package.parent)
    (package.parent / "tests").mkdir()
    return package.parent


def write_test(root, *, expected):
    """A test that knows the sum of 1 and 2."""
    source = (
        f"from trioserver.sums import add\ndef test_sum():\n    assert add(1, 2) == {expected}\n"
    )
    (root / "tests" / "test_sums.py").write_text(source.format(expected), encoding="utf-8")


def test_every_patch_applies_and_has_its_test():
    """Nobody has changed what they change, or renamed what must notice."""
    found = mutants.load()
    for mutant in found:
        mutant.check(PACKAGE)
    assert len(found) > 25


def test_patch_is_read(patch):
    """A patch says what it breaks, which test must notice, and how it is done."""
    mutant = Mutant.read(patch)
    assert (mutant.name, mutant.promise) == ("wrong-sums", "sums are right")
    assert (mutant.file, mutant.test) == ("tests/test_sums.py", "test_sum")
    [hunk] = mutant.hunks
    assert hunk.old.endswith("    return a + b\n")
    assert hunk.new.endswith("    return a - b\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PATCH.partition("\n")[2], "must begin with"),
        (PATCH.replace("killed", "noticed"), "must begin with"),
        ("".join(PATCH.splitlines(keepends=True)[:2]), "changes nothing"),
    ],
)
def test_patch_that_is_not_written_as_it_should_be(text, message, patch):
    """A patch without its two lines, or without any other, is named."""
    patch.write_text(text, encoding="utf-8")
    with pytest.raises(Unfit, match=f"wrong-sums: .*{message}"):
        Mutant.read(patch)


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (SUMS.replace("as ever", "as always"), "0 places in trioserver/sums.py"),
        (SUMS * 2, "2 places in trioserver/sums.py"),
        (None, "No such file"),
    ],
)
def test_patch_that_does_not_apply(sums, message, patch, package):
    """A patch whose lines are not there, or not only once, is named."""
    if sums is None:
        (package / "sums.py").unlink()
    else:
        (package / "sums.py").write_text(sums, encoding="utf-8")
    with pytest.raises(Unfit, match=f"wrong-sums: it does not apply any more: .*{message}"):
        Mutant.read(patch).apply(package)


def test_patch_without_its_test(patch, package, root):
    """A test that was renamed is missed at once, and checking has left the package alone."""
    mutant = Mutant.read(patch)
    with pytest.raises(Unfit, match=r"there is no test test_sum in tests/test_sums\.py"):
        mutant.check(package)
    write_test(root, expected=3)
    mutant.check(package)
    assert (package / "sums.py").read_text(encoding="utf-8") == SUMS


@pytest.mark.slow
@pytest.mark.parametrize(("expected", "word"), [(3, "killed"), (-1, "SURVIVED")])
def test_verdict(expected, word, patch, package, root):
    """A test that fails because of the patch kills it; one that passes has not noticed."""
    write_test(root, expected=expected)
    verdict = mutants.judge(Mutant.read(patch), package)
    assert (verdict.word, verdict.ok) == (word, word == "killed")


@pytest.mark.slow
def test_test_that_fails_without_a_patch(patch, package, root):
    """A test that always fails proves nothing."""
    write_test(root, expected=4)
    [problem] = mutants.failing_unpatched([Mutant.read(patch)], package)
    assert "tests/test_sums.py does not pass without any patch" in problem
    assert "1 failed" in problem


@pytest.mark.slow
def test_verdict_without_a_test(patch, package, root):
    """No test that runs is no proof, either."""
    (root / "tests" / "test_sums.py").write_text("import nowhere\n", encoding="utf-8")
    verdict = mutants.judge(Mutant.read(patch), package)
    assert (verdict.ok, verdict.word) == (False, "NOT TESTED")


def test_script(tmp_path):
    """The script checks what is there, and knows what is not."""
    script = [sys.executable, mutants.__file__, "--package", str(PACKAGE)]
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    options = {"capture_output": True, "text": True, "env": environment}
    checked = subprocess.run([*script, "--check", "no-linger"], **options, check=True)
    assert checked.stdout == "1 mutants, 0 problems\n"
    unknown = subprocess.run([*script, "none-such"], **options, check=False)
    assert (unknown.returncode, unknown.stderr) == (1, "no such patch: none-such\n")
