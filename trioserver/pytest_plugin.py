"""Fixtures for tests of Trio clients and servers, for pytest with pytest-trio.

pytest loads this wherever the package is installed, also for those who never use it.
So it imports nothing else than pytest before a test asks for a fixture.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testing import ServerFactory

_FIXTURES = {"trio_server", "scripted_server"}


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
