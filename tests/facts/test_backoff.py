"""Pauses that grow."""

import itertools

from trioserver._facts.backoff import Backoff


def test_pauses_double_up_to_the_longest():
    """And stay there, however many tries fail; a success begins anew."""
    backoff = Backoff(0.1, 5.0)
    assert [backoff.grow() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.is_longest
    assert {backoff.grow() for _ in itertools.repeat(None, 2000)} == {5.0}
    backoff.reset()
    assert not backoff.is_longest
    assert backoff.grow() == 0.1
