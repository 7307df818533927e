"""Records by number for the loaders of other libraries: Grain's, PyTorch's and one's own."""

import importlib.util
import pickle
import shutil
import sys

import absl.flags
import grain
import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import tfds_datasets
import warmed
from checkout import GUARD_S
from contract import KEPT, N, equal, some_labels
from refusals import refused
from sources import source_of
from tfds_datasets import MOST_OBJECTS, detection_features, detection_record, store, tiny_record

from datarax_tfds import (
    Cursor,
    DataLossError,
    TFDSEagerConfig,
    TFDSStreamingConfig,
    random_access,
)


def config_of(data_dir, name="tiny", kind=TFDSStreamingConfig, **fields):
    return kind(name=name, split="train", data_dir=str(data_dir), **fields)


@pytest.fixture(scope="module")
def tiny(data_dir):
    return random_access(config_of(data_dir))


def jittered(record, rng):
    return record | {"noise": rng.random(3)}


def distorted(record, seed):
    return {"id": record["id"], "noise": tf.random.stateless_uniform([2], seed)}


def dtypes(record):
    return jax.tree.map(lambda value: np.asarray(value).dtype, record)


class TestRecords:
    @pytest.mark.parametrize("name", ["tiny_one", "text", "dtypes"])
    def test_each_is_what_tfds_gives(self, data_dir, name):
        source = random_access(config_of(data_dir, name))
        builder = tfds.builder(name, data_dir=str(data_dir))
        expected = list(tfds.as_numpy(builder.as_dataset(split="train")))
        assert len(source) == len(expected)
        for number, record in enumerate(expected):
            jax.tree.map(np.testing.assert_array_equal, source[number], record)
            assert dtypes(source[number]) == dtypes(record)

    @pytest.mark.parametrize("name", ["tiny", "tiny_array", "tiny_uneven"])
    @pytest.mark.parametrize("kind", [TFDSEagerConfig, TFDSStreamingConfig])
    def test_they_come_by_number_in_any_format(self, data_dir, name, kind):
        source = random_access(config_of(data_dir, name, kind, shuffle=True))
        assert isinstance(source, grain.sources.RandomAccessDataSource)
        assert len(source) == N
        for number in (0, 96, 5, np.int64(33), np.uint8(33)):
            assert equal(source[number], tiny_record(number))

    def test_negative_numbers_count_from_the_end(self, tiny):
        assert equal(tiny[-1], tiny[N - 1])
        assert equal(tiny[-N], tiny[0])

    def test_a_loop_over_them_ends(self, tiny):
        assert [record["id"] for record in tiny] == list(range(N))

    @pytest.mark.parametrize("number", [N, -N - 1])
    def test_there_are_no_others(self, tiny, number):
        with refused(IndexError, "there is no such record"):
            tiny[number]

    @pytest.mark.parametrize("number", [1.0, "1", slice(2), None, [1]])
    def test_a_number_is_one_integer(self, tiny, number):
        with refused(TypeError, "a record is taken by its number"):
            tiny[number]

    @pytest.mark.parametrize("name", ["tiny", "text"])
    def test_many_at_once_are_those_one_by_one(self, data_dir, name):
        source = random_access(config_of(data_dir, name))
        numbers = [3, 1, 3, -1, *range(len(source))]
        records = source.__getitems__(numbers)
        assert all(map(equal, records, (source[number] for number in numbers)))
        assert source.__getitems__([]) == []

    def test_arrays_are_those_of_the_caller(self, tiny):
        first, other = tiny.__getitems__([4, 4])
        first["image"][:] = 0
        assert equal(other, tiny_record(4))

    @pytest.mark.parametrize(
        "fields", [{"map_fn": distorted}, {"transform": jittered}], ids=["map_fn", "transform"]
    )
    def test_random_values_are_those_of_a_source_in_that_epoch(self, data_dir, fields):
        stream = source_of(data_dir, seed=8, **fields)
        first, third = (
            random_access(config_of(data_dir, seed=8, **fields), epoch=epoch) for epoch in (0, 2)
        )
        for source, epoch in ((first, 0), (third, 2)):
            stream.seek(Cursor(epoch, 0))
            expected = stream.get_records(np.arange(20))
            for number in (0, 7, 19):
                noise = np.asarray(expected["noise"])[number]
                assert np.array_equal(source[number]["noise"].astype(noise.dtype), noise)
        assert not equal(first[3], third[3])

    def test_padded_ones_have_one_shape(self, tmp_path):
        records = map(detection_record, range(6))
        store(tmp_path, "detection", detection_features(tfds.features), records)
        pad_to = {"objects": MOST_OBJECTS, "image": (9, 9, 3)}
        source = random_access(config_of(tmp_path, "detection", pad_to=pad_to))
        for number in range(6):
            record, written = source[number], detection_record(number)
            count = len(written["objects"])
            assert record["objects"]["label"].shape == (MOST_OBJECTS,)
            assert record["objects_length"] == count
            labels = [each["label"] for each in written["objects"]]
            assert record["objects"]["label"][:count].tolist() == labels
            assert record["image_shape"].tolist() == list(written["image"].shape)


