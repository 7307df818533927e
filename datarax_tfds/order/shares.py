"""Deals positions out to the parts of a mixture by their weights, in exact integer arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np

# Products of two weights then fit an int64, on the host and on the devices.
MAX_SUM = 2**30

_ROUNDED_SUM = 10**6  # weights with a larger sum than `MAX_SUM` are rounded to millionths


class Node(NamedTuple):
    """A group of parts, which is split in two; or one part.

    Of the first `m` positions of the group, `floor(m * weight / whole + 1/2)` are those of its
    second half. With one part, `whole` and `weight` are 1, and both halves are the node itself.

    Args:
        whole: The sum of the weights of the group.
        weight: The sum of the weights of its second half.
        first: The number of the node of its first half.
        second: The number of the node of its second half.
        part: The part; -1 if there are several.
    """

    whole: int
    weight: int
    first: int
    second: int
    part: int


@dataclass(frozen=True)
class Shares:
    """Which part of a mixture has each position, from 0 on.

    The parts are split into two halves of about equal weight, and each half again, down to single
    parts. At each split, the first `m` positions are dealt out by rounding `m` times the share of
    a half. So a position is found in as many steps as there are splits above its part, anywhere in
    a run, and each prefix has the share of every part up to less than one record (less than two,
    if there are more than four parts). It repeats after as many positions as the weights add up to.

    Args:
        weights: A whole number for each part; their sum is at most `MAX_SUM`.
        names: Parts of equal weight are ordered by name.
    """

    weights: tuple[int, ...]
    names: tuple[str, ...]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The groups of parts; that of all parts is number 0."""
        parts = [part for part, weight in enumerate(self.weights) if weight]
        parts.sort(key=lambda part: (-self.weights[part], self.names[part]))
        nodes: list[Node] = []
        self._add_group(parts, nodes)
        return tuple(nodes)

    def _add_group(self, parts: list[int], nodes: list[Node]) -> int:
        """Adds the nodes of these parts, the heaviest first. Returns the number of their own."""
        number = len(nodes)
        if len(parts) == 1:
            nodes.append(Node(1, 1, number, number, parts[0]))
            return number
        nodes.append(Node(0, 0, 0, 0, -1))  # replaced below: the numbers of the halves come first
        halves: tuple[list[int], list[int]] = ([], [])
        if len(parts) == 4 and number == 0:
            # Two levels keep four parts within one record of their shares; three would not.
            halves = [parts[0], parts[3]], parts[1:3]
        else:
            sums = [0, 0]
            for part in parts:  # the heaviest first, each to the lighter half
                lighter = int(sums[1] < sums[0])
                halves[lighter].append(part)
                sums[lighter] += self.weights[part]
        whole, weight = (sum(self.weights[part] for part in some) for some in (parts, halves[1]))
        first, second = (self._add_group(half, nodes) for half in halves)
        nodes[number] = Node(whole, weight, first, second, -1)
        return number

    @property
    def depth(self) -> int:
        """How many splits are above a part, at most."""

        def below(number: int) -> int:
            node = self.nodes[number]
            return 0 if node.part >= 0 else 1 + max(below(node.first), below(node.second))

        return below(0)

    def counts(self, positions: int) -> list[int]:
        """How many of the first `positions` positions each part gets: a count for each part."""
        counts = [0] * len(self.weights)

        def count(number: int, positions: int) -> None:
            node = self.nodes[number]
            if node.part >= 0:
                counts[node.part] = positions
                return
            second = _second_half(node, positions)
            count(node.first, positions - second)
            count(node.second, second)

        count(0, positions)
        return counts

    def parts(self, start: int, stop: int) -> np.ndarray:
        """The part of each position in `[start, stop)`: `[stop - start]` int32."""
        parts = np.empty(stop - start, np.int32)

        def deal(number: int, start: int, places: np.ndarray) -> None:
            node = self.nodes[number]
            if node.part >= 0:
                parts[places] = node.part
                return
            within = start % node.whole + np.arange(len(places) + 1)
            counts = (2 * node.weight * within + node.whole) // (2 * node.whole)
            is_second = counts[1:] != counts[:-1]
            second = _second_half(node, start)
            for half, at, chosen in (
                (node.first, start - second, ~is_second),
                (node.second, second, is_second),
            ):
                if chosen.any():
                    deal(half, at, places[chosen])

        deal(0, start, np.arange(stop - start))
        return parts


def _second_half(node: Node, positions: int) -> int:
    return (2 * node.weight * positions + node.whole) // (2 * node.whole)


def whole_weights(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """The smallest whole numbers in the same ratio, if their sum is at most `MAX_SUM`.

    Otherwise each share is rounded to a millionth, and at least that unless it is zero.
    """
    denominator = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * denominator) for weight in weights]
    if sum(whole) // math.gcd(*whole) > MAX_SUM:
        total = sum(whole)
        rounded = [round(Fraction(each * _ROUNDED_SUM, total)) for each in whole]
        whole = [max(new, 1) if each else 0 for each, new in zip(whole, rounded, strict=True)]
    divisor = math.gcd(*whole)
    return tuple(each // divisor for each in whole)
