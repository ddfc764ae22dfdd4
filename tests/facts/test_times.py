"""Pauses that grow, and blocks of which is told when their seconds were not enough."""

import trio
from support.scenes import table

from trioserver._facts.backoff import Backoff
from trioserver._facts.bounded import Bounded


def test_pauses_double_up_to_the_longest():
    """And stay there, however many tries fail; a success begins anew."""
    backoff = Backoff(0.1, 5.0)
    assert [backoff.grow() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.is_longest
    assert {backoff.grow() for _ in range(2000)} == {5.0}
    backoff.reset()
    assert not backoff.is_longest
    assert backoff.grow() == 0.1


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
async def test_bounded(seconds, options, told, autojump_clock, caplog):
    """The block is cut, shielded as it is, and that is told once, with an error that none has."""
    bound = Bounded(3, "hook", error=ValueError("first"), **options)
    with trio.move_on_after(0):  # pending, and no concern of what is shielded
        with bound:
            await trio.sleep(seconds)
        assert trio.current_time() == min(seconds, options.get("least", 3.0))
    assert caplog.messages == told
    assert [str(record.exc_info[1]) for record in caplog.records] == ["first"] * len(told)
    assert bound._error is None or not told
