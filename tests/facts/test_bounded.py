"""A block that has so many seconds, and of which is told when they were not enough."""

import trio
from support.scenes import table

from trioserver._facts.bounded import Bounded


@table(
    "seconds, options, told",
    {
        "in time": (2, {}, []),
        "too late": (4, {}, ["hook did not end within 3 s (cleanup)"]),
        "of a request": (4, {"whose": "7"}, ["hook did not end within 3 s (cleanup), for 7"]),
        "in time, as it has more": (4, {"least": 5.0}, []),
        "too late, and done all the same": (4, {"unless": lambda: True}, []),
        "of two time-outs": (4, {"bound": "a and b"}, ["hook did not end within 3 s (a and b)"]),
    },
)
async def test_bounded(
    seconds,
    options,
    told,
    autojump_clock,
    caplog,
):
    """The block is cut, shielded as it is, and that is told once."""
    with trio.move_on_after(0):  # pending, and no concern of what is shielded
        with Bounded(3, "hook", **options):
            await trio.sleep(seconds)
        assert trio.current_time() == min(seconds, options.get("least", 3.0))
    assert caplog.messages == told


async def test_error_is_shown_and_not_held(autojump_clock, caplog):
    """An error that nobody else may tell stands with the message."""
    bound = Bounded(3, "hook", error=ValueError("first"))
    with bound:
        await trio.sleep(4)
    [record] = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "first"
    assert bound._error is None
