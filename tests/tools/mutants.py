"""Break the library in known ways, and see that the tests notice.

    python tests/tools/mutants.py                         # all of tests/mutants
    python tests/tools/mutants.py no-linger --jobs 1

Each patch in tests/mutants breaks one promise, and says which test must fail
then. The package is copied, the patch applied to the copy, and the test run
against it. Without a patch all of those tests have to pass. Prints a line for
each patch; exits 1 if a test did not notice, or a patch does not apply.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Self

import attrs

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = ROOT / "tests" / "mutants"
PACKAGE = "trioserver"

SECONDS = 120
"""How long the tests of one patch may take. One that never ends is noticed, too."""

PASSED, FAILED = 0, 1  # of pytest; other codes mean that no test was run

_HEADER = re.compile(
    r"\A# breaks: (?P<promise>\S.*)\n# killed by: (?P<file>\S+\.py) -k (?P<test>\S+)\n"
)
_HUNK = re.compile(r"^@@ .*\n", re.MULTILINE)


class Unfit(Exception):
    """A patch cannot be used; the message names it and says why."""


@attrs.frozen
class Hunk:
    """A few lines of a file, and what to put in their place."""

    file: str
    old: str
    new: str

    def replaced_in(self, text: str) -> str:
        """The file's text with these lines replaced. Where they stand is of no importance.

        Raises:
          ValueError: they are not there, or more than once.
        """
        if text.count(self.old) != 1:
            raise ValueError(f"{text.count(self.old)} places in {self.file} look like\n{self.old}")
        return text.replace(self.old, self.new)


@attrs.frozen
class Mutant:
    """A way to break the library.

    Attributes:
      name: what it is called: the name of its patch.
      promise: what it breaks.
      file: where the test is that has to fail.
      test: which one: its name, with parameters in brackets if not all will do.
      hunks: how.
    """

    name: str
    promise: str
    file: str
    test: str
    hunks: Sequence[Hunk]

    @classmethod
    def read(cls, patch: Path) -> Self:
        """Read a patch.

        Raises:
          Unfit: it is not written as it should be.
        """
        text = patch.read_text(encoding="utf-8")
        header = _HEADER.match(text)
        if header is None:
            raise Unfit(f"{patch.stem}: it must begin with '# breaks:' and '# killed by:'")
        hunks = list(_hunks(text))
        if not hunks:
            raise Unfit(f"{patch.stem}: it changes nothing")
        return cls(patch.stem, header["promise"], header["file"], header["test"], hunks)

    def changed(self, package: Path) -> Mapping[Path, str]:
        """The files of the package that it changes, and what they become.

        Raises:
          Unfit: it does not apply any more.
        """
        texts: dict[Path, str] = {}
        for hunk in self.hunks:
            path = package.parent / hunk.file
            try:
                text = texts[path] if path in texts else path.read_text(encoding="utf-8")
                texts[path] = hunk.replaced_in(text)
            except (OSError, ValueError) as error:
                raise Unfit(f"{self.name}: it does not apply any more: {error}") from error
        return texts

    def apply(self, package: Path) -> None:
        """Apply it to a copy of the package, whose files may be links to those of another one.

        Raises:
          Unfit: it does not apply any more.
        """
        for path, text in self.changed(package).items():
            path.unlink()
            path.write_text(text, encoding="utf-8")
            # What was compiled before might pass for it, if it is as long and of the same second.
            Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)

    def check(self, package: Path) -> None:
        """See whether it applies, and whether there is such a test.

        Raises:
          Unfit: one of them is not so.
        """
        self.changed(package)
        file = ROOT / self.file
        if not file.exists() or self.test.partition("[")[0] not in _names_of_tests(file):
            raise Unfit(f"{self.name}: there is no test {self.test} in {self.file}")


def _hunks(text: str) -> Iterator[Hunk]:
    """The hunks of a unified diff."""
    for part in re.split(r"^--- .*\n", text, flags=re.MULTILINE)[1:]:
        file, *bodies = _HUNK.split(part)
        for body in bodies:
            lines = body.splitlines(keepends=True)
            yield Hunk(
                file=file.removeprefix("+++ b/").strip(),
                old="".join(line[1:] for line in lines if line[0] in " -"),
                new="".join(line[1:] for line in lines if line[0] in " +"),
            )


def _names_of_tests(file: Path) -> set[str]:
    tree = ast.parse(file.read_bytes())
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


@contextmanager
def copied(package: Path, copy: Callable[[str, str], object] = shutil.copy2) -> Iterator[Path]:
    """A copy of the package, for a ``with`` block."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        yield Path(shutil.copytree(package, Path(folder, PACKAGE), copy_function=copy))


