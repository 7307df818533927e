"""Runs a user's `transform`, a Python function of a record, and refuses one that cannot be used."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from datarax_tfds.decoding.functions.code_digest import code_digest
from datarax_tfds.decoding.functions.python_state import PythonState
from datarax_tfds.decoding.functions.user_function import random_parameter
from sharding.checks import refused

# The second word of the 128-bit keys of these generators, so that they are unlike other uses of the
# same seeds.
_DOMAIN = 0x7472616E73666F72
_TRIALS = 3  # calls with the same arguments; a coin that is tossed in each falls alike in a quarter


class Transform:
    """A `transform` of a config. Several threads may call it at the same time.

    Args:
        transform: The function of the user, or an object with a method `random_map` or `map`.

    Attributes:
        stochastic: Whether it takes a random generator.
    """

    def __init__(self, transform: Any):
        self._function: Callable[..., Any] = getattr(transform, "random_map", transform)
        if not callable(self._function):
            self._function = transform.map
        generator = random_parameter(self._function, "rng")
        self.stochastic = generator is not None
        by_name = generator is not None and generator.kind is generator.KEYWORD_ONLY
        self._keyword = generator.name if generator is not None and by_name else None

    def __call__(
        self, record: dict[str, Any], key: np.ndarray | None, where: Callable[[], str]
    ) -> dict[str, Any]:
        """Transforms a record.

        Args:
            record: Values nested in dicts, which the function may change.
            key: Two words `[2]` int32 for the random generator.
            where: Names the record, for messages.

        Returns:
            NumPy arrays, nested as the function returned them. Those of texts hold `bytes`.

        Raises:
            RuntimeError: The function raises an error, which is its cause.
            ValueError: It does not return a dict of what NumPy makes arrays of.
        """
        try:
            returned = self._called(record, key)
        except Exception as error:  # the user's code may raise anything
            raise refused(
                RuntimeError,
                where(),
                "transform fails on a record.",
                error=f"{type(error).__name__}: {error}"[:500],
                fix="let transform(record) or transform(record, rng) cope with this record, a dict"
                " of NumPy arrays",
            ) from error
        if not isinstance(returned, Mapping) or not returned:
            raise refused(
                ValueError,
                where(),
                "transform must return a dict of arrays.",
                returned=type(returned).__name__,
                fix="return a dict with a name for each array, as {'image': image}",
            )
        return _arrays(returned, where)

    def _called(self, record: dict[str, Any], key: np.ndarray | None) -> Any:
        if not self.stochastic:
            return self._function(record)
        assert key is not None
        low, high = key.view(np.uint32).tolist()
        words = np.array([high << 32 | low, _DOMAIN], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=words))
        if self._keyword is not None:
            return self._function(record, **{self._keyword: rng})
        return self._function(record, rng)

    def tried(
        self,
        record: dict[str, Any],
        where: Callable[[], str],
        *,
        allow_stateful: bool,
        subject: str,
    ) -> tuple[dict[str, Any], str | None]:
        """Transforms one record several times.

        Returns:
            The transformed record, and a digest of the code; None if it may be stateful.

        Raises:
            ValueError: The results or the generators that it refers to show that a resume would not
                repeat it.
        """
        # Before it runs, because the function may keep something in its objects.
        digest = None if allow_stateful else code_digest(self._function)
        state = PythonState(self._function)
        key = np.zeros(2, np.int32)
        trials = [self(copy.deepcopy(record), key, where) for _ in range(_TRIALS)]
        if allow_stateful:
            return trials[0], None
        problem = ""
        if state.reads_clock:
            problem = "it reads the clock, by time.time, datetime.now or the like"
        elif state.has_drawn():
            problem = "it draws random numbers of a generator of its own, random or numpy.random"
        elif not all(_same(trials[0], other) for other in trials):
            problem = "it gives other values when it is called again with the same record"
        if problem:
            raise refused(
                ValueError,
                subject,
                "transform depends on state that a resume does not restore.",
                python=problem,
                fix="draw random numbers from rng, as transform(record, rng), and compute all else"
                " from the record; or accept other batches after a resume, with"
                " allow_stateful_map_fn=True",
            )
        return trials[0], digest


def _arrays(value: Any, where: Callable[[], str], name: str = "") -> Any:
    """The arrays of what a transform returned: dicts and tuples nest, all else is an array."""
    if isinstance(value, Mapping):
        return {
            _text(key, where): _arrays(part, where, f"{name}/{key}") for key, part in value.items()
        }
    if isinstance(value, tuple):
        return tuple(_arrays(part, where, f"{name}/{n}") for n, part in enumerate(value))
    try:
        array: np.ndarray | None = np.asarray(value)
    except (TypeError, ValueError):  # of several lengths
        array = None
    if array is not None and array.dtype.kind in "USO":
        array = _texts(array)
    if array is not None and (array.dtype.kind in "biufcO" or array.dtype.isbuiltin == 2):
        return array
    raise refused(
        ValueError,
        where(),
        f"transform returns something for {name[1:]!r} that is not an array of numbers or text.",
        got=f"{type(value).__name__}: {value!r}"[:200],
        fix=f"leave {name[1:]!r} out of what transform returns, or return numbers of one shape for"
        " it, as np.asarray(x, np.float32)",
    )


def _text(key: Any, where: Callable[[], str]) -> str:
    if isinstance(key, str):
        return key
    raise refused(
        ValueError,
        where(),
        "names must be text in a dict that transform returns.",
        name=repr(key),
        fix=f"use texts as names, as {str(key)!r} in place of {key!r}",
    )


def _texts(array: np.ndarray) -> np.ndarray | None:
    """An array of texts as `bytes`; None if it holds anything else."""
    texts = np.empty(array.shape, object)
    for place, text in np.ndenumerate(array):
        if not isinstance(text, str | bytes):
            return None
        texts[place] = text.encode() if isinstance(text, str) else text
    return texts


def _same(one: Any, other: Any) -> bool:
    """Whether two records have the same bits."""
    (ours, names), (theirs, other_names) = map(jax.tree.flatten, (one, other))
    return names == other_names and all(
        (a.dtype, a.shape) == (b.dtype, b.shape)
        and (a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes())
        for a, b in zip(ours, theirs, strict=True)
    )


def type_specs(tf: Any, record: Any) -> dict[str, Any]:
    """TensorFlow's type specs of a record of NumPy arrays."""

    def spec(array: np.ndarray) -> Any:
        return tf.TensorSpec(array.shape, tf.string if array.dtype == object else array.dtype)

    return jax.tree.map(spec, record)
