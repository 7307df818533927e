"""A counted number of corrupt records is replaced: alike everywhere, logged, and audited."""

import collections
import functools
import io
import json
import logging
import os
import re
import shutil

import numpy as np
import pytest
import tfds_datasets
from checkout import run
from conftest import shardings
from contract import N
from pairs import all_pairs
from refusals import check_message, refused

from datarax_tfds import (
    CursorLog,
    DataLossError,
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    audit,
)
from datarax_tfds.files.split import open_split
from datarax_tfds.files.tfrecord import scanned_starts
from datarax_tfds.files.tfrecord_index import TFRecordOpener

SIZE = 32
# Two in a row, in the midst of a shard, and the last of all: what is delivered in their places.
REPLACED = {33: 35, 34: 35, 96: 0}
NAMES = {"TFRecord": "tiny", "ArrayRecord": "tiny_array"}


def no_example(record):
    return b"\xff" * 20


def broken_image(record):
    assert b"IHDR" in record
    return record.replace(b"IHDR", b"XXXX")


UNDECODABLE = {"no example": no_example, "broken image": broken_image}
DAMAGES = ["checksum", *UNDECODABLE]
REASONS = {
    "checksum": "checksum|chunk data hash mismatch",
    "no example": "Could not parse example",
    "broken image": "PNG|image",
}


def write_records(path, records):
    """Writes a file of either format anew, with these records."""
    if "tfrecord" in path.name:
        import tensorflow as tf

        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)
        return
    from array_record.python import array_record_module  # pyright: ignore

    # Not compressed, so that a record is found in the file by its bytes.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()


def spoil(data_dir, name, damage, numbers):
    """Damages the records of these numbers of a dataset, each in its file."""
    config = TFDSStreamingConfig(name=name, split="train", data_dir=str(data_dir))
    split = open_split(config)
    records = split.files.read(np.arange(len(split)))
    start = 0
    for path in sorted((data_dir / name / "1.0.0").glob("*-train.*")):
        match = json.loads((path.parent / "dataset_info.json").read_text())
        train = next(part for part in match["splits"] if part["name"] == "train")
        count = int(train["shardLengths"][int(path.name.split("-")[-3])])
        own = records[start : start + count]
        hit = [number - start for number in numbers if start <= number < start + count]
        spoiled = [
            UNDECODABLE[damage](record) if place in hit and damage in UNDECODABLE else record
            for place, record in enumerate(own)
        ]
        if hit:
            write_records(path, spoiled)
        if damage == "checksum":
            content = bytearray(path.read_bytes())
            for place in hit:
                content[content.index(own[place]) + 20] ^= 4
            path.write_bytes(content)
        start += count
    assert start == N


@pytest.fixture(scope="module")
def damaged(data_dir, tmp_path_factory):
    """Where the tiny dataset has corrupt records, by its format and the damage."""
    found = {}
    for kind, name in NAMES.items():
        for damage in DAMAGES:
            directory = found[kind, damage] = tmp_path_factory.mktemp("damaged")
            shutil.copytree(data_dir / name, directory / name)
            spoil(directory, name, damage, list(REPLACED))
    return found


ACCESS = {
    "streaming": {},
    "cached": {"cacheable": True},
    "blocks": {"access": "sequential", "shuffle_buffer_size": 32, "block_size": 4},
    "eager": {},
}


def opened(directory, name="tiny", access="streaming", sharding=None, **fields):
    fields = {"split": "train", "data_dir": str(directory), "shuffle": True, "seed": 3} | fields
    fields |= {"name": name} | ACCESS[access]
    if access == "eager":
        return TFDSEagerSource(TFDSEagerConfig(**fields), sharding=sharding)
    return TFDSStreamingSource(TFDSStreamingConfig(**fields), sharding=sharding)


def bits(batch):
    return {name: np.asarray(column) for name, column in batch.items()}


def check_records(batch, numbers, replaced=REPLACED):
    sound = [replaced.get(number, number) for number in numbers.tolist()]
    records = [tfds_datasets.tiny_record(number) for number in sound]
    assert batch["id"].tolist() == [record["id"] for record in records]
    assert (batch["image"] == [record["image"] for record in records]).all()


