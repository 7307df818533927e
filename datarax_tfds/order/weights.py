"""Checks the weights of a mixture, and makes whole numbers of them."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np

from datarax_tfds.order.shares import whole_weights
from sharding.checks import nearest, refused


def weights_of_parts(
    weights: Any, names: Sequence[str], removed: set[str], subject: str
) -> tuple[int, ...]:
    """The weights of parts as whole numbers, in the order of the names.

    Args:
        weights: A number for each part, by its name; for a part that was removed, it may be absent.
        names: The names of the parts.
        removed: Those of parts that were removed.
        subject: The source, for messages.

    Raises:
        TypeError: `weights` is not a dict, or a weight is not a number.
        ValueError: A part has no weight, a weight has no part, one is negative or not finite, or
            all are zero.
    """
    equal = ", ".join(f"{name!r}: 1" for name in names)
    if not isinstance(weights, Mapping):
        raise refused(
            TypeError,
            subject,
            "weights must be a dict, with a number for each part.",
            weights=type(weights).__name__,
            fix=f"use weights={{{equal}}}",
        )
    unknown = [name for name in weights if name not in names]
    missing = [name for name in names if name not in weights and name not in removed]
    if unknown or missing:
        near = {name: nearest(str(name), missing) for name in unknown}
        meant = {near.get(name) or name: weight for name, weight in weights.items()}
        meant = {name: meant.get(name, 0) for name in names if name in meant or name in missing}
        raise refused(
            ValueError,
            subject,
            "weights must have the names of the parts.",
            parts=", ".join(names),
            unknown=", ".join(map(repr, unknown)) or "none",
            missing=", ".join(map(repr, missing)) or "none",
            fix=f"use weights={meant}",
        )
    exact = {name: _exact(name, weights.get(name, 0), subject) for name in names}
    if not any(exact.values()):
        raise refused(
            ValueError,
            subject,
            "the weights must not all be zero.",
            weights=dict(weights),
            fix=f"use weights={{{equal}}}",
        )
    return whole_weights(list(exact.values()))


def _exact(name: str, weight: Any, subject: str) -> Fraction:
    a_number = isinstance(weight, Real | Decimal | np.number) and not isinstance(weight, bool)
    if not a_number:
        raise refused(
            TypeError,
            subject,
            f"the weight of {name!r} must be a number, got {type(weight).__name__}.",
            weight=repr(weight),
            fix=f"use {name!r}: 1",
        )
    if not math.isfinite(weight) or weight < 0:
        raise refused(
            ValueError,
            subject,
            f"the weight of {name!r} must be finite, and at least 0.",
            weight=repr(weight),
            fix=f"use {name!r}: 0 to leave the part out, or {name!r}: 1",
        )
    # The decimal that a float is written as: 0.7 is 7/10, and not 3152519739159347/2**52.
    return Fraction(weight) if isinstance(weight, Fraction | int) else Fraction(str(weight))
