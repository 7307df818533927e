"""Holds the cursor of a source as one value, behind the Flax variables `epoch` and `index`."""

import sys
from typing import Any, ClassVar

import jax
import jax.core
from flax import nnx

from datarax_tfds.errors import CursorTraceError
from datarax_tfds.order.cursor import Cursor
from datarax_tfds.order.wide_numbers import join_words
from datarax_tfds.runtime.untraced import is_traced
from sharding.checks import refused


class Place:
    """The epoch and the index in one attribute, so that one write moves both.

    An interrupt or another thread sees either the old pair or the new one. Reading takes no lock,
    so a signal handler may call `get_state`.

    Attributes:
        pair: `(epoch, index)`: integers, arrays that a compiled function left, or tracers.
    """

    __slots__ = ("pair",)

    def __init__(self, pair: tuple[Any, Any]):
        self.pair = pair


class CursorVariable(nnx.Variable[Any]):
    """One number of a `Place`, as an `nnx.Variable` like any other.

    NNX makes variables one by one, for example in `nnx.merge`, so each starts with a place of its
    own. `joined` makes two of them share one.

    Attributes:
        made_by_jax: Whether it belongs to a copy that JAX made of a source, for example because
            `jax.jit` was used instead of `nnx.jit`.
    """

    __slots__ = ("_place", "made_by_jax")

    number: ClassVar[int]  # the place in the pair: 0 for the epoch, 1 for the index

    # Replaces the slot of `nnx.Variable` in which Flax reads and writes values.
    @property
    def _raw_value(self) -> Any:
        return self._place.pair[self.number]

    @_raw_value.setter
    def _raw_value(self, value: Any) -> None:
        try:
            place = object.__getattribute__(self, "_place")
        except AttributeError:
            object.__setattr__(self, "_place", Place((value, value)))
            object.__setattr__(self, "made_by_jax", False)
            return
        epoch, index = place.pair
        place.pair = (value, index) if self.number == 0 else (epoch, value)


class Epoch(CursorVariable):
    """The epoch of the next position to hand out, from 0."""

    __slots__ = ()
    number = 0


class Index(CursorVariable):
    """The next position to hand out, in `[0, N)`; with 2**31 records and more, as
    `as_device_numbers` makes it.
    """

    __slots__ = ()
    number = 1


def as_cursor_variable(name: str, value: Any) -> CursorVariable:
    """Returns the variable for a value that is assigned to `epoch` or `index`."""
    if isinstance(value, CursorVariable):
        return value
    raw = value.get_raw_value() if isinstance(value, nnx.Variable) else value
    return Epoch(raw) if name == "epoch" else Index(raw)


def mark_made_by_jax(*variables: Any) -> None:
    """Marks the variables of a copy that JAX made of a source."""
    for variable in variables:
        if isinstance(variable, CursorVariable):
            object.__setattr__(variable, "made_by_jax", True)


def joined(epoch: CursorVariable, index: CursorVariable) -> Place:
    """Makes both variables share one place, and returns it."""
    place = index._place
    if epoch._place is not place:
        place.pair = (epoch._raw_value, index._raw_value)
        object.__setattr__(epoch, "_place", place)
    return place


def cursor_of(epoch: CursorVariable, index: CursorVariable) -> Cursor:
    """The cursor in Python integers, even if a compiled function left them on a device."""
    place = index._place
    pair = place.pair if epoch._place is place else (epoch._raw_value, index._raw_value)
    return Cursor(_count(pair[0]), _count(pair[1]))


def require_movable(index: CursorVariable, subject: str, traceable: bool) -> None:
    """Raises if a move of the cursor would be lost.

    Args:
        index: The variable of the source.
        subject: The source, for messages.
        traceable: Whether batches of this source can be taken inside a compiled function.

    Raises:
        CursorTraceError: JAX traces the calling function, so that it runs once for many calls of
            the compiled program, and NNX does not carry the cursor out of it.
    """
    outside = "take the batch outside of the function, and pass it in"
    if not index._can_update:
        fix = outside
        if traceable:
            fix = f"{outside}; or pass the pipeline or source as an argument of nnx.jit"
        raise refused(
            CursorTraceError,
            subject,
            "a function that is being traced by JAX only closes over this cursor, which belongs"
            " to another trace level: it would not move when the compiled function runs.",
            cursor="of a closure",
            fix=fix,
        )
    if index.made_by_jax and is_traced() and not _followed_by_nnx(index):
        fix = outside
        if traceable:
            fix = f"use nnx.jit, nnx.scan or nnx.grad in place of the one of jax; or {outside}"
        raise refused(
            CursorTraceError,
            subject,
            "a function that is being traced by JAX got a copy of this source, and the cursor"
            " of the copy is lost: the next call would take the same batch again.",
            cursor="of a copy",
            fix=fix,
        )


def _followed_by_nnx(variable: nnx.Variable[Any]) -> bool:
    """Whether NNX carries this variable out of the function that is being traced.

    With `graph=False`, the transformations of NNX let JAX copy modules, too. They keep the current
    variables in a local variable `current`, and compare them with the earlier ones at the end.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("flax.nnx.transforms"):
            current = frame.f_locals.get("current")
            is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
            if any(leaf is variable for leaf in jax.tree.leaves(current, is_leaf=is_variable)):
                return True
        frame = frame.f_back
    return False


def _count(value: Any) -> Any:
    return value if isinstance(value, int | jax.core.Tracer) else int(join_words(value))
