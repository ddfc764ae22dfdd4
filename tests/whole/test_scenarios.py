"""The catalogue of scenarios: complete for this suite, and able to complain."""

import scenarios
from support.scenes import table

ALL = scenarios.SCENARIOS
NEITHER, UNKNOWN = "neither tested nor excused", "no such scenario"
# What tests name, what the README excuses, and what is wrong with that.
SUITES = {
    "no test names it": (ALL - {"LC-03"}, "", [f"LC-03: {NEITHER}"]),
    "a reason excuses it": (ALL - {"LC-03"}, "- LC-03: not offered\n", []),
    "a line without a reason does not": (ALL - {"LC-03"}, "- LC-03: \n", [f"LC-03: {NEITHER}"]),
    "an excuse is out of date": (ALL, "- LC-03: no\n", ["LC-03: both tested and excused"]),
    "no such id, wherever it stands": (
        *(ALL | {"LC-99"}, "- ZZ-01: no\n", [f"LC-99: {UNKNOWN}", f"ZZ-01: {UNKNOWN}"]),
    ),
}


def test_every_scenario_is_tested_or_excused():
    """This suite leaves no scenario out."""
    assert scenarios.problems() == []


@table("named, excuses, problems", SUITES)
def test_problems(named, excuses, problems, tmp_path):
    """Only docstrings of tests count: an id in a comment or in a helper proves nothing."""
    source = f"async def test_all():\n    '''{', '.join(named)}: survived.'''\n"
    source += "def helper():\n    '''LC-03'''\n    # LC-03\n"
    (tmp_path / "test_all.py").write_text(source, encoding="utf-8")
    (tmp_path / "README.md").write_text(excuses, encoding="utf-8")
    assert scenarios.problems(tmp_path) == problems
