"""What a source or a pipeline must deliver, computed without it."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import tfds_datasets

from datarax_tfds.order.keys import record_keys
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


def concatenated(documents: list[list[int]], length: int) -> list[list[tuple[int, int, int]]]:
    """The (token, segment, position) triples of each row, of documents one after the other."""
    stream = [(number, token) for number, ids in enumerate(documents) for token in ids]
    rows = []
    for start in range(0, len(stream), length):
        row: list[tuple[int, int, int]] = []
        last, segment, position = None, 0, 0
        for number, token in stream[start : start + length]:
            if number != last:
                last, segment, position = number, segment + 1, 0
            row.append((token, segment, position))
            position += 1
        rows.append(row)
    return rows


def best_fitted(sizes: list[int], length: int) -> list[list[tuple[int, int, int]]]:
    """The (document, start, tokens) pieces of each row of one window, by trying every row."""
    rows: list[list[tuple[int, int, int]]] = []
    for number, size in enumerate(sizes):
        rows += [[(number, start, length)] for start in range(0, size - length + 1, length)]
    full = len(rows)
    rests = [(size % length, number) for number, size in enumerate(sizes) if size % length]
    for size, number in sorted(rests, key=lambda rest: (-rest[0], rest[1])):
        free = [length - sum(count for *_, count in row) for row in rows]
        fitting = [(free[at], at) for at in range(full, len(rows)) if free[at] >= size]
        if not fitting:
            rows.append([])
            fitting = [(length, len(rows) - 1)]
        rows[min(fitting)[1]].append((number, sizes[number] - size, size))
    return [sorted(row) for row in rows]


def bucketed(
    base: RecordOrder, buckets: list[int], run: int, window: int, continuous: bool, epoch: int
) -> list[int]:
    """The record numbers of an epoch in which records of a bucket come in runs, one by one."""
    numbers = base.host_numbers(epoch, 0, base.length).tolist()
    lead = (-epoch * base.length) % run if continuous else 0
    starts = [0, *range(lead + window, base.length, window)]
    arranged = []
    for start, stop in zip(starts, [*starts[1:], base.length], strict=True):
        waiting: dict[int, list[int]] = {bucket: [] for bucket in sorted(set(buckets))}
        runs = []
        for number in numbers[start:stop]:
            own = waiting[buckets[number]]
            own.append(number)
            if len(own) == run:
                runs.append(list(own))
                own.clear()

        def rank(run: list[int]) -> tuple[int, ...]:
            if base.seed is None:
                return (numbers.index(run[0]),)
            words = record_keys(base.seed, epoch, np.array(run[:1]))[0].astype(np.int64).tolist()
            return (words[0] << 32 ^ words[1],)

        runs.sort(key=rank)
        first = lead if start == 0 else 0
        if first > sum(map(len, waiting.values())) and runs:
            broken = runs.pop()
            waiting[buckets[broken[0]]][:0] = broken
        rest = [number for own in waiting.values() for number in own]
        first = min(first, len(rest))
        arranged += [rest.pop() for _ in range(first)]
        arranged += [number for each in runs for number in each] + rest
    return arranged
