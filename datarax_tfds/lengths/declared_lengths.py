"""Checks the lengths of buckets that a user declares, and finds the parts of a record they mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import jax
import numpy as np

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.decoding.device_dtypes import path_name
from datarax_tfds.decoding.plan import nearest_feature
from sharding.checks import is_integer, refused, whole_number

MAX_BUCKETS = 64


@dataclass(frozen=True)
class DeclaredLengths:
    """The lengths of the buckets, by name of a part of a record.

    Args:
        by_name: For each name, its length in each bucket, ascending; the names in alphabetical
            order.
    """

    by_name: Mapping[str, tuple[int, ...]]

    @classmethod
    def checked(cls, lengths: Any, subject: str) -> Self:
        """The lengths that a user passes.

        Raises:
            TypeError: It is not a dict with texts as keys.
            ValueError: It has no lengths, or some that are not positive, ascending integers; or the
                names have different numbers of them.
        """
        named = isinstance(lengths, Mapping) and all(isinstance(name, str) for name in lengths)
        if not named or not lengths:
            raise refused(
                ValueError if named else TypeError,
                subject,
                "lengths must have the lengths of the buckets for each ragged feature.",
                lengths=repr(lengths),
                fix="use lengths={'tokens': (64, 128, 256)}, with the name of a feature",
            )
        for name, each in lengths.items():
            _require_ascending(name, each, subject)
        counts = {name: len(each) for name, each in lengths.items()}
        if len(set(counts.values())) > 1:
            fewest = min(counts.values())
            cut = {name: tuple(each[-fewest:]) for name, each in lengths.items()}
            raise refused(
                ValueError,
                subject,
                "all features must have equally many lengths: one for each bucket.",
                lengths=", ".join(f"{name} has {count}" for name, count in counts.items()),
                fix=f"use lengths={cut}, or add the missing ones",
            )
        return cls({name: tuple(map(int, lengths[name])) for name in sorted(lengths)})

    def __len__(self) -> int:
        """The number of buckets."""
        return len(next(iter(self.by_name.values())))

    def __str__(self) -> str:
        return ", ".join(f"{name} {'/'.join(map(str, of))}" for name, of in self.by_name.items())

    @property
    def longest(self) -> dict[str, int]:
        """The lengths of the last bucket, by name."""
        return {name: each[-1] for name, each in self.by_name.items()}

    def buckets(self, lengths: np.ndarray) -> np.ndarray:
        """The first bucket that holds each record, given its lengths `[n, names]`: `[n]`. Records
        that are longer than the last bucket are in that.
        """
        held = [
            np.searchsorted(of[:-1], lengths[:, column])
            for column, of in enumerate(self.by_name.values())
        ]
        return np.max(held, axis=0)

    def require_ragged(self, spec: Mapping[str, Any], config: AnyConfig, subject: str) -> None:
        """Raises unless all names stand for parts of a record whose first axis varies.

        Args:
            spec: The parts of a record, as `record_spec` gives them; of the first record, if a
                `transform` makes them.
            config: That of the stream.
            subject: The source, for messages.

        Raises:
            ValueError: A name is unknown, or its parts have one shape or vary in other axes.
        """
        transformed, padded = config.transform is not None, config.pad_to or ()
        leaves = {
            path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(dict(spec))
        }
        for name in self.by_name:
            named = {path: leaf for path, leaf in leaves.items() if is_within(path, name)}
            if not named:
                raise refused(
                    ValueError,
                    subject,
                    f"lengths must name features of a record, got {name!r}.",
                    features=", ".join(leaves),
                    fix=f"use {nearest_feature(name, leaves)!r} in place of {name!r}",
                )
            for path, leaf in named.items():
                first, *others = leaf.shape or (0,)
                varies = first is None or (transformed and bool(leaf.shape))
                inner = getattr(leaf, "ragged", False) or None in others
                if varies and not inner and name not in padded:
                    continue
                fix = f"leave {name!r} out of lengths"
                if name in padded:
                    fix = f"leave {name!r} out of pad_to of the stream, or {fix}"
                if inner:
                    by = config.mapped_by or "map_fn"
                    fix = f"{fix}, or let {by} return arrays of which only the first axis varies"
                raise refused(
                    ValueError,
                    subject,
                    f"feature {path!r} must vary in its first axis, and in no other.",
                    shape=leaf.shape,
                    fix=fix,
                )


def is_within(path: str, name: str) -> bool:
    """Whether the part of a record with this path is that of a name, or within it."""
    return path == name or path.startswith(f"{name}/")


def _require_ascending(name: Any, lengths: Any, subject: str) -> None:
    several = isinstance(lengths, Sequence | np.ndarray) and not isinstance(lengths, str | bytes)
    listed: list[Any] = list(lengths) if several else []
    sound = all(is_integer(length, 1) and length < 2**31 for length in listed)
    ascending = sound and all(one < other for one, other in pairwise(listed))
    if ascending and 0 < len(listed) <= MAX_BUCKETS:
        return
    given = listed or [lengths]
    numbers = {whole_number(length) or 0 for length in given}
    usable = sorted(number for number in numbers if 0 < number < 2**31)[-MAX_BUCKETS:]
    raise refused(
        ValueError,
        subject,
        f"the lengths of {name!r} must be 1 to {MAX_BUCKETS} positive integers, each larger than"
        " the one before.",
        lengths=f"{len(listed)} of them" if len(listed) > MAX_BUCKETS else repr(lengths),
        fix=f"use lengths={{{name!r}: {tuple(usable) or (64, 128, 256)}}}",
    )
