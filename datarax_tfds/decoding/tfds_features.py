"""Facts about TFDS's feature classes: the features within them, and how they are stored."""

from collections.abc import Iterable, Iterator
from typing import Any


def dict_classes() -> tuple[type, ...]:
    """The classes whose parts TFDS decodes one by one."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict, tfds.features.Translation


def only(features: Any, keys: Iterable[str]) -> Any:
    """A `FeaturesDict` of some of the features."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({key: features[key] for key in sorted(keys)})


def nested(feature: Any) -> Iterator[Any]:
    """A feature and all features within it."""
    import tensorflow_datasets as tfds

    yield feature
    parts = feature.values() if isinstance(feature, tfds.features.FeaturesDict) else ()
    if isinstance(feature, tfds.features.Sequence):
        parts = (feature.feature,)
    for part in parts:
        yield from nested(part)


def is_of_tfds(feature: Any) -> bool:
    """Whether the class of a feature is one of TFDS's own."""
    return type(feature).__module__.partition(".")[0] == "tensorflow_datasets"


def by_path(nest: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, or of TFDS's dicts of features, with paths as `objects/label`."""
    for name, part in nest.items():
        if isinstance(part, dict) or type(part) in dict_classes():
            yield from by_path(part, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", part


def column_kind(feature: Any) -> str | None:
    """`numbers` of one shape; `bytes`, which are decoded one by one; None for other features."""
    import tensorflow_datasets as tfds

    of = tfds.features
    numbers = (of.Tensor, of.Scalar, of.ClassLabel, of.BBoxFeature)
    encoded = (of.Tensor, of.Text, of.Image, of.LabeledImage, of.Audio)
    kind = type(feature)
    info = feature.get_serialized_info() if kind in {*numbers, *encoded} else {}
    if isinstance(info, dict):  # it is stored as several columns
        return None
    if info.tf_dtype.name == "string":
        return "bytes" if kind in encoded and info.shape == () else None
    return "numbers" if kind in numbers and None not in info.shape else None