# Running tests ---------------------------------------------------------------------


@attrs.frozen
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    ok: bool
    word: str
    seconds: float
    output: str = ""

    def __str__(self) -> str:
        return f"{self.mutant.name:26} {self.word:10} {self.seconds:5.1f} s  {self.mutant.promise}"


def run_tests(package: Path, file: str, tests: Sequence[str]) -> tuple[int | None, str]:
    """Run tests against a copy of the package; pytest's code, None if they do not end."""
    environment = _environment(package)
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", ""]
    try:
        done = _run([*pytest, file, "-k", " or ".join(tests)], environment)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def see_that_copies_are_tested(package: Path) -> None:
    """Tests import the copy that they are told of, and not what is installed here."""
    where = "import trioserver; print(trioserver.__file__, end='')"
    imported = _run([sys.executable, "-c", where], _environment(package)).stdout
    if Path(imported).parent.resolve() != package.resolve():
        raise RuntimeError(f"not the copy would be tested, but {imported}")


def _environment(package: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(package.parent),
        "PYTHONSAFEPATH": "1",  # or the working directory comes first, with the real one
    }


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def judge(mutant: Mutant, package: Path) -> Verdict:
    """Break a copy of the package, on the same file system, and run the test that has to notice."""
    began = time.perf_counter()
    with copied(package, os.link) as copy:
        mutant.apply(copy)
        code, output = run_tests(copy, mutant.file, [mutant.test])
    word = {PASSED: "SURVIVED", FAILED: "killed", None: "killed"}.get(code, "NOT TESTED")
    return Verdict(mutant, word == "killed", word, time.perf_counter() - began, output)


def tests_of(mutants: Sequence[Mutant]) -> Mapping[str, Sequence[str]]:
    """The tests that have to notice them, by their files."""
    tests: dict[str, set[str]] = defaultdict(set)
    for mutant in mutants:
        tests[mutant.file].add(mutant.test)
    return {file: sorted(names) for file, names in tests.items()}


def failing_unpatched(tests: tuple[str, Sequence[str]], package: Path) -> str | None:
    """The output of the tests of a file, if they fail although nothing is broken."""
    file, names = tests
    code, output = run_tests(package, file, names)
    return None if code == PASSED else f"{file} does not pass without any patch:\n{output}"


# The script ------------------------------------------------------------------------


def load(names: Sequence[str] = (), folder: Path = MUTANTS) -> list[Mutant]:
    """The mutants of these names, or all of them.

    Raises:
      Unfit: one is not written as it should be, or there is none of that name.
    """
    patches = {patch.stem: patch for patch in sorted(folder.glob("*.patch"))}
    if unknown := [name for name in names if name not in patches]:
        raise Unfit(f"no such patch: {', '.join(unknown)}")
    return [Mutant.read(patches[name]) for name in names or patches]


def problems(mutants: Sequence[Mutant], package: Path, jobs: int) -> Iterator[str]:
    """Print a line for each mutant; what is wrong."""
    with copied(package) as copy, ThreadPoolExecutor(jobs) as pool:
        see_that_copies_are_tested(copy)
        compileall.compile_dir(copy, quiet=1)  # once, and not for each mutant
        unpatched = pool.map(partial(failing_unpatched, package=copy), tests_of(mutants).items())
        yield from filter(None, unpatched)
        for verdict in pool.map(partial(judge, package=copy), mutants):
            print(verdict, flush=True)
            if not verdict.ok:
                mutant = verdict.mutant
                yield f"{mutant.name}: {mutant.test} of {mutant.file}\n{verdict.output}"


def main() -> None:
    """Try the mutants; exit 1 if one of them lives."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="which patches; all of them without any")
    # Three on two cores: what a mutant breaks often has its test wait for a bound.
    parser.add_argument("--jobs", type=int, default=3, help="how many to try at once")
    parser.add_argument("--check", action="store_true", help="only see whether they apply")
    parser.add_argument("--package", type=Path, default=ROOT / PACKAGE, help="what to break")
    options = parser.parse_args()
    try:
        mutants = load(options.names)
        for mutant in mutants:
            mutant.check(options.package)
        found = [] if options.check else list(problems(mutants, options.package, options.jobs))
    except Unfit as unfit:
        sys.exit(str(unfit))
    for problem in found:
        print(problem)
    print(f"{len(mutants)} mutants, {len(found)} problems")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
