"""Crops for a `map_fn`, which decode only the part of a JPEG image that they keep.

def crop(record, seed):
    image = decode_random_crop(record["image"], seed, (224, 224))
    return {"image": image, "label": record["label"]}

TFDSStreamingConfig(
    name="imagenet2012",
    split="train",
    decoders={"image": tfds.decode.SkipDecoding()},  # hands `crop` the bytes as stored
    map_fn=crop,
)
"""

from collections.abc import Sequence
from typing import Any

from datarax_tfds.decoding.tensorflow_import import tensorflow
from sharding.checks import is_integer, refused


def decode_random_crop(
    encoded: Any,
    seed: Any,
    size: Sequence[int],
    *,
    area: Sequence[float] = (0.08, 1.0),
    aspect_ratio: Sequence[float] = (3 / 4, 4 / 3),
    channels: int = 3,
) -> Any:
    """Decodes a random part of an image and resizes it: the crop that ImageNet training uses.

    Of a JPEG, only that part is decompressed. The crop depends only on `seed` and the size of the
    image, so a record has the same crop on any number of hosts and after any resume. It is sampled
    as in Szegedy et al., "Going Deeper with Convolutions", 2015.

    Args:
        encoded: A scalar string tensor: the bytes of a JPEG, PNG, BMP or GIF image.
        seed: The seed that `map_fn` gets: `[2]` int32.
        size: Height and width of the result.
        area: The smallest and largest part of the image's area that a crop covers, in `(0, 1]`.
        aspect_ratio: The smallest and largest ratio of a crop's width to its height.
        channels: 3 for colour, 1 for grey.

    Returns:
        A tensor `[*size, channels]` of dtype uint8, resized bilinearly.

    Raises:
        ValueError: `size`, `area` or `aspect_ratio` is not a pair in its range, or `channels` is
            neither 1 nor 3.
    """
    _require_size(size, channels, "decode_random_crop")
    _require(
        _is_range(area) and area[1] <= 1,
        "decode_random_crop",
        "area must be (low, high) with 0 < low <= high <= 1.",
        area=repr(area),
        fix="use area=(0.08, 1.0)",
    )
    _require(
        _is_range(aspect_ratio),
        "decode_random_crop",
        "aspect_ratio must be (low, high) with 0 < low <= high.",
        aspect_ratio=repr(aspect_ratio),
        fix="use aspect_ratio=(0.75, 1.33)",
    )
    tf = tensorflow()

    def window(shape: Any) -> Any:
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=tuple(map(float, aspect_ratio)),
            area_range=tuple(map(float, area)),
            max_attempts=10,
        )
        return tf.concat([begin[:2], extent[:2]], axis=0)

    return _decoded_window(tf, encoded, window, size, channels)


def decode_center_crop(
    encoded: Any, size: Sequence[int], *, fraction: float = 0.875, channels: int = 3
) -> Any:
    """Decodes the middle of an image and resizes it: the crop that ImageNet evaluation uses.

    Args:
        encoded: See `decode_random_crop`.
        size: Height and width of the result.
        fraction: The size of the crop relative to the largest one that fits into the image, in
            `(0, 1]`. The crop has the proportions of `size`.
        channels: 3 for colour, 1 for grey.

    Returns:
        A tensor `[*size, channels]` of dtype uint8, resized bilinearly.

    Raises:
        ValueError: `size` or `fraction` is not in its range, or `channels` is neither 1 nor 3.
    """
    _require_size(size, channels, "decode_center_crop")
    _require(
        0 < fraction <= 1,
        "decode_center_crop",
        "fraction must be above 0 and at most 1.",
        fraction=repr(fraction),
        fix="use fraction=0.875",
    )
    tf = tensorflow()
    proportions = [side / max(size) for side in size]

    def window(shape: Any) -> Any:
        sides = tf.cast(shape[:2], tf.float32)
        # The largest window of these proportions that fits into the image, times `fraction`.
        longest = tf.reduce_min(sides / proportions)
        extent = tf.cast(tf.round(fraction * longest * proportions), tf.int32)
        extent = tf.clip_by_value(extent, 1, shape[:2])
        return tf.concat([(shape[:2] - extent) // 2, extent], axis=0)

    return _decoded_window(tf, encoded, window, size, channels)


def _decoded_window(tf: Any, encoded: Any, window: Any, size: Sequence[int], channels: int) -> Any:
    """Decodes and resizes a window of an image: `window(shape)` is [top, left, height, width]."""
    encoded = tf.convert_to_tensor(encoded)
    _require(
        encoded.dtype == tf.string and encoded.shape.rank in (0, None),
        "encoded",
        "it must be the bytes of one image, a scalar string tensor.",
        got=f"{encoded.dtype.name}{encoded.shape}",
        fix="hand map_fn the bytes as stored, with"
        " decoders={'image': tfds.decode.SkipDecoding()} in the config",
    )

    def crop_jpeg() -> Any:
        part = window(tf.io.extract_jpeg_shape(encoded))
        return tf.image.decode_and_crop_jpeg(encoded, part, channels=channels)

    def decode_and_crop() -> Any:
        image = tf.io.decode_image(encoded, channels, expand_animations=False)
        top, left, height, width = tf.unstack(window(tf.shape(image)))
        return tf.image.crop_to_bounding_box(image, top, left, height, width)

    part = tf.cond(tf.io.is_jpeg(encoded), crop_jpeg, decode_and_crop)
    resized = tf.image.resize(tf.ensure_shape(part, [None, None, channels]), size)
    return tf.cast(tf.round(resized), tf.uint8)


def _require_size(size: Any, channels: Any, subject: str) -> None:
    _require(
        _is_pair(size) and all(is_integer(side, 1) for side in size),
        subject,
        "size must be a height and a width in pixels.",
        got=repr(size),
        fix="use size=(224, 224)",
    )
    _require(
        channels in (1, 3),
        subject,
        "channels must be 1 (grey) or 3 (colour).",
        got=repr(channels),
        fix="use channels=3",
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _is_range(value: Any) -> bool:
    return _is_pair(value) and 0 < value[0] <= value[1]


def _require(holds: bool, subject: str, problem: str, *, fix: str, **facts: str) -> None:
    if not holds:
        raise refused(ValueError, subject, problem, **facts, fix=fix)
