"""Applies the stages of a pipeline to a batch, with a random key for each record."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import lax
from jax import numpy as jnp

from sharding.checks import nearest, refused

Batch = dict[str, Any]
Stage = Callable[..., Batch]

# What a compiled function can return, a tracer included. Not `jax.typing.ArrayLike`, of which a
# tracer is no instance in Python 3.11.
_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
_KEYS = "keys"  # a stage with this parameter gets a key for each record


@dataclass(frozen=True)
class StageGraph:
    """The order of stages, and which results each of them takes.

    Args:
        names: The names of the stages, for messages.
        takes: For each stage, the places of the stages whose results it takes. An empty tuple
            stands for the batch of the source.
        sink: The place of the stage whose result is handed out; None without stages.
    """

    names: tuple[str, ...]
    takes: tuple[tuple[int, ...], ...]
    sink: int | None

    @property
    def edges(self) -> dict[str, list[str]]:
        """For each stage, the names of the stages whose results it takes."""
        taken = ([self.names[place] for place in takes] for takes in self.takes)
        return dict(zip(self.names, taken, strict=True))

    def apply(self, stages: Sequence[Stage], batch: Batch, keys: jax.Array | None) -> Batch:
        """Passes a batch through all stages; traceable.

        Args:
            stages: In the order of `names`.
            batch: Arrays `[n, ...]`.
            keys: `[n, 2]` int32, two words for each record; None if no stage is random.
        """
        results: list[Batch] = []
        for place, (stage, takes) in enumerate(zip(stages, self.takes, strict=True)):
            inputs = [results[taken] for taken in takes] or [batch]
            name = self.names[place]
            with _named_keys(name, inputs):
                result = _applied(stage, name, place, inputs, keys)
            if not isinstance(result, Mapping):
                raise refused(
                    TypeError,
                    "Pipeline",
                    f"{described_stage(name, stage)} must return a dict of arrays, it returned"
                    f" {_kind_of(result)}.",
                    returned=type(result).__name__,
                    fix="return a dict, as {'image': batch['image']}",
                )
            results.append(result)
        if self.sink is None:
            return batch
        sink = described_stage(self.names[self.sink], stages[self.sink])
        _require_arrays(results[self.sink], sink)
        return results[self.sink]


def are_random(stages: Sequence[Stage]) -> bool:
    """Whether any stage takes keys, or has random streams of its own."""
    return any(_takes_keys(stage) or _has_streams(stage) for stage in stages)


def values_of(state: nnx.State) -> list[Any]:
    """The values of a state, whether they are held by variables or are plain attributes."""
    return [
        leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
        for _, leaf in nnx.to_flat_state(state)
    ]


def require_stage(stage: Stage, name: str, batches: int) -> None:
    """Raises unless the stage can be called with this number of batches."""
    wanted = "a batch" if batches == 1 else f"{batches} batches"
    problem = f"the stage must be a function of {wanted}."
    fix = f"pass a function that takes {wanted} and returns one, or an NNX module that is called so"
    if not callable(stage):
        raise refused(TypeError, name, problem, stage=type(stage).__name__, fix=fix)
    signature = _signature(stage)
    keys = {_KEYS: None} if _takes_keys(stage) else {}
    try:
        signature.bind(*[None] * batches, **keys)
    except TypeError as error:
        raise refused(TypeError, name, problem, takes=signature, error=error, fix=fix) from None


def described_stage(name: str, stage: Stage) -> str:
    """Names a stage and its function for a message, such as `stage 0 (normalize)`."""
    place = name.removeprefix("stages[").removesuffix("]") if name.startswith("stages[") else name
    function = getattr(stage, "__name__", type(stage).__name__)
    return f"stage {place} ({function})"


def _require_arrays(batch: Batch, described: str) -> None:
    """Refuses a batch with values that a compiled function cannot return, such as text."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(batch)):
        if not isinstance(leaf, _ARRAYS):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise refused(
                TypeError,
                "Pipeline",
                f"{described} must return a dict of arrays, but its {name!r} is not an array.",
                returned=type(leaf).__name__,
                fix=f"return numbers as {name!r}, or leave it out",
            )


