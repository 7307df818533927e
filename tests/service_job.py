"""What two processes read with workers of Ray while these are killed, and its digest."""

import hashlib

import elsewhere
import jax
import numpy as np

from datarax_tfds import Pipeline, TFDSStreamingConfig, TFDSStreamingSource

SIZE = 64


def pipeline(data_dir, service=None, sharding=None, transform=elsewhere.slow):
    config = TFDSStreamingConfig(
        name="tiny", split="train", data_dir=str(data_dir), shuffle=True,
        transform=transform, service=service,
    )  # fmt: skip
    return Pipeline(source=TFDSStreamingSource(config, sharding=sharding), batch_size=SIZE)


def digest_of(rows):
    """Of the columns of some rows."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(rows):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def rows_here(column):
    parts = {shard.index[0].start or 0: shard.data for shard in column.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def digest_of_rows_here(batch):
    return digest_of(jax.tree.map(rows_here, batch))


def digests_of_parts(batch, count):
    """The digests of the rows of each of `count` processes."""
    parts = jax.tree.map(lambda column: np.split(np.asarray(column), count), batch)
    return [
        digest_of(
            jax.tree.map(lambda part, n=n: part[n], parts, is_leaf=lambda x: isinstance(x, list))
        )
        for n in range(count)
    ]
