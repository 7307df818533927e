"""What a source or a pipeline must deliver, computed without it."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import tfds_datasets

from datarax_tfds.order.order import Order
from datarax_tfds.order.record_order import RecordOrder

N = tfds_datasets.TINY_TRAIN


def numbers_of_epochs(order: RecordOrder, epochs: int) -> np.ndarray:
    """The record numbers of the first epochs in an order."""
    every = [order.host_numbers(epoch, 0, order.length) for epoch in range(epochs)]
    return np.concatenate(every)


def expected_ids(epochs: int = 1) -> list[int]:
    """The ids of the records of `tiny` in the first epochs of seed 5."""
    return numbers_of_epochs(Order(N, 5), epochs).tolist()


def drawn(stages: list[tuple[int, dict[str, int]]], count: int) -> list[tuple[str, int]]:
    """The part, and which of its records, at the first positions of a mixture, one by one.

    Args:
        stages: From which position on which whole weights hold, by part.
        count: The number of positions.
    """
    seen: Counter[str] = Counter()
    found = []
    for position in range(count):
        start, weights = [stage for stage in stages if stage[0] <= position][-1]
        group = sorted((name for name in weights if weights[name]), key=lambda n: (-weights[n], n))
        within, root = position - start, True
        while len(group) > 1:
            first, second = _halves(group, weights, root)
            share = Fraction(sum(weights[n] for n in second), sum(weights[n] for n in group))
            before, after = (math.floor(n * share + Fraction(1, 2)) for n in (within, within + 1))
            group, within = (second, before) if after > before else (first, within - before)
            root = False
        found.append((group[0], seen[group[0]]))
        seen[group[0]] += 1
    return found


def _halves(group: list[str], weights: dict[str, int], root: bool) -> tuple[list[str], list[str]]:
    if root and len(group) == 4:
        return [group[0], group[3]], [group[1], group[2]]
    halves: tuple[list[str], list[str]] = ([], [])
    for name in group:
        sums = [sum(weights[n] for n in half) for half in halves]
        halves[0 if sums[0] <= sums[1] else 1].append(name)
    return halves


def mixed(
    stages: list[tuple[int, dict[str, int]]], orders: dict[str, RecordOrder], count: int
) -> list[tuple[str, int]]:
    """The part and the number of the record at the first positions of a mixture."""
    found = []
    for name, ordinal in drawn(stages, count):
        epoch, position = divmod(ordinal, orders[name].length)
        number = orders[name].host_numbers(epoch, position, position + 1)
        found.append((name, int(number[0])))
    return found
