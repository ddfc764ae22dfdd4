"""Fixtures for tests of Trio clients and servers, for pytest with pytest-trio.

pytest loads this wherever the package is installed, also for those who never use it.
So it imports nothing else than pytest before a test asks for a fixture.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .monitoring import Recorder
    from .testing import ServerFactory

_FIXTURES = {"trio_server", "scripted_server", "trio_recorder"}


@pytest.fixture
async def trio_server() -> AsyncIterator[ServerFactory]:
    """Open servers for a test.

    ``server = await trio_server(handler)``, say.

    Takes what `trioserver.testing.open_test_server` takes, and gives a
    `trioserver.testing.RunningServer`. The servers are closed when the test is over, the
    last one first; then what their handlers have raised fails the test, and so do
    requests that still go on a second after it. A server that fails ends the test at once.
    """
    from .testing import open_test_server, servers_of_a_test  # noqa: PLC0415

    async with servers_of_a_test(open_test_server) as open_server:
        yield open_server


@pytest.fixture
async def scripted_server() -> AsyncIterator[ServerFactory]:
    r"""Open servers that follow a script.

    ``server = await scripted_server(expect(b"hello\n"), reply(b"hi\n"))``, say. The same as
    ``trio_server``, for `trioserver.testing.open_scripted_server`.
    """
    from .testing import open_scripted_server, servers_of_a_test  # noqa: PLC0415

    async with servers_of_a_test(open_scripted_server) as open_server:
        yield open_server


@pytest.fixture
async def trio_recorder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Recorder]:
    """Record the test: a `trioserver.monitoring.Recorder`, in its block.

    When the test fails, its timeline is written into the folder of ``--trio-timelines``, or into
    pytest's temporary one, and the report says where. The recorder hears of requests, too, when
    it is in the ``observers`` of a server.
    """
    from .monitoring import Recorder  # noqa: PLC0415

    recorder = Recorder(scopes=True)
    request.node.stash[_RECORDED] = (recorder, tmp_path_factory)
    with recorder:
        yield recorder


_RECORDED = pytest.StashKey[tuple["Recorder", pytest.TempPathFactory]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say where timelines go."""
    parser.getgroup("trioserver").addoption(
        "--trio-timelines",
        metavar="DIR",
        help="where the timeline of a test that fails is written, if it has trio_recorder;"
        " default: pytest's temporary directory",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write the timeline of a test that has failed, and say where it is."""
    report = yield
    if report.failed and _RECORDED in item.stash:
        recorder, folders = item.stash[_RECORDED]
        del item.stash[_RECORDED]  # its tasks are over: what follows is not recorded
        folder = Path(item.config.getoption("--trio-timelines") or folders.getbasetemp())
        report.sections.append(("timeline of the tasks", _write_timeline(recorder, folder, item)))
    return report


def _write_timeline(recorder: Recorder, folder: Path, item: pytest.Item) -> str:
    """Where it is; or why it could not be written, which is no reason to lose the report."""
    from .monitoring import timeline  # noqa: PLC0415

    name = re.sub(r"[^\w.-]+", "-", item.nodeid, flags=re.ASCII).strip("-.")
    path = folder / f"{name[-120:]}.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(timeline(recorder.recording(), title=item.nodeid), "utf-8")
    except Exception as error:  # noqa: BLE001  (it is told)
        return f"could not be written to {path}: {error!r}"
    return str(path)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Say what is wrong with a test that cannot have the fixtures, before anything is set up."""
    for name in _fixtures_of(item):
        if why := _why_not(item):
            pytest.fail(f"the fixture {name} cannot be had here: {why}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Have Ctrl-C, ``pytest.exit`` and a skip mean what they mean, and not just fail the test.

    They leave a test of pytest-trio in a group (0.8.0), which pytest takes for a failure; a
    skip beside what the servers say then, whose clients have not come.
    """
    try:
        return (yield)
    except BaseExceptionGroup as group:
        for kinds in _MEANT_FOR_PYTEST:
            meant = group.subgroup(kinds)
            if meant is not None and _fixtures_of(item):
                raise _first_of(meant) from group
        raise


_MEANT_FOR_PYTEST = (
    (KeyboardInterrupt, pytest.exit.Exception),
    (pytest.skip.Exception, pytest.xfail.Exception),
)
"""What is not a failure of the test, the first first."""


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


def _fixtures_of(item: pytest.Item) -> set[str]:
    """Which of the fixtures a test has."""
    return _FIXTURES.intersection(getattr(item, "fixturenames", ()))


def _why_not(item: pytest.Item) -> str:
    """Why a test cannot have servers in Trio; ``""`` if it can."""
    if not item.config.pluginmanager.hasplugin("trio"):
        return "it needs pytest-trio, which is not installed"
    if "anyio_backend" in getattr(item, "fixturenames", ()):
        return (
            "it needs pytest-trio, and this test is run by the plugin of anyio; open the server"
            " in the test: async with trioserver.testing.open_test_server(...)"
        )
    if not _is_async(_function_of(item)):
        return "the test is not async; for such tests there is trioserver.testing.serve_in_thread"
    if item.get_closest_marker("trio") is None:
        return "the test is not run by pytest-trio: mark it (pytest.mark.trio), or set trio_mode"
    return ""


def _is_async(function: Any) -> bool:
    # The second attempt at a test (pytest-rerunfailures) finds it as pytest-trio has wrapped it.
    wrapped = getattr(function, "_trio_test_runner_wrapped", False)
    return wrapped or inspect.iscoroutinefunction(function)


def _function_of(item: pytest.Item) -> Any:
    """What the test runs; of one of Hypothesis, what that runs many times."""
    function = getattr(item, "obj", None)
    return getattr(getattr(function, "hypothesis", None), "inner_test", function)
