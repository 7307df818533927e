"""Makes the fields of a source's config of plain values, as a YAML file holds them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from sharding.checks import nearest, refused

_FUNCTIONS = ("map_fn", "transform", "filter_fn", "batch_stats_fn", "encode")


def config_fields(values: Mapping[str, Any], functions: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the fields of a source's config of plain values, as a YAML file holds them.

    Only functions that the program passes are looked up, so a file cannot have others called.

        # source: {name: imagenet2012, split: train, decoders: {image: skip},
        #          map_fn: {name: random_crop, size: [224, 224]}}
        fields = config_fields(yaml.safe_load(text)["source"], vars(my_functions))
        source = from_tfds(**fields)

    Args:
        values: The fields of `from_tfds`, `TFDSEagerConfig` or `TFDSStreamingConfig`, or the
            arguments of `PackedSource`. A function is named, as `random_crop`, or is a mapping of
            its `name` and of further keyword arguments. In `decoders`,
            `skip` stands for `tfds.decode.SkipDecoding()`.
        functions: The functions by name, such as the `vars` of the module that defines them.

    Returns:
        The fields, with the functions and decoders in the place of their names.

    Raises:
        ValueError: A name is not among `functions`, or a decoder is not `skip`.
    """
    fields = dict(values)
    for field in _FUNCTIONS:
        if isinstance(fields.get(field), str | Mapping):
            fields[field] = _function(field, fields[field], functions)
    if isinstance(fields.get("decoders"), Mapping):
        fields["decoders"] = {
            feature: _decoder(feature, decoder) if isinstance(decoder, str) else decoder
            for feature, decoder in fields["decoders"].items()
        }
    return fields


def named_functions(values: Mapping[str, Any]) -> list[str]:
    """The functions that fields of a file name, which somebody has to pass."""
    found = [values.get(field) for field in _FUNCTIONS]
    names = [each.get("name") if isinstance(each, Mapping) else each for each in found]
    return [str(name) for name, each in zip(names, found, strict=True) if each is not None]


def _function(field: str, value: Any, functions: Mapping[str, Any]) -> Callable[..., Any]:
    options = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = options.pop("name", None)
    if isinstance(name, str) and callable(function := functions.get(name)):
        return functools.partial(function, **options) if options else function
    known = sorted(each for each, found in functions.items() if callable(found))
    near = nearest(name, known) if isinstance(name, str) else None
    raise refused(
        ValueError,
        "config_fields",
        f"{field} must name one of the functions.",
        **{field: repr(value)},
        functions=", ".join(known) or "none",
        fix=f"use {field}: {near}" if near else f"pass functions={{{name!r}: function}}",
    )


def _decoder(feature: str, decoder: str) -> Any:
    if decoder == "skip":
        import tensorflow_datasets as tfds

        return tfds.decode.SkipDecoding()
    raise refused(
        ValueError,
        "config_fields",
        "the only decoder that has a name is 'skip'.",
        decoders=f"{{{feature!r}: {decoder!r}}}",
        fix=f"use decoders: {{{feature}: skip}}",
    )
