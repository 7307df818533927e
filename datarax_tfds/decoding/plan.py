"""Which features a config asks for, under which names, and how they are decoded."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from datarax_tfds.config.config import AnyConfig
from datarax_tfds.decoding.tfds_features import is_of_tfds, nested
from sharding.checks import nearest, refused


@dataclass(frozen=True)
class DecodingPlan:
    """What a source decodes of each record, and how.

    Args:
        features: The dataset's `tfds.features.FeaturesDict`, or a part of it.
        names: The names of a record's parts, each with its feature, nested as a record will be.
        decoders: TFDS decoders that replace the decoders of features.
        config: What the user asks for.
        definition: The file that defines the features.
        subject: The source that reads, for messages.
        steps: The numbers of steps, by path, of those `tfds.features.Dataset`s that have equally
            many in all episodes.
    """

    features: Any
    names: Mapping[str, Any]
    decoders: Mapping[str, Any]
    config: AnyConfig
    definition: Path
    subject: str
    steps: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, info: Any, config: AnyConfig, subject: str) -> Self:
        """Makes the plan of a config for a dataset, from its `tfds.core.DatasetInfo`.

        Raises:
            ValueError: The dataset lacks a feature that is asked for, or the supervised keys that
                `as_supervised` needs; no feature is left; or a decoder cannot be used.
        """
        features, decoders = _partial_decoding(info.features, config.decoders, subject)
        plan = cls(
            features,
            names=_names(features, info.supervised_keys, config, subject),
            decoders=decoders,
            config=config,
            definition=Path(info.data_dir, "features.json"),
            subject=subject,
        )
        _require_decoders(plan)
        return plan

    @property
    def keys(self) -> list[str]:
        """The features that are read."""
        return sorted(set(leaves(self.names)))

    @property
    def user_keys(self) -> list[str]:
        """The features that users' code decodes."""
        if not is_of_tfds(self.features):
            return self.keys
        return [
            key
            for key in self.keys
            if key in self.decoders or not all(map(is_of_tfds, nested(self.features[key])))
        ]

    @property
    def episode_keys(self) -> list[str]:
        """The features that hold the steps of an episode."""
        import tensorflow_datasets as tfds

        return [
            key
            for key in self.keys
            if any(isinstance(part, tfds.features.Dataset) for part in nested(self.features[key]))
        ]

    @property
    def skipped_keys(self) -> list[str]:
        """The features that `tfds.decode.SkipDecoding` leaves as stored."""
        import tensorflow_datasets as tfds

        return [
            key
            for key in self.keys
            if any(isinstance(x, tfds.decode.SkipDecoding) for x in leaves(self.decoders.get(key)))
        ]


def leaves(nest: Any) -> Iterator[Any]:
    """The leaves of nested dicts and tuples."""
    if isinstance(nest, Mapping | tuple):
        for part in nest.values() if isinstance(nest, Mapping) else nest:
            yield from leaves(part)
    else:
        yield nest


def nearest_feature(key: str, features: Iterable[str]) -> str:
    """The feature that a misspelled name, or a path of nested features, probably stands for."""
    features = sorted(features)
    name = key if key in features else key.split("/")[0]
    return name if name in features else nearest(key, features) or features[0]


def as_set(names: Iterable[str]) -> str:
    """A set of names as Python code, in alphabetical order."""
    return f"{{{', '.join(map(repr, sorted(set(names))))}}}"


def _partial_decoding(features: Any, decoders: Any, subject: str) -> tuple[Any, dict[str, Any]]:
    """The features that a `PartialDecoding` leaves, and its decoders."""
    if decoders is None or isinstance(decoders, Mapping):
        return features, dict(decoders or {})
    try:
        part = decoders.extract_features(features)
    except Exception as error:  # TFDS raises errors of several classes
        raise refused(
            ValueError,
            subject,
            "PartialDecoding names features that the dataset does not have.",
            error=" ".join(str(error).split())[:500],
            features=", ".join(sorted(features)),
            fix="use features of the dataset, as"
            f" tfds.decode.PartialDecoding({{{min(features)!r}: True}})",
        ) from error
    return part, dict(decoders.decoders or {})


def _names(features: Any, supervised: Any, config: AnyConfig, subject: str) -> dict[str, Any]:
    """Maps the name of each part of a record to the feature or features that it is read from."""
    kept = _kept_keys(features, config, subject)
    on_host = {key: key for key in sorted(config.host_keys or ()) if key in features}
    if not config.as_supervised:
        return {name: name for name in sorted(kept)} | on_host
    if not isinstance(supervised, tuple) or not set(leaves(supervised)) <= kept:
        raise refused(
            ValueError,
            subject,
            "as_supervised=True needs an input and a target feature.",
            supervised_keys=supervised,
            features=", ".join(sorted(kept)),
            fix=f"include both, with include_keys={as_set(leaves(supervised))}"
            if isinstance(supervised, tuple)
            else "leave as_supervised out, and read the features by their names",
        )
    # Each may be a dict or a tuple of features, and there may be no weight.
    return dict(zip(("image", "label", "weight"), supervised, strict=False)) | on_host


def _kept_keys(features: Any, config: AnyConfig, subject: str) -> set[str]:
    """The features that the key filters leave."""
    field = "include_keys" if config.include_keys is not None else "exclude_keys"
    keys: set[str] = set(getattr(config, field) or ())
    unknown = keys - set(features)
    if unknown:
        raise refused(
            ValueError,
            subject,
            f"the dataset has no feature {', '.join(map(repr, sorted(unknown)))}.",
            features=", ".join(sorted(features)),
            fix=f"use {field}={as_set(nearest_feature(key, features) for key in keys)}",
        )
    kept = keys if config.include_keys is not None else set(features) - keys
    if not kept:
        raise refused(
            ValueError,
            subject,
            f"{field} must leave at least one feature.",
            features=", ".join(sorted(features)),
            fix=f"leave {field} out, or use include_keys={as_set(sorted(features)[:1])}",
        )
    return kept


def _require_decoders(plan: DecodingPlan) -> None:
    import tensorflow_datasets as tfds

    for key in sorted(plan.decoders.keys() - set(plan.keys), key=repr):
        fix = f"use {nearest_feature(str(key), plan.keys)!r} in place of {key!r}"
        if key in plan.features:
            fix = f"leave {key!r} out of decoders, or read it, too"
        raise refused(
            ValueError,
            plan.subject,
            f"decoders must name features that are read, got {key!r}.",
            features=", ".join(plan.keys),
            fix=fix,
        )
    for key, decoders in plan.decoders.items():
        for decoder in leaves(decoders):  # of the parts of a feature
            if isinstance(decoder, tfds.decode.Decoder):
                continue
            fix = f"use {{{key!r}: tfds.decode.SkipDecoding()}}, or what make_decoder returns"
            if isinstance(decoder, type) and issubclass(decoder, tfds.decode.Decoder):
                fix = f"make an object of the class: {{{key!r}: tfds.decode.{decoder.__name__}()}}"
            raise refused(
                ValueError,
                plan.subject,
                f"the decoder of {key!r} must be one of TFDS's decoders.",
                decoder=decoder if isinstance(decoder, type) else type(decoder).__name__,
                fix=fix,
            )
