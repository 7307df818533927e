"""What owns files, threads or devices is not copied, and no attempt at it touches the original."""

import copy
import gc
import pickle

import numpy as np
import pytest
import tfds_datasets
from conftest import shardings
from flax import nnx
from refusals import refused
from sources import held

from datarax_tfds import (
    Pipeline,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)
from datarax_tfds.decoding.decoder import Decoder
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.files.array_record import ArrayRecordFile
from datarax_tfds.files.block_files import BlockFiles
from datarax_tfds.files.record_files import RecordFiles
from datarax_tfds.files.stored_file import StoredFile
from datarax_tfds.files.tfrecord import TFRecordFile
from datarax_tfds.records.cache import RecordCache
from datarax_tfds.runtime.threads import ThreadPool

SIZE = 8


@pytest.fixture(scope="module")
def equal_dir(tmp_path_factory):
    """Two splits of records of one size: a checksum does not tell one from the other."""
    directory = tmp_path_factory.mktemp("equal")
    tfds_datasets.write(directory, "equal")
    return directory


def stream(data_dir, split="train", mesh="one device", name="equal", **fields):
    config = TFDSStreamingConfig(
        name=name, split=split, data_dir=str(data_dir), shuffle=True, seed=1, **fields
    )
    return TFDSStreamingSource(config, sharding=shardings()[mesh])


def eager(data_dir):
    return TFDSEagerSource(TFDSEagerConfig(name="equal", split="train", data_dir=str(data_dir)))


class Trainer(nnx.Module):
    def __init__(self, pipeline):
        self.pipeline = pipeline


PARTS = {
    "reader": RecordReader,
    "decoder": Decoder,
    "cache": RecordCache,
    "pool": ThreadPool,
    "files": RecordFiles,
    "file": TFRecordFile,
    "stored file": StoredFile,
}
OWNERS = {
    "source": lambda source: source,
    "pipeline": lambda source: Pipeline(source=source, batch_size=SIZE),
    "records": lambda source: source.records,
    **{name: lambda source, kind=kind: held(source, kind) for name, kind in PARTS.items()},
}
HOLDERS = {
    "module": lambda source: Trainer(OWNERS["pipeline"](source)),
    "dict of pipelines": lambda source: {"train": OWNERS["pipeline"](source)},
    "list of files": lambda source: [held(source, TFRecordFile)],
}
WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": pickle.dumps}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("owner", OWNERS)
def test_an_owner_refuses_to_be_copied(equal_dir, owner, way):
    source = stream(equal_dir, cacheable=True)
    source.get_batch(SIZE)
    fix = r"fix: +use source.clone\(\) or nnx.clone\(module\)(.|\n)*get_state\(\) to set_state\(\)"
    with refused(TypeError, f"it cannot be copied or pickled.*{fix}"):
        WAYS[way](OWNERS[owner](source))


@pytest.mark.parametrize(
    "owner",
    [
        eager,
        lambda data_dir: eager(data_dir).records,
        lambda data_dir: Pipeline(source=eager(data_dir), batch_size=SIZE),
        lambda data_dir: held(stream(data_dir, access="sequential"), BlockFiles),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_records_on_devices_and_blocks_refuse_to_be_copied(equal_dir, owner, way):
    with refused(TypeError, "it cannot be copied or pickled"):
        WAYS[way](owner(equal_dir))


@pytest.mark.parametrize("way", WAYS)
def test_an_array_record_file_refuses_to_be_copied(data_dir, way):
    path = next((data_dir / "tiny_array" / "1.0.0").glob("*train*"))
    with refused(TypeError, "it cannot be copied or pickled"):
        WAYS[way](ArrayRecordFile(path))


@pytest.mark.parametrize("mesh", ["one device", "8 devices"])
@pytest.mark.parametrize("made", [*OWNERS, *HOLDERS])
def test_no_attempt_at_a_copy_touches_the_original(equal_dir, tmp_path, made, mesh):
    """A file that a half-made copy closed would give its number to the next one that is opened."""
    source = stream(equal_dir, mesh=mesh, cacheable=made == "cache")
    source.get_batch(SIZE)
    for way in WAYS.values():
        try:
            copied = way((OWNERS | HOLDERS)[made](source))
        except TypeError:
            continue
        del copied  # a shallow copy of a holder, which holds the same pipeline
    gc.collect()
    (tmp_path / "mine").write_text("mine")
    with open(tmp_path / "mine") as mine:
        other = stream(equal_dir, split="test", mesh=mesh)
        other.get_batch(SIZE)
        source.reset()
        got = [
            int(row[0]) for batch in Pipeline(source=source, batch_size=SIZE) for row in batch["id"]
        ]
        assert sorted(got) == list(range(tfds_datasets.EQUAL))
        del source, other
        gc.collect()
        assert mine.read() == "mine"


@pytest.mark.parametrize("make", [stream, eager])
@pytest.mark.parametrize(
    "copied",
    [
        lambda pipeline: nnx.clone(pipeline),
        lambda pipeline: nnx.clone(Trainer(pipeline)).pipeline,
        lambda pipeline: nnx.merge(*nnx.split(pipeline), copy=True),
        lambda pipeline: Pipeline(source=pipeline.source.clone(), batch_size=SIZE),
        lambda pipeline: Pipeline(source=pipeline.source.copy(), batch_size=SIZE),
    ],
)
def test_a_clone_shares_the_records_and_moves_by_itself(equal_dir, make, copied):
    """What a message advises in place of a copy."""
    pipeline = Pipeline(source=make(equal_dir), batch_size=SIZE)
    other = copied(pipeline)
    assert other.source.records is pipeline.source.records
    first = np.asarray(pipeline.step()["id"])
    assert other.cursor.index == 0
    del pipeline
    gc.collect()
    np.testing.assert_array_equal(other.step()["id"], first)


def test_configs_and_states_are_values_that_are_copied(equal_dir):
    source = stream(equal_dir)
    for value in (source.config, source.get_state(), source.cursor, source.identity):
        assert copy.copy(value) == copy.deepcopy(value) == value
        assert pickle.loads(pickle.dumps(value)) == value


class TestStoredFile:
    def test_it_closes_its_descriptor_once(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"content")
        file = StoredFile(path)
        assert file.version().size == 7
        assert file.read_at(3, 9) == b"tent"
        file.close()
        with open(path) as other:  # it has the same number
            file.close()
            del file
            assert other.read() == "content"

    def test_a_file_that_was_not_opened_closes_nothing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="absent"):
            StoredFile(tmp_path / "absent")
        StoredFile.__new__(StoredFile).close()
