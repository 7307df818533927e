"""What the configs do with images.

The hosts run a `map_fn`, in TensorFlow, and the devices the stages, in JAX.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import tensorflow as tf

from datarax_tfds import decode_center_crop, decode_random_crop

Batch = dict[str, Any]
# Of ImageNet's images, for each colour.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_crop(record: Any, seed: Any, size: Sequence[int] = (224, 224)) -> Any:
    """For training: a random part of the image. Of a JPEG, only that part is decoded."""
    return {"image": decode_random_crop(record["image"], seed, size), "label": record["label"]}


def center_crop(record: Any, size: Sequence[int] = (224, 224)) -> Any:
    """For testing: the middle of the image."""
    return {"image": decode_center_crop(record["image"], size), "label": record["label"]}


def resize(record: Any, size: Sequence[int] = (512, 512)) -> Any:
    """Resizes an image with objects. Boxes are fractions of the image, so they stay valid."""
    image = tf.image.resize(record["image"], size)
    objects = {name: record["objects"][name] for name in ("bbox", "label")}
    return {"image": tf.cast(tf.round(image), tf.uint8), "objects": objects}


def to_float(batch: Batch) -> Batch:
    return batch | {"image": batch["image"].astype(jnp.float32) / 255}


def normalize(batch: Batch) -> Batch:
    """Turns uint8 images into floats with a mean of about 0 and a deviation of about 1."""
    scaled = batch["image"].astype(jnp.float32) / 255
    mean, deviation = (jnp.array(each)[None, None, None] for each in (MEAN, DEVIATION))
    return batch | {"image": (scaled - mean) / deviation}


def flip(batch: Batch, keys: jax.Array) -> Batch:
    """Mirrors half of the images, and their boxes if there are some."""
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    image = batch["image"]
    image = jnp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)
    if "objects" not in batch:
        return batch | {"image": image}
    boxes = batch["objects"]["bbox"]
    top, left, bottom, right = (boxes[..., edge] for edge in range(4))
    other = jnp.stack([top, 1 - right, bottom, 1 - left], -1)
    boxes = jnp.where(mirrored[:, None, None], other, boxes)
    return batch | {"image": image, "objects": batch["objects"] | {"bbox": boxes}}


def shift(batch: Batch, keys: jax.Array) -> Batch:
    """Moves each image by up to 4 pixels in both directions; zeros come in."""

    def shifted(image: jax.Array, key: jax.Array) -> jax.Array:
        top, left = jax.random.randint(key, (2,), 0, 9)
        wider = jnp.pad(image, ((4, 4), (4, 4), (0, 0)))
        return jax.lax.dynamic_slice(wider, (top, left, 0), image.shape)

    return batch | {"image": jax.vmap(shifted)(batch["image"], keys)}