@pytest.mark.parametrize(
    ("kind", "damage", "access", "mesh"),
    all_pairs(NAMES, DAMAGES, ACCESS, ["one device", "8 devices"]),
)
def test_the_next_sound_record_is_delivered_before_and_after_every_resume(
    damaged, kind, damage, access, mesh
):
    directory, sharding = damaged[kind, damage], shardings()[mesh]

    def fresh():
        source = opened(directory, NAMES[kind], access, sharding, max_corrupt_records=3)
        return Pipeline(source=source, batch_size=SIZE, record_numbers=True)

    pipeline = fresh()
    states, batches = [], []
    for _ in range(7):  # two epochs
        states.append(pipeline.get_state())
        batches.append(bits(pipeline.step()))
    asked = np.concatenate([batch["record_number"] for batch in batches])
    assert sorted(asked[:N]) == sorted(asked[N : 2 * N]) == list(range(N))
    for batch in batches:
        check_records(batch, batch["record_number"])
    assert pipeline.source.corrupt_records == REPLACED
    assert len(json.dumps(states[0])) < 2048
    for state, batch in zip(states[:4], batches, strict=False):
        resumed = fresh()
        resumed.set_state(state)
        again = bits(resumed.step())
        assert all((again[name] == batch[name]).all() for name in batch)


@pytest.mark.parametrize(("kind", "damage", "access"), all_pairs(NAMES, DAMAGES, ACCESS))
def test_one_record_more_than_allowed_is_an_error_that_counts_them(damaged, kind, damage, access):
    def read_all(most):
        source = opened(damaged[kind, damage], NAMES[kind], access, max_corrupt_records=most)
        return source.get_records(np.arange(N))

    names = NAMES[kind]
    with refused(
        DataLossError,
        r"3 records are corrupt, and max_corrupt_records=2 allows no more than 2\."
        rf".*records: +33: record \d+ of .*{names}-train.*\n.*34: record .*\n.*96: record .*\n"
        rf".*last: .*({REASONS[damage]}).*fix: .*set max_corrupt_records to 3 or more",
    ):
        read_all(2)
    fixed = read_all(3)
    check_records(bits(fixed), np.arange(N))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", list(NAMES))
def test_each_corrupt_record_is_logged_once(damaged, kind, damage, caplog):
    source = opened(damaged[kind, damage], NAMES[kind], max_corrupt_records=3)
    assert source.corrupt_records == {}
    with caplog.at_level(logging.WARNING, "datarax_tfds"):
        for _ in range(3):
            source.get_records(np.arange(N))
        list(source)
        int(source[33]["id"])
    texts = [entry.getMessage() for entry in caplog.records]
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING] * 3
    assert sorted(int(re.search(r"record (\d+) is corrupt", text)[1]) for text in texts) == [
        *REPLACED
    ]
    for text in texts:
        check_message(text)
        number = int(re.search(r"record (\d+) is corrupt", text)[1])
        assert f"record {REPLACED[number]} is delivered in its place" in text
        assert re.search(r"where: +record \d+ of .*(byte|number) \d+", text)
        assert re.search(rf"reason: .*({REASONS[damage]})", text)
        assert "max_corrupt_records=3" in text


@pytest.mark.parametrize("access", list(ACCESS))
def test_no_record_is_replaced_by_default(damaged, access, caplog):
    with refused(DataLossError, r"a record fails its checksum\."):
        opened(damaged["TFRecord", "checksum"], access=access).get_records(np.arange(N))
    assert not caplog.records


@pytest.mark.parametrize("access", ["streaming", "eager"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_map_fn_gets_the_sound_record(damaged, damage, access):
    def twice(record):
        return {"id": record["id"], "image": record["image"], "twice": 2 * record["id"]}

    directory = damaged["TFRecord", damage]
    source = opened(directory, access=access, map_fn=twice, max_corrupt_records=3)
    batch = bits(source.get_records(np.arange(N)))
    check_records(batch, np.arange(N))
    assert (batch["twice"] == 2 * batch["id"]).all()


@pytest.mark.parametrize("access", list(ACCESS))
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-5], "cut short"),
        (lambda content: bytes([content[0] ^ 4]) + content[1:], "length fails its checksum"),
        (lambda content: content[:0], "holds 0 records"),
        (None, "missing"),
    ],
)
def test_a_damaged_file_is_still_an_error(data_dir, tmp_path, access, damage, message):
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny/1.0.0/.record_index", ignore_errors=True)
    path = next((tmp_path / "tiny").rglob("*train.tfrecord-00001*"))
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with refused(DataLossError, message):
        opened(tmp_path, access=access, max_corrupt_records=97).get_records(np.arange(N))


def test_a_split_without_any_sound_record_is_an_error(data_dir, tmp_path):
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    spoil(tmp_path, "tiny", "checksum", range(N))
    source = opened(tmp_path, max_corrupt_records=1000)
    with refused(DataLossError, "97 records are corrupt.*and this is every record"):
        source.get_records(np.arange(3))


