"""Documents cut into sequences, and the choice among them."""

from __future__ import annotations

import numpy as np

from halfbyte.quant.calibration.packing import chosen, packed, shares


def test_documents_are_joined_and_split_not_dropped() -> None:
    table = packed([[1, 2, 3], [4, 5, 6, 7], [8]], 3)
    assert table.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert packed([[1, 2, 3], [4]], 2, first_token=9).tolist() == [[9, 2], [9, 4]]
    framed = packed([[1, 2, 3, 4, 5]], 4, prefix=[101], suffix=[102])
    assert framed.tolist() == [[101, 1, 2, 102], [101, 3, 4, 102]]
    assert packed([], 4).shape == (0, 4)
    assert packed([[1] * 9], 2, prefix=[0], suffix=[0]).shape == (0, 2)


def test_the_choice_is_seeded_over_the_whole() -> None:
    # The stream of numpy's legacy generator is fixed for good, so are these.
    assert chosen(10, 4, 0).tolist() == [2, 4, 8, 9]
    assert chosen(10, 4, 1).tolist() == [2, 4, 6, 9]
    assert chosen(4, 4, 7).tolist() == chosen(4, 9, 8).tolist() == [0, 1, 2, 3]
    assert np.ptp(chosen(10_000, 50, 3)) > 8000


def test_sources_give_alike_as_far_as_they_can() -> None:
    assert shares([100, 100], 10) == [5, 5]
    assert shares([2, 100, 100], 12) == [2, 5, 5]
    assert shares([1, 2], 10) == [1, 2]
    assert shares([5, 5, 5], 4) == [2, 1, 1]
    assert sum(shares([7, 1, 30, 2], 25)) == 25