def _kind_of(result: Any) -> str:
    """What a stage returned in place of a dict."""
    if isinstance(result, jax.Array):
        return "one array"
    return "None" if result is None else f"a {type(result).__name__}"


@contextmanager
def _named_keys(name: str, inputs: Sequence[Batch]) -> Iterator[None]:
    """Turns a `KeyError` of a stage into one that names the stage and the keys of its batch."""
    try:
        yield
    except KeyError as error:
        key = error.args[0] if error.args else None
        known = sorted({str(each) for batch in inputs for each in batch})
        if not isinstance(key, str) or key in known:
            raise
        near = nearest(key, known)
        raise refused(
            _MissingKeyError,
            name,
            f"the stage asks for {key!r}, which its batch does not have.",
            keys=", ".join(known),
            fix=f"use {near!r}" if near else "use one of these keys, or add it in a stage before",
        ) from error


class _MissingKeyError(KeyError):
    """A `KeyError` that prints its message as it is, not as a quoted string."""

    __str__ = Exception.__str__


def _applied(
    stage: Stage, name: str, place: int, inputs: Sequence[Batch], keys: jax.Array | None
) -> Batch:
    if keys is None or not (_takes_keys(stage) or _has_streams(stage)):
        return stage(*inputs)
    words = lax.bitcast_convert_type(keys, jnp.uint32)
    own = jax.vmap(lambda word: jax.random.fold_in(_key(word), place))(words)
    if _takes_keys(stage):
        return stage(*inputs, keys=own)
    return _record_by_record(stage, name, inputs, own)


def _record_by_record(stage: Stage, name: str, inputs: Sequence[Batch], keys: jax.Array) -> Batch:
    """Applies a stage to one record at a time, with random streams of that record."""
    graphdef, streams, others = nnx.split(stage, nnx.RngState, ...)

    # The state is an argument, because NNX lets a stage change only what its own trace has made.
    def one(record: Sequence[Batch], key: jax.Array, streams: nnx.State, others: Any) -> Batch:
        def keyed(variable: nnx.Variable) -> nnx.Variable:
            value = variable.get_value()
            if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                return variable.replace(jnp.zeros_like(value))
            for word in jax.random.key_data(value).ravel():
                nonlocal key
                key = jax.random.fold_in(key, word)
            return variable.replace(key)

        fresh = jax.tree.map(keyed, streams, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
        alone = nnx.merge(graphdef, fresh, others)
        before = values_of(nnx.state(alone, nnx.Not(nnx.RngState)))
        batch = alone(*jax.tree.map(lambda column: column[None], record))
        after = values_of(nnx.state(alone, nnx.Not(nnx.RngState)))
        if any(new is not old for new, old in zip(after, before, strict=True)):
            raise refused(
                ValueError,
                name,
                "a stage with random streams sees each record alone, and must not change state that"
                " all records share.",
                stage=type(stage).__name__,
                fix="draw from a parameter in place of the streams, as __call__(batch, keys),"
                " or keep the state in another stage",
            )
        if any(jnp.ndim(column) == 0 for column in jax.tree.leaves(batch)):
            raise refused(
                ValueError,
                name,
                "a stage with random streams sees a batch of one record, and must return such a"
                " batch.",
                stage=type(stage).__name__,
                got=jax.tree.map(jnp.shape, batch),
                fix="keep the first axis, of length 1, in every value",
            )
        return jax.tree.map(lambda column: column[0], batch)

    return jax.vmap(one, in_axes=(0, 0, None, None))(list(inputs), keys, streams, others)


def _takes_keys(stage: Stage) -> bool:
    return _KEYS in _signature(stage).parameters


def _signature(stage: Callable[..., Any]) -> inspect.Signature:
    """The signature of a stage; a built-in function without one accepts any number of batches."""
    try:
        return inspect.signature(stage)
    except ValueError:
        return inspect.Signature([inspect.Parameter("batches", inspect.Parameter.VAR_POSITIONAL)])


def _has_streams(stage: Stage) -> bool:
    return isinstance(stage, nnx.Module) and bool(nnx.to_flat_state(nnx.state(stage, nnx.RngState)))


def _key(words: jax.Array) -> jax.Array:
    # The implementation is named, because the user may have set another default.
    return jax.random.wrap_key_data(words, impl="threefry2x32")
