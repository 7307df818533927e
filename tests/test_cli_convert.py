"""`datarax-tfds convert`: one's own images and tables become records that a source reads."""

import numpy as np
import pytest
from PIL import Image

from datarax_tfds import TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.cli import main


def image(path, value, size=(4, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], (value,) * len(mode) if mode != "L" else value).save(path)


def records(tmp_path, split="train", **fields):
    config = TFDSStreamingConfig(name="own", split=split, data_dir=str(tmp_path / "data"), **fields)
    source = TFDSStreamingSource(config)
    return source, [
        {name: np.asarray(value).tolist() for name, value in record.items()} for record in source
    ]


def convert(path, tmp_path, *words):
    return main(
        ["convert", str(path), "--name", "own", "--data-dir", str(tmp_path / "data"), *words]
    )


def test_a_folder_of_images_becomes_records_with_its_names_as_labels(tmp_path, capsys):
    folder = tmp_path / "photos"
    for value, name in enumerate(["cat/a.png", "cat/b.PNG", "dog/a.png"]):
        image(folder / name, value)
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    image(folder / ".hidden" / "c.png", 9)
    assert convert(folder, tmp_path) == 0
    printed = capsys.readouterr()
    assert printed.out == f"own/1.0.0 in {tmp_path}/data/own/1.0.0: 3 records of train\n"
    assert printed.err == "ignored what is no JPEG or PNG file: 1 .txt\n"
    source, found = records(tmp_path)
    assert source.element_spec()["image"].shape == (4, 5, 3)
    assert sorted((r["image"][0][0], r["label"]) for r in found) == [
        ([0] * 3, 0),
        ([1] * 3, 0),
        ([2] * 3, 1),
    ]
    assert source.get_dataset_info().features["label"].names == ["cat", "dog"]
    assert source.get_dataset_info().supervised_keys == ("image", "label")
    assert convert(folder, tmp_path) == 2
    assert "exists: choose another --version" in capsys.readouterr().err
    assert convert(folder, tmp_path, "--version", "2.0.0") == 0


def test_a_folder_gives_the_same_files_wherever_it_lies(tmp_path):
    written = []
    for place in ("here/photos", "elsewhere/pictures"):
        for value in range(40):
            image(tmp_path / place / ("cat", "dog")[value % 2] / f"{value}.png", value)
        assert convert(tmp_path / place, tmp_path / place / "..") == 0
        (file,) = (tmp_path / place / "../data").rglob("*.tfrecord*")
        written.append(file.read_bytes())
    assert written[0] == written[1]


def test_folders_above_those_of_labels_are_splits(tmp_path, capsys):
    for value, name in enumerate(["train/cat/a.png", "train/dog/b.png", "test/cat/a.png"]):
        image(tmp_path / "photos" / name, value, size=(4 + value, 5), mode="L")
    assert convert(tmp_path / "photos", tmp_path, "--file-format", "array_record") == 0
    assert "1 record of test, 2 of train" in capsys.readouterr().out
    source, found = records(tmp_path, "test")
    assert source.element_spec()["image"].shape == (None, None, 1)  # the sizes vary
    assert [(np.shape(r["image"]), r["label"]) for r in found] == [((6, 5, 1), 0)]


def test_images_without_folders_for_labels_have_none(tmp_path):
    for name in ("train/a.png", "test/b.png"):
        image(tmp_path / "photos" / name, 7)
    assert convert(tmp_path / "photos", tmp_path) == 0
    _, found = records(tmp_path)
    assert [set(record) for record in found] == [{"image"}]


def test_a_damaged_image_is_named(tmp_path, capsys):
    folder = tmp_path / "photos" / "cat"
    image(folder / "a.jpg", 3, size=(64, 64))
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    assert convert(tmp_path / "photos", tmp_path) == 2
    assert f"{folder}/a.jpg: this cannot be decoded" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_table_has_numbers_texts_labels_and_images(tmp_path, capsys):
    image(tmp_path / "a b.png", 5)
    rows = [
        "file,kind,count,size,postcode,note",
        'a b.png,oak,3,1.5,01234,"tall, old"',
        "a b.png,fir,-4,,99999,",
    ]
    (tmp_path / "trees.csv").write_text("\n".join([*rows, ""]), encoding="utf-8-sig")
    words = ("--labels", "kind", "--image", "file")
    assert convert(tmp_path / "trees.csv", tmp_path, *words) == 0
    source, found = records(tmp_path)
    found.sort(key=lambda record: record["count"])
    fir, oak = found
    assert fir.pop("size") != fir.get("size")  # it is NaN
    assert np.shape(fir.pop("file")) == np.shape(oak.pop("file")) == (4, 5, 3)
    assert fir == {"kind": 0, "count": -4, "postcode": b"99999", "note": b""}
    assert oak == {
        "kind": 1,
        "count": 3,
        "size": 1.5,
        "postcode": b"01234",
        "note": b"tall, old",
    }
    features = source.get_dataset_info().features
    assert (features["count"].dtype, features["size"].dtype) == (np.int64, np.float64)


def test_a_folder_of_tables_has_one_for_each_split(tmp_path, capsys):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "train.tsv").write_text("x\ty\n1\t2\n3\t4\n")
    (tmp_path / "table" / "test.tsv").write_text("x\ty\n5\t0.5\n")
    assert convert(tmp_path / "table", tmp_path) == 0
    assert "1 record of test, 2 of train" in capsys.readouterr().out
    _, found = records(tmp_path, "test")
    assert found == [{"x": 5, "y": 0.5}]


def test_integers_that_a_dtype_would_round_stay_texts(tmp_path):
    long = ["9007199254740993", "-9223372036854775807", "12345678901234567890"]
    rows = ["whole,with_gaps,longer,short", f"{long[0]},{long[0]},{long[1]},7", f"8,,{long[2]},"]
    (tmp_path / "ids.csv").write_text("\n".join(rows))
    assert convert(tmp_path / "ids.csv", tmp_path) == 0
    source, _ = records(tmp_path, include_keys={"short"})
    features = source.get_dataset_info().features
    dtypes = {name: np.dtype(feature.np_dtype).name for name, feature in features.items()}
    assert dtypes == {"whole": "int64", "with_gaps": "object", "longer": "object",
                      "short": "float64"}  # fmt: skip


def test_tables_beside_images_are_refused_unless_they_name_them(tmp_path, capsys):
    image(tmp_path / "photos" / "cat" / "a.png", 3)
    (tmp_path / "photos" / "train.csv").write_text("file,size\ncat/a.png,7\n")
    assert convert(tmp_path / "photos", tmp_path) == 2
    assert "has both images and tables: give --image" in capsys.readouterr().err
    assert convert(tmp_path / "photos", tmp_path, "--image", "file") == 0
    (tmp_path / "photos" / "my-table.csv").write_text("file,size\ncat/a.png,7\n")
    assert convert(tmp_path / "photos", tmp_path, "--image", "file") == 2
    assert "got ['my-table']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "words", "said"),
    [
        (".", ("--data-dir", "gs://bucket/data"), "it reads and writes disks"),
        ("none", (), "there is no file or folder"),
        (".", ("--name", "My-Photos"), "small letters, digits and underscores, got 'My-Photos'"),
        (".", ("--labels", "kind"), "--labels and --image are for CSV files"),
    ],
)
def test_wrong_words_are_answered(path, words, said, tmp_path, capsys):
    assert convert(tmp_path / path, tmp_path, *words) == 2
    assert said in capsys.readouterr().err
