"""Pictures: of the rows of a batch, and of which device holds them."""

import json
import re
from itertools import islice

import jax
import matplotlib
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import shardings
from tfds_datasets import detection_features, detection_record, store

from datarax_tfds import (
    PackedSource,
    Pipeline,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    draw_placement,
    make_mesh,
    show,
)
from datarax_tfds.cli import main
from datarax_tfds.pictures.placement import DeviceRows, device_rows, merged
from sharding import local_rows

MESHES = [name for name, placed in shardings().items() if placed is not None]
PNG = b"\x89PNG"


@pytest.mark.parametrize("mesh", MESHES)
def test_the_rows_of_a_device_are_those_that_a_batch_has_there(mesh):
    sharding = shardings()[mesh]
    found = {(each.device, each.start, each.stop) for each in device_rows(sharding, 48)}
    places = local_rows(sharding, 48).items()
    assert found == {(device.id, *rows) for rows, devices in places for device in devices}
    for each in device_rows(sharding, 48):
        at = sharding.mesh.devices[tuple(each.place.values())]
        assert (at.id, at.process_index) == (each.device, each.process)


def test_slices_that_touch_are_merged():
    held = [DeviceRows(0, 0, {}, *rows) for rows in [(8, 16), (24, 32), (16, 24), (8, 16), (0, 4)]]
    assert merged(held) == [(0, 4), (8, 32)]