def test_a_wrong_index_makes_no_record_corrupt(data_dir, tmp_path):
    """The index is of another file, of the same size and date: the records are where they are."""
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny")
    path = next((tmp_path / "tiny").rglob("*train.tfrecord-00001*"))
    stat, content, starts = path.stat(), path.read_bytes(), scanned_starts(path)
    first, second, *others = TFRecordOpener()(path).read(range(len(starts) - 1))
    write_records(path, [first + bytes(8), second[:-8], *others])
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    opened(tmp_path, max_corrupt_records=90).get_records(np.arange(N))  # keeps an index of it
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    source = opened(tmp_path, max_corrupt_records=90)
    check_records(bits(source.get_records(np.arange(N))), np.arange(N), replaced={})
    assert source.corrupt_records == {}


def test_a_file_that_was_repaired_gives_its_records_again(damaged, data_dir, tmp_path):
    shutil.copytree(damaged["TFRecord", "checksum"] / "tiny", tmp_path / "tiny")
    before = opened(tmp_path, max_corrupt_records=3)
    before.get_batch(SIZE)
    state = before.get_state()
    for path in (data_dir / "tiny/1.0.0").glob("*train*"):
        shutil.copy(path, tmp_path / "tiny/1.0.0")
    after = opened(tmp_path, max_corrupt_records=3)
    after.set_state(state)
    numbers = np.asarray(after.record_indices_at(after.cursor.index, SIZE))
    check_records(bits(after.get_batch(SIZE)), numbers, replaced={})


@pytest.mark.parametrize("access", list(ACCESS))
def test_the_audit_lists_the_replaced_records(damaged, tmp_path, access):
    path = tmp_path / "log"
    source = opened(damaged["TFRecord", "checksum"], access=access, max_corrupt_records=3)
    pipeline = Pipeline(source=source, batch_size=SIZE, record_numbers=True)
    log = CursorLog(path, pipeline)
    asked = []
    for _ in range(7):
        batch = pipeline.step()
        asked += np.asarray(batch["record_number"]).tolist()
        log.note(batch["record_number"])
    found = audit(path.read_text().splitlines())
    expected = [
        (place // N, place % N, number, REPLACED[number])
        for place, number in enumerate(asked)
        if number in REPLACED
    ]
    assert list(found.replaced) == expected
    assert not found.sound
    assert found.lost == found.twice == found.wrong == ()
    assert re.search(r"NOT every record came once\nlost: \d+ corrupt records, replaced", str(found))
    assert re.search(r"epoch 0, position \d+: record 33, replaced by record 35", str(found))


def test_replaced_records_of_steps_that_were_rolled_back_are_not_lost(damaged, tmp_path):
    path = tmp_path / "log"

    def steps(count, state=None):
        source = opened(damaged["TFRecord", "checksum"], shuffle=False, max_corrupt_records=3)
        pipeline = Pipeline(source=source, batch_size=SIZE)
        if state is not None:
            pipeline.set_state(state)
        log, start = CursorLog(path, pipeline), pipeline.get_state()
        for _ in range(count):
            pipeline.step()
            log.note()
        return start

    start = steps(2)
    assert [lost.record for lost in audit(path.read_text().splitlines()).replaced] == [33, 34]
    steps(1, start)
    found = audit(path.read_text().splitlines())
    assert found.sound, found
    assert "each record was delivered once" in str(found)


def test_two_processes_replace_the_same_records(damaged, tmp_path):
    """Each reads rows of its own; the corrupt ones are replaced as on one process."""
    directory = damaged["TFRecord", "checksum"]
    run(2, "replace.py", directory, tmp_path, logs=tmp_path)
    logs = sorted(tmp_path.glob("cursors-streaming-*.jsonl"))
    assert len(logs) == 2
    notes = [json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1)]
    one = Pipeline(source=opened(directory, max_corrupt_records=3), batch_size=SIZE)
    for access in ("streaming", "eager"):
        one.reset()
        for step in range(4):
            ids = np.asarray(one.step()["id"])
            rows = {}
            for note in notes:
                rows |= {int(start): part for start, part in note[access][step].items()}
            assert sum((rows[start] for start in sorted(rows)), []) == ids.tolist()
    found = audit(*(path.read_text().splitlines() for path in logs))
    assert {(lost.record, lost.by) for lost in found.replaced} == set(REPLACED.items())
    assert not found.wrong
    # Three were replaced, of two that each may replace; then each has read all three.
    assert [note["apart"] for note in notes] == [[33, 34], [96]]
    for note in notes:
        assert "3 records are corrupt, and max_corrupt_records=2" in note["together"]
    # The same record was asked for on both, and over the limit both end.
    assert all(note["both"] == [35] for note in notes)
    assert all("max_corrupt_records" in note["differs"] for note in notes)


CUT = 40  # the record whose image is cut short


