"""Rows of pairs leave out no pair, and are fewer than all combinations."""

import itertools

from pairs import all_pairs


def test_any_two_values_of_two_axes_stand_together_in_a_row():
    axes = ["ab", range(3), [None, "x", "y", "z"], ["one"]]
    rows = all_pairs(*axes)
    for (i, one), (j, other) in itertools.combinations(enumerate(axes), 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(one, other))
    assert len(rows) == len(set(rows)) < 24