@pytest.mark.parametrize("devices", [8, 1])
def test_a_picture_has_a_bar_for_the_rows_of_each_device(devices, tmp_path):
    backend = matplotlib.get_backend(auto_select=False)
    mesh = make_mesh({"data": -1}, devices=jax.devices()[:devices])
    picture = draw_placement(batch_sharding(mesh), 16)
    (axes,) = picture.figure.axes
    (bars,) = axes.collections
    size = 16 // devices
    edges = [path.vertices[:, 0] for path in bars.get_paths()]
    assert [(edge.min(), edge.max()) for edge in edges] == [
        (size * number, size * number + size) for number in range(devices)
    ]
    labels = [text.get_text() for text in axes.texts]
    assert labels[0] == f"0-{size - 1}"
    picture.save(tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(PNG)
    assert picture._repr_png_().startswith(PNG)  # what a notebook asks for
    assert matplotlib.get_backend(auto_select=False) == backend  # pyplot was not touched


def pipeline_of(name, data_dir, batch_size=8, sharding=None, remainder="wrap", **fields):
    config = TFDSStreamingConfig(name=name, split="train", data_dir=str(data_dir), **fields)
    source = TFDSStreamingSource(config, sharding=sharding)
    numbered = {"record_numbers": True, "remainder": remainder}
    return Pipeline(source=source, batch_size=batch_size, **numbered)


def drawn(picture):
    """What is drawn in each cell that is used: its title, the image, boxes and texts."""
    return [
        (
            cell.get_title(loc="left"),
            [np.asarray(image.get_array()) for image in cell.images],
            [np.asarray(line.get_xydata()) for line in cell.lines],
            [text.get_text() for text in cell.texts],
        )
        for cell in picture.figure.axes
        if cell.images or cell.texts
    ]


class TestShow:
    def test_each_row_is_its_image_with_label_and_number(self, data_dir):
        placed = batch_sharding(make_mesh({"data": -1}))
        pipeline = pipeline_of("tiny", data_dir, sharding=placed, shuffle=True)
        batch = next(iter(pipeline))
        cells = drawn(show(batch, pipeline))
        for row, (title, (image,), boxes, texts) in enumerate(cells):
            assert title == f"#{batch['record_number'][row]} {batch['label'][row]}"
            np.testing.assert_allclose(image, np.asarray(batch["image"][row]) / 255, atol=1e-6)
            assert boxes == texts == []
        assert len(cells) == 8
        assert len(drawn(show(batch, most=3))) == 3
        assert len(drawn(show(batch | {"step": np.float32(7)}))) == 8

    def test_rows_that_are_padding_are_left_out(self, data_dir):
        *_, last = pipeline_of("tiny", data_dir, batch_size=64, remainder="pad")
        assert [title.split()[0] for title, *_ in drawn(show(last, most=64))] == [
            f"#{number}" for number in range(64, 97)
        ]

    def test_boxes_are_drawn_where_they_are_padded_or_not(self, tmp_path):
        names = ["cat", "dog"]
        of = tfds.features
        objects = {"bbox": of.BBoxFeature(), "label": of.ClassLabel(names=names)}
        objects = of.Sequence(objects | {"is_crowd": np.bool_})
        features = detection_features(of) | {"objects": objects}
        records = [detection_record(number) for number in range(8)]
        for record in records:
            for each in record["objects"]:
                each["label"] %= 2
        store(tmp_path, "pets", features, records)
        sizes = {"objects": 6, "image": (16, 16, 3)}
        pipeline = pipeline_of("pets", tmp_path, pad_to=sizes)
        padded = drawn(show(next(iter(pipeline)), pipeline))
        config = TFDSStreamingConfig(name="pets", split="train", data_dir=str(tmp_path))
        plain = TFDSStreamingSource(config)
        numbered = [record | {"record_number": at} for at, record in enumerate(islice(plain, 8))]
        for number, cells in enumerate(zip(padded, drawn(show(numbered, plain)), strict=True)):
            (title, (image,), boxes, texts), other = cells
            np.testing.assert_equal(other, (title, [image], boxes, texts))
            objects = records[number]["objects"]
            assert texts == [names[each["label"]] for each in objects]
            for corners, each in zip(boxes, objects, strict=True):
                top, left, bottom, right = each["bbox"]
                height, width = image.shape[:2]
                wanted = [left * width, top * height, right * width, bottom * height]
                found = [*corners.min(0), *corners.max(0)]
                np.testing.assert_allclose(found, np.subtract(wanted, 0.5), atol=1e-4)

    def test_tokens_are_text(self, data_dir):
        config = TFDSStreamingConfig(name="text", split="train", data_dir=str(data_dir))
        source = PackedSource(
            TFDSStreamingSource(config), encode=lambda text: list(text.encode()), length=8
        )
        batch = next(iter(Pipeline(source=source, batch_size=2)))
        ids, decoded = (
            [text for *_, (text,) in drawn(show(batch, source, decode=decode))]
            for decode in (None, lambda ids: bytes(ids).decode())
        )
        for row in range(2):
            tokens = np.asarray(batch["tokens"][row])
            assert f"tokens: {' '.join(map(str, tokens))}".split() == ids[row].split()[-9:]
            assert decoded[row].endswith(f"tokens: {bytes(tokens.tolist()).decode().rstrip()}")

    @pytest.mark.parametrize(
        ("image", "shown"),
        [
            (np.array([[[0.0], [0.5]]], np.float32), [[0, 0.5]]),
            (np.array([[[-1.0], [3.0]]], np.float32), [[0, 1]]),  # normalised
            (np.array([[[False], [True]]]), [[0, 1]]),
            (np.array([[[0], [65535]]], np.uint16), [[0, 1]]),
        ],
    )
    def test_images_of_any_dtype_are_shown(self, image, shown):
        ((_, (found,), *_),) = drawn(show({"image": image[None]}))
        np.testing.assert_array_equal(found, np.array(shown, np.float32))


class TestPlace:
    """`datarax-tfds place`, of meshes that are not here."""

    def test_hosts_hold_rows_as_on_real_devices(self, capsys):
        sharding = batch_sharding(make_mesh({"data": 4, "model": 2}))
        words = "--devices 8 --mesh data=4,model=-1 --batch-size 32 --json"
        assert main(["place", *words.split()]) == 0
        imagined = json.loads(capsys.readouterr().out)
        assert imagined == [vars(each) for each in device_rows(sharding, 32)]

    def test_a_thousand_hosts_are_placed_and_drawn(self, tmp_path, capsys):
        picture = tmp_path / "rows.png"
        words = f"--mesh data=2048,model=4 --hosts 1024 --batch-size 8192 --picture {picture}"
        assert main(["place", *words.split()]) == 0
        printed = capsys.readouterr().out
        assert "host 1023 reads 8 rows: 8184:8192\n" in printed
        assert picture.read_bytes().startswith(PNG)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ("--mesh data=4,model", "--mesh must be sizes by name"),
            ("--mesh data=x", "--mesh must be sizes by name"),
            ("--mesh data=--4 --devices 8", "--mesh must be sizes by name"),
            ("--mesh data=3 --devices 8", "--mesh must be sizes by name"),
            ("--mesh data=0 --devices 0", "--mesh must be sizes by name"),
            ("--mesh data=-1", "one size may be -1 if --devices is given"),
            ("--mesh data=8 --hosts 3", "a multiple of the number of --hosts"),
            ("--mesh data=8 --hosts 0", "a multiple of the number of --hosts"),
            ("--mesh rows=8", "use axes='rows'"),
            ("--mesh data=6", "use 30 or 36"),
        ],
    )
    def test_a_mesh_that_cannot_be_is_refused(self, words, said, capsys):
        assert main(["place", *words.split(), "--batch-size", "32"]) == 2
        assert re.search(re.escape(said), capsys.readouterr().err)
