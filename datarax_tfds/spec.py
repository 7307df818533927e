"""Which features become arrays, under which name, and of which shape and dtype on the device."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from datarax_tfds.config import TFDSEagerConfig
from sharding.messages import explain


def select_features(info: Any, config: TFDSEagerConfig, subject: str) -> dict[str, str]:
    """The names of a record's arrays, each with the feature that it is made of.

    Args:
        info: The `tfds.core.DatasetInfo`.
        config: Its key filters, and `as_supervised`.
        subject: Who selects, for messages.

    Raises:
        ValueError: A key that the dataset does not have, nothing left, or `as_supervised` for a
            dataset without an (input, target) pair.
    """
    features = set(info.features)
    filtered = config.include_keys if config.include_keys is not None else config.exclude_keys
    unknown = set(filtered or ()) - features
    if unknown:
        raise ValueError(
            explain(
                subject,
                f"the dataset has no feature {', '.join(map(repr, sorted(unknown)))}.",
                features=", ".join(sorted(features)),
                fix="name features of this dataset in include_keys or exclude_keys",
            )
        )
    if config.include_keys is not None:
        features &= config.include_keys
    elif config.exclude_keys is not None:
        features -= config.exclude_keys
    if not features:
        raise ValueError(
            explain(
                subject,
                "the key filter leaves no feature.",
                features=", ".join(sorted(info.features)),
                fix="include at least one, or leave the filter out",
            )
        )
    if not config.as_supervised:
        return {name: name for name in sorted(features)}
    keys = info.supervised_keys
    pair = isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) for key in keys)
    if not pair or not set(keys) <= features:
        raise ValueError(
            explain(
                subject,
                "as_supervised needs an input and a target feature.",
                supervised_keys=keys,
                features=", ".join(sorted(features)),
                fix="read the features by their names, with as_supervised=False",
            )
        )
    return {"image": keys[0], "label": keys[1]}


def element_spec(info: Any, selected: Mapping[str, str], subject: str) -> dict[str, Any]:
    """What one record is on the device, nested as its features are.

    Returns:
        A `jax.ShapeDtypeStruct` for each array, without a batch axis. 64-bit types are 32-bit
        ones unless `jax_enable_x64` is on.

    Raises:
        ValueError: A feature that no array can hold: text, bytes, or a shape that varies from
            record to record. The message names it, and the remedy.
    """
    return {
        name: jax.tree_util.tree_map_with_path(
            lambda path, tensor, feature=feature: _array_spec(tensor, path, feature, subject),
            info.features[feature].get_tensor_info(),
        )
        for name, feature in selected.items()
    }


def _array_spec(tensor: Any, path: Any, feature: str, subject: str) -> jax.ShapeDtypeStruct:
    dtype = np.dtype(tensor.np_dtype)
    where = "/".join([feature, *(str(entry.key) for entry in path)])
    problem = None
    if dtype.kind in "OSU" or tensor.dataset_lvl:
        problem = f"feature {where!r} holds no numbers, so that no jax.Array can hold it."
    elif None in tensor.shape:
        problem = f"the shape of feature {where!r} varies from record to record."
    if problem is not None:
        raise ValueError(
            explain(
                subject,
                problem,
                shape=tensor.shape,
                dtype=dtype,
                fix=f"leave it out with exclude_keys={{{feature!r}}}",
            )
        )
    return jax.ShapeDtypeStruct(tensor.shape, jax.dtypes.canonicalize_dtype(dtype))


def narrowed(column: np.ndarray, dtype: np.dtype, where: Callable[[int], str]) -> np.ndarray:
    """A column of a batch in the dtype of the device, with no value lost unseen.

    Args:
        column: `[rows, ...]` as read.
        dtype: That of `element_spec`.
        where: Names the value in a row, for messages.

    Raises:
        OverflowError: An integer that does not fit, or a finite float that would become infinite.
    """
    if column.dtype == dtype:
        return column
    with np.errstate(over="ignore"):
        result = column.astype(dtype)
    if dtype.kind in "iu":
        lost = (column < np.iinfo(dtype).min) | (column > np.iinfo(dtype).max)
    else:
        lost = np.isinf(result) & np.isfinite(column)
    if lost.any():
        place = tuple(np.argwhere(lost)[0])
        raise OverflowError(
            explain(
                where(int(place[0])),
                f"the value does not fit {dtype}.",
                value=column[place],
                fix="turn on 64-bit types with jax.config.update('jax_enable_x64', True), or leave"
                " the feature out with exclude_keys",
            )
        )
    return result
