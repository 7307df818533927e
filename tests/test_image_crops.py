"""Crops that decode only the part of an image that they keep."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import tfds_datasets
from refusals import refused
from sources import source_of

from datarax_tfds import decode_center_crop, decode_random_crop

HEIGHT, WIDTH = 48, 64


def pixels(channels: int) -> np.ndarray:
    """A picture that a JPEG keeps well: a smooth slope in every channel."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    slopes = [2 * rows + columns, rows + 2 * columns, 3 * rows]
    return np.stack(slopes[:channels], axis=-1).astype(np.uint8)


ENCODERS = {
    "jpeg": lambda image: tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False),
    "png": tf.io.encode_png,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", list(ENCODERS))
def test_a_center_crop_is_the_middle_of_the_decoded_image(kind, channels):
    encoded = ENCODERS[kind](pixels(channels))
    whole = tf.io.decode_image(encoded, channels)
    crop = decode_center_crop(encoded, (24, 24), fraction=0.5, channels=channels)
    # Half of the shorter side, which is 48; no resize is left to do.
    assert np.array_equal(crop, whole[12:36, 20:44])


def test_a_center_crop_has_the_proportions_of_the_result():
    encoded = tf.io.encode_png(pixels(3))
    crop = decode_center_crop(encoded, (12, 24), fraction=1.0)
    expected = tf.image.resize(pixels(3)[8:40], (12, 24))  # 32 x 64 of 48 x 64
    assert np.array_equal(crop, tf.cast(tf.round(expected), tf.uint8))


@pytest.mark.parametrize("kind", list(ENCODERS))
@pytest.mark.parametrize("area", [(0.05, 0.3), (0.5, 1.0)])
def test_a_random_crop_is_a_part_of_the_image_of_that_area(kind, area):
    encoded, whole = ENCODERS[kind](pixels(3)), pixels(3).astype(int)
    for seed in range(20):
        crop = decode_random_crop(encoded, (seed, 1), (HEIGHT, WIDTH), area=area)
        crop = np.asarray(crop).astype(int)
        # The slopes of the first two channels tell where a corner comes from, and their range how
        # much of the image the crop covers.
        low, high = crop[0, 0], crop[-1, -1]
        rows = (2 * (high - low)[0] - (high - low)[1]) / 3 + 1
        columns = (2 * (high - low)[1] - (high - low)[0]) / 3 + 1
        covered = rows * columns / (HEIGHT * WIDTH)
        assert area[0] * 0.6 < covered < min(area[1] * 1.4, 1.1)
        assert np.abs(crop[0, 0] - whole).sum(axis=-1).min() <= 6  # as it stands in the image


def test_the_seed_alone_decides_the_crop():
    encoded = tf.io.encode_jpeg(pixels(3))
    crops = [np.asarray(decode_random_crop(encoded, seed, (8, 8))) for seed in [(1, 2), (1, 3)]]
    again = decode_random_crop(encoded, (1, 2), (8, 8))
    assert np.array_equal(crops[0], again)
    assert not np.array_equal(*crops)


def test_a_stream_of_encoded_images_gives_the_same_crops_in_batches_of_any_size(data_dir):
    def crop(record, seed):
        image = decode_random_crop(record["image"], seed, (4, 6))
        return {"image": image, "id": record["id"]}

    def source():
        skip = {"image": tfds.decode.SkipDecoding()}
        return source_of(data_dir, shuffle=True, map_fn=crop, decoders=skip)

    batches = [source().get_batch(tfds_datasets.TINY_TRAIN)]
    assert batches[0]["image"].shape == (tfds_datasets.TINY_TRAIN, 4, 6, 3)
    small = source()
    rows = [np.asarray(small.get_batch(7)["image"]) for _ in range(13)]
    assert np.array_equal(np.concatenate(rows), batches[0]["image"][:91])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0, 224)}, "size must be a height and a width in pixels"),
        ({"size": (4, 4), "area": (0.5, 1.5)}, "area must be .low, high. with"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with refused(ValueError, message):
        decode_random_crop(tf.io.encode_png(pixels(3)), (0, 0), **arguments)


def test_a_fraction_above_one_is_refused():
    with refused(ValueError, "fraction must be above 0 and at most 1"):
        decode_center_crop(tf.io.encode_png(pixels(3)), (4, 4), fraction=1.5)
