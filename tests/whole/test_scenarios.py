"""The catalogue of scenarios: complete for this suite, and able to complain."""

import scenarios


def suite(folder, *, named, excuses=""):
    """A folder of tests: one test that names some ids, and a README."""
    lines = ["async def test_all():", f"    '''{', '.join(sorted(named))}: survived.'''"]
    (folder / "test_all.py").write_text("\n".join(lines), encoding="utf-8")
    (folder / "README.md").write_text(excuses, encoding="utf-8")
    return folder


def test_every_scenario_is_tested_or_excused():
    """This suite leaves no scenario out."""
    assert scenarios.problems() == []


def test_scenario_left_out(tmp_path):
    """A scenario that no test names is a problem."""
    tests = suite(tmp_path, named=scenarios.SCENARIOS - {"LC-03"})
    assert scenarios.problems(tests) == ["LC-03: neither tested nor excused"]


def test_scenario_excused(tmp_path):
    """A line with a reason excuses a scenario; one without does not."""
    named = scenarios.SCENARIOS - {"LC-03", "LC-10"}
    tests = suite(tmp_path, named=named, excuses="- LC-03: not offered\n- LC-10: \n")
    assert scenarios.problems(tests) == ["LC-10: neither tested nor excused"]


def test_scenario_tested_and_excused(tmp_path):
    """An excuse for what is tested is out of date, and a problem."""
    tests = suite(tmp_path, named=set(scenarios.SCENARIOS), excuses="- LC-03: not offered\n")
    assert scenarios.problems(tests) == ["LC-03: both tested and excused"]


def test_scenario_unknown(tmp_path):
    """An id that does not exist is a problem, wherever it stands."""
    named = scenarios.SCENARIOS | {"LC-99"}
    tests = suite(tmp_path, named=named, excuses="- ZZ-01: not offered\n")
    assert scenarios.problems(tests) == ["LC-99: no such scenario", "ZZ-01: no such scenario"]


def test_only_docstrings_of_tests_count(tmp_path):
    """An id in a comment or in a helper proves nothing."""
    tests = suite(tmp_path, named=scenarios.SCENARIOS - {"LC-03"})
    source = "def helper():\n    '''LC-03'''\n    # LC-03\n"
    (tests / "test_other.py").write_text(source, encoding="utf-8")
    assert scenarios.problems(tests) == ["LC-03: neither tested nor excused"]
