"""The kinds of sources on which everything that is promised of all sources is tested."""

import functools
import types

from conftest import shardings

from datarax_tfds import (
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)

SOURCES = {
    "one device": ("tiny", "one device", "auto"),
    "ArrayRecord": ("tiny_array", "one device", "auto"),
    "8 devices, sharded": ("tiny", "8 devices", "sharded"),
    "8 devices, replicated": ("tiny", "8 devices, explicit axes", "replicated"),
    "replicas, sharded": ("tiny_array", "4 x 2, replicas", "sharded"),
    "streaming, one device": ("tiny", "one device", "streaming"),
    "streaming, ArrayRecord": ("tiny_array", "8 devices, explicit axes", "streaming"),
    "streaming, replicas, uneven files": ("tiny_uneven", "4 x 2, replicas", "streaming"),
    "streaming, nothing ahead, one file": ("tiny_one", "8 devices, permuted", "streaming, 0"),
    "streaming by blocks": ("tiny", "8 devices", "sequential"),
}
EAGER = {name: place for name, place in SOURCES.items() if "streaming" not in name}
STREAMING = {name: place for name, place in SOURCES.items() if "streaming" in name}
SIZE = 24  # rows of a batch: divides over 1, 4 and 8, and not over N


def source_of(data_dir, kind=TFDSStreamingSource, mesh="one device", **fields):
    """A source of the training split of a dataset, which is `tiny` if no name is given."""
    config = TFDSEagerConfig if kind is TFDSEagerSource else TFDSStreamingConfig
    fields = {"name": "tiny", "split": "train", "data_dir": str(data_dir)} | fields
    return kind(config(**fields), sharding=shardings()[mesh])


def held(holder, kind):
    """The first object of a class that a holder has in attributes or containers, at any depth."""
    waiting, seen = [holder], set()
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, kind):
            return value
        if id(value) in seen or isinstance(value, type | types.ModuleType | types.FunctionType):
            continue
        seen.add(id(value))
        if isinstance(value, dict | list | tuple):
            waiting += value.values() if isinstance(value, dict) else value
        waiting += getattr(value, "__dict__", {}).values()
    raise LookupError(kind)


@functools.cache
def loaded(config, mesh):
    source = TFDSEagerSource if isinstance(config, TFDSEagerConfig) else TFDSStreamingSource
    return source(config, sharding=shardings()[mesh])


def config_of(data_dir, place, **fields):
    """The config of one of the sources above."""
    name, _, how = place
    fields = {"name": name, "data_dir": str(data_dir), "split": "train", "seed": 5} | fields
    if how == "sequential":
        return TFDSStreamingConfig(access="sequential", shuffle_buffer_size=30, **fields)
    if how.startswith("streaming"):
        return TFDSStreamingConfig(prefetch_buffer=0 if how.endswith("0") else 2, **fields)
    return TFDSEagerConfig(layout=how, **fields)