class TestFilter:
    @pytest.fixture
    def source(self, data_dir):
        return random_access(config_of(data_dir, filter_fn=lambda each: some_labels(each)))

    def test_the_kept_records_have_the_numbers(self, source):
        assert len(source) == len(KEPT)
        assert [record["id"] for record in source] == KEPT

    def test_a_copy_does_not_ask_the_filter_again(self, source, monkeypatch):
        monkeypatch.setattr("datarax_tfds.adapters.random_access.filtered", None)
        copy = pickle.loads(pickle.dumps(source))
        assert copy[-1]["id"] == KEPT[-1]


class TestCopies:
    def test_a_copy_reads_the_same_and_is_small(self, data_dir):
        source = random_access(config_of(data_dir, transform=jittered, seed=3), epoch=1)
        source[0]
        copy = pickle.loads(pickle.dumps(source))
        assert len(pickle.dumps(source)) < 4_000
        assert repr(copy) == repr(source)
        assert equal(copy[5], source[5])

    def test_one_of_a_dataset_that_was_written_anew_is_refused(self, tmp_path):
        tfds_datasets.write(tmp_path, "equal")
        source = random_access(config_of(tmp_path, "equal"))
        copy = pickle.dumps(source)
        shutil.rmtree(tmp_path / "equal")
        tfds_datasets.write(tmp_path, "equal", shards=2)
        with refused(DataLossError, "the dataset was written anew"):
            pickle.loads(copy)[0]

    def test_a_process_that_only_reads_starts_no_device(self, data_dir):
        code = (
            "import sys, jax\n"
            "from datarax_tfds import TFDSStreamingConfig, random_access\n"
            "config = TFDSStreamingConfig(name='tiny', split='train', data_dir=sys.argv[1])\n"
            "source = random_access(config)\n"
            "assert source[5]['id'] == 5\n"
            "import jax._src.xla_bridge as bridge\n"
            "assert not bridge.backends_are_initialized()\n"
        )
        done = warmed.run([sys.executable, "-c", code, str(data_dir)], timeout=GUARD_S)
        assert done.returncode == 0, done.stderr


class TestGrain:
    def test_a_dataset_goes_on_after_any_element(self, tiny):
        dataset = grain.MapDataset.source(tiny).shuffle(seed=4).batch(24)
        grain.experimental.assert_equal_output_after_checkpoint(dataset.to_iter_dataset())

    def test_a_data_loader_goes_on_with_the_same_records(self, data_dir):
        def loader():
            source = random_access(config_of(data_dir))
            sampler = grain.samplers.IndexSampler(len(source), shuffle=True, seed=1, num_epochs=1)
            return grain.DataLoader(
                data_source=source, sampler=sampler, operations=[grain.transforms.Batch(10)]
            )

        batches = iter(loader())
        next(batches)
        state = batches.get_state()
        resumed = iter(loader())
        resumed.set_state(state)
        ids = [[batch["id"].tolist() for batch in rest] for rest in (batches, resumed)]
        assert ids[0] == ids[1]
        assert len(ids[0]) == 9

    @pytest.fixture
    def flags(self):
        """The flags of absl, which Grain reads when it starts processes."""
        absl.flags.FLAGS.mark_as_parsed()
        yield
        absl.flags.FLAGS.unparse_flags()

    def test_its_processes_read_the_same_records(self, data_dir, flags):
        """In a process of its own, which opens the files; it takes 8 s of a core to start."""
        config = config_of(data_dir, filter_fn=some_labels, transform=jittered)
        source = random_access(config)
        dataset = grain.MapDataset.source(source).shuffle(seed=4).to_iter_dataset().batch(12)
        workers = grain.multiprocessing.MultiprocessingOptions(num_workers=1)
        found = list(dataset.mp_prefetch(workers))
        rows = [
            jax.tree.map(lambda column, row=row: column[row], batch)
            for batch in found
            for row in range(len(batch["id"]))
        ]
        assert sorted(row["id"] for row in rows) == KEPT
        for row in rows:
            assert equal(row, source[KEPT.index(row["id"])])


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: it takes 0.7 GB"
)
def test_the_processes_of_a_torch_loader_read_the_same_records(data_dir):
    import torch

    source = random_access(config_of(data_dir, transform=jittered))
    loader = torch.utils.data.DataLoader(
        source, batch_size=32, shuffle=True, num_workers=2, multiprocessing_context="spawn"
    )
    batches = list(loader)
    assert [len(batch["id"]) for batch in batches] == [32, 32, 32, 1]
    assert batches[0]["image"].shape == (32, 5, 4, 3)
    assert batches[0]["label"].dtype == torch.int64
    rows = sorted(
        (int(number), noise.tolist())
        for batch in batches
        for number, noise in zip(batch["id"], batch["noise"], strict=True)
    )
    assert rows == [(number, source[number]["noise"].tolist()) for number in range(N)]