def crops_of_jpeg(record, seed):
    from datarax_tfds import decode_random_crop

    return {"id": record["id"], "image": decode_random_crop(record["image"], seed, (8, 8))}


def whole_jpeg(record):
    import tensorflow as tf

    image = tf.io.decode_jpeg(record["image"], channels=3)
    return {"id": record["id"], "image": tf.ensure_shape(image, (64, 64, 3))}


DECODED_IN_MAP_FN = {"random crops": crops_of_jpeg, "whole images": whole_jpeg}


@pytest.fixture(scope="module")
def cut_images(tmp_path_factory):
    """A dataset of JPEGs in files with right checksums, one of which was written cut short."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def jpeg(number):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        return tf.io.encode_jpeg(pixels).numpy()

    directory = tmp_path_factory.mktemp("cut")
    image = tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg")
    records = [{"id": number, "image": io.BytesIO(jpeg(number))} for number in range(N)]
    tfds_datasets.store(directory, "cut", {"id": np.int64, "image": image}, records)
    (path,) = (directory / "cut" / "1.0.0").glob("*-train.*")
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    example = tf.train.Example.FromString(records[CUT])
    stored = example.features.feature["image"].bytes_list
    stored.value[0] = stored.value[0][:-200]  # the lower rows
    records[CUT] = example.SerializeToString()
    write_records(path, records)
    return directory


def skipping(directory, map_fn, access="streaming", **fields):
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    return opened(directory, "cut", access, decoders=decoders, map_fn=map_fn, **fields)


class TestFeaturesThatMapFnDecodes:
    """Left as stored by `SkipDecoding`, as the recipe for ImageNet has it."""

    @pytest.mark.parametrize("access", list(ACCESS))
    def test_a_damaged_image_is_replaced_as_without_skip_decoding(self, cut_images, access):
        skipped = skipping(cut_images, whole_jpeg, access, max_corrupt_records=1)
        plain = opened(cut_images, "cut", access, max_corrupt_records=1)
        ids = [source.get_records(np.arange(N))["id"].tolist() for source in (skipped, plain)]
        assert ids[0] == ids[1] == [CUT + 1 if each == CUT else each for each in range(N)]
        assert skipped.corrupt_records == plain.corrupt_records == {CUT: CUT + 1}

    @pytest.mark.parametrize("access", ["streaming", "blocks"])
    def test_a_damaged_random_crop_is_replaced_the_same_after_every_resume(
        self, cut_images, access
    ):
        def fresh():
            source = skipping(cut_images, crops_of_jpeg, access, max_corrupt_records=1)
            return Pipeline(source=source, batch_size=SIZE, record_numbers=True)

        pipeline = fresh()
        states, batches = [], []
        for _ in range(40):
            states.append(pipeline.get_state())
            batches.append(bits(pipeline.step()))
        delivered = {
            int(id_)
            for batch in batches
            for number, id_ in zip(batch["record_number"], batch["id"], strict=True)
            if number == CUT
        }
        assert delivered == {CUT, CUT + 1}  # the seed decides whether the damage is met
        assert pipeline.source.corrupt_records == {CUT: CUT + 1}
        resumes = collections.Counter()
        for state, batch in zip(states, batches, strict=True):
            met = tuple(batch["id"][batch["record_number"] == CUT].tolist())
            if met and resumes[met] < 2:  # a new source takes half a second
                resumes[met] += 1
                resumed = fresh()
                resumed.set_state(state)
                again = bits(resumed.step())
                assert all((again[name] == batch[name]).all() for name in batch)
        assert resumes[(CUT,)] == resumes[(CUT + 1,)] == 2

    @pytest.mark.parametrize("map_fn", DECODED_IN_MAP_FN.values(), ids=list(DECODED_IN_MAP_FN))
    def test_no_record_is_replaced_by_default(self, cut_images, map_fn):
        source = skipping(cut_images, map_fn)
        with refused(DataLossError, r"a record cannot be decoded.*error: +jpeg::Uncompress failed"):
            for _ in range(10):
                source.get_batch(N)

    @pytest.mark.parametrize("skips", [True, False])
    def test_a_map_fn_that_fails_on_a_sound_record_is_to_blame(self, cut_images, skips):
        import tensorflow as tf

        def fails_at_33(record):
            sound = tf.debugging.assert_none_equal(record["id"], np.int64(33))
            with tf.control_dependencies([sound]):
                return {"id": tf.identity(record["id"])}

        make = skipping if skips else functools.partial(opened, name="cut")
        source = make(cut_images, map_fn=fails_at_33, max_corrupt_records=90)
        with refused(RuntimeError, "map_fn fails on a record"):
            source.get_records(np.arange(CUT))
        assert source.corrupt_records == {}
