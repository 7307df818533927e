"""Checks the arguments of packed text, and says how its records are read."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from datarax_tfds.config.config import TFDSStreamingConfig
from datarax_tfds.config.fields import Field
from datarax_tfds.files.split import Split
from datarax_tfds.tokens.documents import DecodeErrors
from datarax_tfds.tokens.encoder import MAX_TOKEN
from sharding.checks import is_integer, nearest, refused, whole_number

PackingWay = Literal["concat", "best_fit"]


def require_arguments(
    subject: str,
    length: Any,
    packing: Any,
    eos_id: Any,
    pad_id: Any,
    errors: Any,
    encode_name: Any,
) -> None:
    if not is_integer(length, 1) or length > 2**24:
        fix = f"use length={min(max(whole_number(length) or 2048, 1), 2**24)}"
        problem = "length must be an integer in [1, 2**24]."
        raise Field(subject, "length", length).refusal(problem, fix=fix)
    for name, value in (("eos_id", eos_id), ("pad_id", pad_id)):
        optional = name == "eos_id" and value is None
        if not optional and not (is_integer(value, 0) and value <= MAX_TOKEN):
            problem = f"{name} must be a token id, an integer in [0, 2**31)."
            fix = f"use {name}=0, or another id of the tokenizer"
            raise Field(subject, name, value).refusal(problem, fix=fix)
    for name, value, kind in (("packing", packing, PackingWay), ("errors", errors, DecodeErrors)):
        ways = get_args(kind)
        if value not in ways:
            near = nearest(value, ways) if isinstance(value, str) else None
            problem = f"{name} must be {', '.join(map(repr, ways[:-1]))} or {ways[-1]!r}."
            fix = f"use {name}={near or ways[0]!r}"
            raise Field(subject, name, value).refusal(problem, fix=fix)
    named = isinstance(encode_name, str) and 0 < len(encode_name) < 200
    if encode_name is not None and not named:
        problem = "encode_name must be a text of 1 to 199 characters."
        fix = "use encode_name='name and version of the tokenizer', or leave it out"
        raise Field(subject, "encode_name", encode_name).refusal(problem, fix=fix)


def reading_of(
    config: TFDSStreamingConfig, split: Split, feature: Any, subject: str
) -> TFDSStreamingConfig:
    """The config that reads the feature, unpadded, and nothing else unless a function makes it."""
    config = dataclasses.replace(config, host_keys=None, pad_to=None, truncate=None)
    if config.mapped_by is not None:
        return config
    top = str(feature).split("/")[0]
    if top not in split.info.features:
        near = nearest(top, split.info.features)
        raise refused(
            ValueError,
            subject,
            f"the dataset has no feature {top!r} to pack.",
            features=", ".join(sorted(split.info.features)),
            fix=f"use feature={near or min(split.info.features)!r}",
        )
    decoders = config.decoders
    if isinstance(decoders, Mapping):
        decoders = {key: value for key, value in decoders.items() if key == top}
    return dataclasses.replace(
        config,
        include_keys={top},
        exclude_keys=None,
        as_supervised=False,
        decoders=decoders,
    )
