"""Fewer rows than all combinations: each value of a parameter still meets each of every other.

    @pytest.mark.parametrize(("kind", "access", "mesh"), all_pairs(KINDS, ACCESS, MESHES))

A fault that needs three values at once may be missed; see Cohen, Dalal, Fredman and Patton (1997),
"The AETG System", for how rare those are, and for the greedy algorithm.
"""

import itertools
from collections.abc import Iterable
from typing import Any


def all_pairs(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Rows of one value of each axis, in which any two values of two axes stand together."""
    values = [list(axis) for axis in axes]
    rows = {
        places: {*itertools.combinations(enumerate(places), 2)}
        for places in itertools.product(*(range(len(axis)) for axis in values))
    }
    left = set().union(*rows.values())
    chosen = []
    while left:
        best = max(rows, key=lambda places: len(rows[places] & left))
        left -= rows.pop(best)
        chosen.append(best)
    return [tuple(values[i][at] for i, at in enumerate(places)) for places in sorted(chosen)]
