"""What counts as a whole number: integers of Python and of NumPy, and no bool."""

from typing import Any, TypeGuard

import numpy as np


def is_integer(value: Any, least: int | None = None) -> TypeGuard[int]:
    """Whether a value is a whole number, of at least `least` where that is given."""
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return integer and (least is None or bool(value >= least))
