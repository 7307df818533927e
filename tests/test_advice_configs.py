"""The fixes of messages about configs, names, splits and what is on disk of a dataset."""

import errno
import shutil
import threading
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from advice import Row
from flax import nnx

from datarax_tfds import (
    RayService,
    TFDSEagerConfig,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    config_fields,
    from_tfds,
)
from datarax_tfds.cli.config_file import ConfigFile
from datarax_tfds.files.preparing import only_preparer, prepare_options
from datarax_tfds.files.split import open_split

SKIP = {"image": tfds.decode.SkipDecoding()}


def halved(record):
    return {"id": record["id"] // 2}


def streamed(u, **fields):
    """A stream whose config needs streams of random numbers."""
    config = TFDSStreamingConfig(name="tiny", split="train", data_dir=u.data_dir, **fields)
    return TFDSStreamingSource(config, rngs=nnx.Rngs(order=0))


def with_executor(u, executor):
    config = TFDSStreamingConfig(name="tiny", split="train", data_dir=u.data_dir)
    return TFDSStreamingSource(config, executor=executor)


def by_directory(u, directory, *split, **fields):
    split = split or ("train",)
    return open_split(TFDSEagerConfig.from_directory(u.place(directory), *split, **fields))


FIELDS = [
    Row(
        "service must be 'ray', 'ray:HOST:PORT', 'ray:auto' or a RayService.",
        "use service='ray', or service='ray:10.0.0.5:6379' for a cluster that runs",
        lambda u: streamed(u, service="dask"),
        lambda u: streamed(u, service="ray"),
        lambda u: streamed(u, service="ray:10.0.0.5:6379"),
    ),
    Row(
        "late_s must be a number of seconds above 0.",
        "use late_s=2.0, or leave it out",
        lambda u: RayService(late_s=0),
        lambda u: RayService(late_s=2.0),
        lambda u: RayService(),
    ),
    Row(
        "map_fn has no import path, by which workers could find it.",
        "define it as a function of a module beside your program, and import it from there; or let"
        " it be pickled, with service=RayService(pickle_functions=True)",
        lambda u: streamed(u, service="ray", map_fn=lambda record: {"id": record["id"]}),
        lambda u: streamed(u, service="ray", map_fn=halved),
        lambda u: streamed(
            u,
            service=RayService(pickle_functions=True),
            map_fn=lambda record: {"id": record["id"]},
        ),
    ),
    Row(
        "executor must have a capacity of at least 1, and a method submit.",
        "pass an object like the example of datarax_tfds.Executor, or leave executor out",
        lambda u: with_executor(u, print),
        lambda u: with_executor(u, SimpleNamespace(capacity=1, submit=print)),
        lambda u: with_executor(u, None),
    ),
    Row(
        "name is required.",
        "pass name='mnist'",
        lambda u: u.batch(name=None),
        lambda u: u.batch(name="tiny"),
    ),
    Row(
        "name must be a string, got int.",
        "pass name='mnist'",
        lambda u: u.batch(name=7),
        lambda u: u.batch(name="tiny"),
    ),
    Row(
        "name must be a string, got PosixPath.",
        "use TFDSStreamingConfig.from_directory('.../tiny', split='train')",
        lambda u: u.batch(name=u.place("tiny")),
        lambda u: TFDSStreamingConfig.from_directory(str(u.place("tiny")), split="train"),
    ),
    Row(
        "split is required.",
        "pass split='train'",
        lambda u: TFDSEagerConfig(name="mnist"),
        lambda u: TFDSEagerConfig(name="mnist", split="train"),
    ),
    Row(
        "split must be one split, got several.",
        "use split='train'",
        lambda u: u.batch(split=["train"]),
        lambda u: u.batch(split="train"),
    ),
    Row(
        "split must be one split, got several.",
        "use split='train+test', or build a source for each of them",
        lambda u: u.batch(split=["train", "test"]),
        lambda u: u.batch(split="train+test"),
        lambda u: (u.batch(split="train"), u.batch(split="test")),
    ),
    Row(
        "split must be one split, got several.",
        "use split='train', or split='train[:10%]+test'",
        lambda u: u.batch(split=[]),
        lambda u: u.batch(split="train"),
        lambda u: u.batch(split="train[:10%]+test"),
    ),
    Row(
        "split must be a string, or a split expression of TFDS.",
        "use split='train', or split='train[:10%]+test'",
        lambda u: u.batch(split=7),
        lambda u: u.batch(split="train"),
        lambda u: u.batch(split="train[:10%]+test"),
    ),
    Row(
        "split must be a string, or a split expression of TFDS.",
        "use split='test'",
        lambda u: u.batch(split=u.loaded.get_dataset_info().splits["test"]),
        lambda u: u.batch(split="test"),
    ),
    Row(
        "data_dir must be a string or a path, got several.",
        "use data_dir='...'; to search several, register each with tfds.core.add_data_dir(...),"
        " and leave data_dir out",
        lambda u: u.batch(data_dir=[u.data_dir, "elsewhere"]),
        lambda u: u.batch(data_dir=u.data_dir),
        lambda u: registered(u, u.data_dir, "elsewhere"),
    ),
    Row(
        "data_dir must be a string or a path, and not empty.",
        "use data_dir='data', or leave it out for TFDS's own",
        lambda u: u.batch(data_dir=""),
        lambda u: u.batch(data_dir=u.data_dir),
        lambda u: registered(u, u.data_dir),
    ),
    Row(
        "data_dir must be in a file system, or in a store that is read: gs:// or s3://.",
        "mount the store, or copy the dataset, and set data_dir to that directory",
        lambda u: u.batch(data_dir="hdfs://bucket/data"),
        lambda u: u.batch(data_dir=u.copy("tiny").parents[1]),
    ),
    Row(
        "shuffle must be True or False.",
        "use shuffle=True",
        lambda u: u.batch(shuffle="yes"),
        lambda u: u.batch(shuffle=True),
    ),
    Row(
        "shuffle must be True or False.",
        "use shuffle=False",
        lambda u: u.batch(shuffle="no"),
        lambda u: u.batch(shuffle=False),
    ),
    Row(
        "prefetch_buffer must be an integer of at least 0.",
        "use prefetch_buffer=4",
        lambda u: u.batch(prefetch_buffer="4"),
        lambda u: u.batch(prefetch_buffer=4),
    ),
    Row(
        "block_size must be an integer of at least 1.",
        "use block_size=1",
        lambda u: u.batch(block_size=0),
        lambda u: u.batch(block_size=1),
    ),
    Row(
        "layout must be one of 'auto', 'replicated', 'sharded'.",
        "use layout='sharded'",
        lambda u: u.eager(layout="shard"),
        lambda u: u.eager(layout="sharded"),
    ),
    Row(
        "include_keys must be a set of names.",
        "use include_keys={'label'}",
        lambda u: u.batch(include_keys="label"),
        lambda u: u.batch(include_keys={"label"}),
    ),
    Row(
        "stream_name must be a string that is not empty.",
        "use stream_name='...', or leave it out",
        lambda u: streamed(u, stochastic=True, stream_name=7),
        lambda u: streamed(u, stochastic=True, stream_name="order"),
        lambda u: streamed(u),
    ),
    Row(
        "map_fn must be a function.",
        "pass the function itself, as map_fn=function",
        lambda u: u.batch(map_fn="halved"),
        lambda u: u.batch(map_fn=halved),
    ),
    Row(
        "precomputed_stats must be a dict.",
        "pass a value for each feature, as precomputed_stats={'image': ...}",
        lambda u: u.batch(precomputed_stats=0.5),
        lambda u: u.batch(precomputed_stats={"image": 0.5}),
    ),
    Row(
        "decoders must be a dict, or a tfds.decode.PartialDecoding.",
        "pass a decoder for each feature, as decoders={'image': tfds.decode.SkipDecoding()}",
        lambda u: u.stream(decoders=tfds.decode.SkipDecoding()),
        lambda u: u.stream(decoders={"image": tfds.decode.SkipDecoding()}),
    ),
    Row(
        "decoders must be a dict, or a tfds.decode.PartialDecoding.",
        "pass a decoder for each feature, as decoders={'image': tfds.decode.SkipDecoding()}",
        lambda u: u.stream(decoders=tfds.decode.PartialDecoding),
        lambda u: u.stream(decoders={"image": tfds.decode.SkipDecoding()}),
    ),
    Row(
        "it must be an integer in [0, 2**32).",
        "use seed=...",
        lambda u: u.batch(seed=-1),
        lambda u: u.batch(seed=42),
    ),
    Row(
        "neither config has a field 'shufle'.",
        "use shuffle",
        lambda u: from_tfds("tiny", "train", data_dir=u.data_dir, shufle=True),
        lambda u: from_tfds("tiny", "train", data_dir=u.data_dir, shuffle=True),
    ),
    Row(
        "neither config has a field 'xyz'.",
        "leave xyz out",
        lambda u: from_tfds("tiny", "train", data_dir=u.data_dir, xyz=True),
        lambda u: from_tfds("tiny", "train", data_dir=u.data_dir),
    ),
    Row(
        "the config does not have a field 'batch_size'.",
        "pass batch_size to Pipeline(...)",
        lambda u: u.batch(batch_size=8),
        lambda u: u.pipeline(batch_size=8),
    ),
    Row(
        "both key filters are set: include_keys and exclude_keys.",
        "leave out include_keys, or leave out exclude_keys",
        lambda u: u.batch(include_keys={"id"}, exclude_keys={"label"}),
        lambda u: u.batch(exclude_keys={"label"}),
        lambda u: u.batch(include_keys={"id"}),
    ),
    Row(
        "strata and access='sequential' exclude each other: both order the records.",
        "leave out strata, or leave out access",
        lambda u: TFDSStreamingConfig(name="tiny", split="train", strata=8, access="sequential"),
        lambda u: TFDSStreamingConfig(name="tiny", split="train", access="sequential"),
        lambda u: TFDSStreamingConfig(name="tiny", split="train", strata=8),
    ),
    Row(
        "try_gcs and data_dir exclude each other.",
        "leave out try_gcs, or leave out data_dir",
        lambda u: u.batch(try_gcs=True),
        lambda u: u.batch(),
        lambda u: TFDSStreamingConfig(name="tiny", split="train", try_gcs=True),
    ),
    Row(
        "stochastic=True draws the seed from a stream, but stream_name is not set.",
        "name the stream, as stream_name='shuffle', or leave stochastic out",
        lambda u: streamed(u, stochastic=True),
        lambda u: streamed(u, stochastic=True, stream_name="order"),
        lambda u: streamed(u),
    ),
    Row(
        "stream_name is set, but nothing is drawn from it without stochastic=True.",
        "set stochastic=True, too, or leave stream_name out",
        lambda u: streamed(u, stream_name="order"),
        lambda u: streamed(u, stochastic=True, stream_name="order"),
        lambda u: streamed(u),
    ),
]

DIRECTORIES = [
    Row(
        "directory must be a string or a path, and not empty.",
        "pass the directory of the dataset, as 'data/mnist/3.0.1'",
        lambda u: TFDSEagerConfig.from_directory(None, "train"),
        lambda u: by_directory(u, "tiny/1.0.0"),
    ),
    Row(
        "directory must be in a file system, or in a store that is read: gs:// or s3://.",
        "mount the store, or copy the dataset, and set directory to that directory",
        lambda u: TFDSEagerConfig.from_directory("hdfs://bucket/data/tiny/1.0.0", "train"),
        lambda u: TFDSEagerConfig.from_directory(u.copy("tiny"), "train"),
    ),
    Row(
        "name must not be given: the directory determines that.",
        "leave name out",
        lambda u: by_directory(u, "tiny/1.0.0", name="tiny"),
        lambda u: by_directory(u, "tiny/1.0.0"),
    ),
    Row(
        "name and data_dir must not be given: the directory determines that.",
        "use TFDSEagerConfig(name=..., split=..., data_dir=...) for a dataset by name",
        lambda u: TFDSEagerConfig.from_directory(name="tiny", split="train", data_dir=u.data_dir),
        lambda u: opened(u, "tiny"),
    ),
    Row(
        "split is required.",
        "pass split='train'",
        lambda u: TFDSStreamingConfig.from_directory(u.place("tiny/1.0.0")),
        lambda u: TFDSStreamingConfig.from_directory(u.place("tiny/1.0.0"), split="train"),
    ),
    Row(
        "this is not the directory of a prepared dataset.",
        "use '.../tiny/1.0.0'",
        lambda u: by_directory(u, "tiny/1.0.0/dataset_info.json"),
        lambda u: by_directory(u, "tiny/1.0.0"),
    ),
    Row(
        "this is not the directory of a prepared dataset.",
        "use '.../tiny/1.0.0'",
        lambda u: by_directory(u, "tiny/2.0.0"),
        lambda u: by_directory(u, "tiny/1.0.0"),
    ),
    Row(
        "this is not the directory of a prepared dataset.",
        "pass the directory of one dataset, as '.../dtypes'",
        lambda u: by_directory(u, ""),
        lambda u: by_directory(u, "dtypes"),
    ),
    Row(
        "this is not the directory of a prepared dataset.",
        "pass the directory of a version, which holds features.json and dataset_info.json",
        lambda u: TFDSEagerConfig.from_directory(u.tmp, "train"),
        lambda u: by_directory(u, "tiny/1.0.0"),
    ),
]


def registered(u, *directories):
    """A config without a data_dir, where TFDS knows these directories."""
    from tensorflow_datasets.core.utils import file_utils

    try:
        for directory in directories:
            tfds.core.add_data_dir(directory)
        return open_split(TFDSEagerConfig(name="tiny", split="train"))
    finally:
        file_utils.clear_registered_data_dirs()


def sized(u, name):
    """A dataset with configs, and one name of it."""
    if not (u.tmp / "sized").exists():
        for config in ("large", "small"):
            shutil.copytree(u.place("tiny/1.0.0"), u.tmp / "sized" / config / "1.0.0")
    return open_split(TFDSEagerConfig(name=name, split="train", data_dir=u.tmp))


def opened(u, name, place="", **fields):
    fields = {"split": "train", "local_files_only": True} | fields
    return open_split(TFDSEagerConfig(name=name, data_dir=u.place(place), **fields))


class Counted(tfds.core.GeneratorBasedBuilder):
    """A dataset that TFDS has the code of."""

    name = "counted"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"id": np.int32})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(5):
            yield number, {"id": number}


class FarOff(Counted):
    """A dataset whose download is on a host that the network does not know."""

    name = "far_off"
    url_infos = {"https://data.invalid/a.zip": None}  # noqa: RUF012


def counted(u, name="counted", **fields):
    """Code of TFDS prepares the dataset in the directory of the test, where it is missing."""
    fields = {"split": "train", "data_dir": u.tmp} | fields
    return open_split(TFDSEagerConfig(name=name, **fields))


def built(u):
    """Prepares the dataset as `tfds build` does."""
    tfds.builder("counted", data_dir=u.tmp / "built").download_and_prepare()
    return counted(u, data_dir=u.tmp / "built", local_files_only=True)


def copied_from_elsewhere(u):
    elsewhere = tfds.builder("counted", data_dir=u.tmp / "elsewhere")
    elsewhere.download_and_prepare()
    shutil.copytree(elsewhere.data_dir, u.tmp / "copied" / "far_off" / "1.0.0")
    return counted(u, "far_off", data_dir=u.tmp / "copied")


def as_parquet(u):
    shown = u.tmp / "as parquet"
    if not shown.exists():
        tfds.builder("counted", data_dir=shown, file_format="parquet").download_and_prepare()
    return counted(u, data_dir=shown)


def written_again(u):
    from tensorflow_datasets.core.dataset_builders import store_as_tfds_dataset

    features = tfds.features.FeaturesDict({"id": np.int32})
    store_as_tfds_dataset(
        name="counted",
        version="1.0.0",
        features=features,
        split_datasets={"train": [(number, {"id": number}) for number in range(5)]},
        data_dir=u.tmp / "written again",
        file_format="tfrecord",
    )
    assert len(counted(u, data_dir=u.tmp / "written again")) == 5


def prepared_anew(u):
    anew = counted(
        u,
        data_dir=u.tmp / "anew",
        download_and_prepare_kwargs={"file_format": "tfrecord"},
    )
    assert len(anew) == 5


def twice(u, **fields):
    """A dataset that two directories hold, both of which TFDS searches."""
    other = u.copy("tiny").parents[1]
    from tensorflow_datasets.core.utils import file_utils

    tfds.core.add_data_dir(other)
    tfds.core.add_data_dir(u.data_dir)
    try:
        return open_split(TFDSEagerConfig(name="tiny", split="train", **fields))
    finally:
        file_utils.clear_registered_data_dirs()


def locked(u):
    """Another process prepares the dataset just now."""
    prepared = u.tmp / "name" / "1.0.0"
    with only_preparer(prepared, "one"), only_preparer(prepared, "another", timeout_s=0.0):
        pass


def unlocked(u):
    with only_preparer(u.tmp / "name" / "1.0.0", "another", timeout_s=0.0):
        pass


def in_time(u):
    """The limit lets the process that has the lock end its work."""
    prepared = u.tmp / "name" / "1.0.0"
    first = only_preparer(prepared, "one")
    first.__enter__()
    timer = threading.Timer(0.5, lambda: first.__exit__(None, None, None))
    timer.start()
    with only_preparer(prepared, "another", timeout_s=600):
        timer.join()


def without_locks(u, **fields):
    """As on some file systems over a network."""
    lacking = OSError(errno.ENOLCK, "No locks available")
    with mock.patch("fcntl.flock", side_effect=lacking):
        return counted(u, **fields)


def built_before(u):
    built(u)
    return without_locks(u, data_dir=u.tmp / "built")


def below_a_file(u):
    """Nothing can be written there, even by a user who may write everywhere."""
    (u.tmp / "file").touch()
    return counted(u, data_dir=u.tmp / "file" / "data")


NAMES = [
    Row(
        "this is not the name of a dataset.",
        "use 'name', 'name/config' or 'name:1.2.3', and data_dir for the directory that holds it;"
        " for the directory of one dataset, from_directory(...) of the config",
        lambda u: opened(u, "../tiny"),
        lambda u: opened(u, "tiny"),
        lambda u: opened(u, "tiny:1.0.0"),
        lambda u: by_directory(u, "tiny"),
    ),
    Row(
        "'tiny' is prepared in several directories.",
        "choose one: data_dir='...'",
        lambda u: twice(u),
        lambda u: twice(u, data_dir=u.data_dir),
    ),
    Row(
        "the dataset is prepared, but not as 'tiny:2.0.0'; there are: tiny:1.0.0.",
        "use name='tiny:1.0.0'",
        lambda u: opened(u, "tiny:2.0.0"),
        lambda u: opened(u, "tiny:1.0.0"),
    ),
    Row(
        "the dataset is prepared, but not as 'sized'; there are: sized/large:1.0.0,"
        " sized/small:1.0.0.",
        "use name='sized/small'",
        lambda u: sized(u, "sized"),
        lambda u: sized(u, "sized/small"),
    ),
    Row(
        "data_dir is itself the dataset 'tiny'.",
        "use name='tiny'",
        lambda u: opened(u, "mnist", "tiny/1.0.0"),
        lambda u: opened(u, "tiny", "tiny/1.0.0"),
    ),
    Row(
        "there is no directory '.../tiny/2.0.0'.",
        "use data_dir='.../tiny/1.0.0'",
        lambda u: opened(u, "tiny", "tiny/2.0.0"),
        lambda u: opened(u, "tiny", "tiny/1.0.0"),
    ),
    Row(
        "the dataset is not prepared, and TFDS knows none of that name.",
        "use name='tiny', or set data_dir to the directory in which it is prepared",
        lambda u: opened(u, "tinny"),
        lambda u: opened(u, "tiny"),
    ),
    Row(
        "the dataset is not prepared, and TFDS knows none of that name.",
        "set data_dir to the directory in which it is prepared",
        lambda u: open_split(TFDSEagerConfig(name="tiny_uneven", split="train", data_dir=u.tmp)),
        lambda u: opened(u, "tiny_uneven"),
    ),
    Row(
        "the dataset is not prepared, and local_files_only is set.",
        "set local_files_only=False, or prepare it with: tfds build counted",
        lambda u: counted(u, local_files_only=True),
        lambda u: counted(u, local_files_only=False),
        built,
    ),
    Row(
        "the dataset is not prepared, and TFDS cannot prepare that config or version.",
        "use name='counted'",
        lambda u: counted(u, "counted:9.9.9"),
        lambda u: counted(u, "counted"),
    ),
    Row(
        "the dataset is not prepared, and cannot be downloaded: the network does not know the"
        " host.",
        "prepare it on a machine with network access (tfds build far_off), copy it, and set"
        " data_dir to the directory that holds the copy",
        lambda u: counted(u, "far_off"),
        copied_from_elsewhere,
    ),
    Row(
        "the dataset is not prepared, and cannot be: nothing can be written there.",
        "set data_dir to a directory that this process can write, or prepare the dataset as"
        " another user, with tfds build",
        below_a_file,
        lambda u: counted(u, data_dir=u.tmp),
    ),
    Row(
        "the dataset is not prepared, and cannot be: the file system has no locks, so that several"
        " processes might prepare it at once.",
        "prepare it before the job starts, with tfds build",
        without_locks,
        built_before,
    ),
    Row(
        "another process is still preparing the dataset.",
        "check whether that process is still working, and stop it if it hangs; then start again; if"
        " it only needs longer, set a larger stall_timeout_s in initialize()",
        locked,
        unlocked,
        in_time,
    ),
    Row(
        "the dataset is prepared as parquet, which is not read here.",
        "set data_dir to another directory, and download_and_prepare_kwargs={'file_format':"
        " 'tfrecord'}, so that TFDS prepares the dataset anew; if TFDS has no code for it, write"
        " it again with file_format='tfrecord'",
        as_parquet,
        prepared_anew,
        written_again,
    ),
    Row(
        "the dataset has no such split.",
        "use split='train'",
        lambda u: opened(u, "tiny", split="trian"),
        lambda u: opened(u, "tiny", split="train"),
    ),
    Row(
        "the split has no records.",
        "use split='train', or another slice of it",
        lambda u: opened(u, "tiny", split="train[97:]"),
        lambda u: opened(u, "tiny", split="train"),
        lambda u: opened(u, "tiny", split="train[96:]"),
    ),
    Row(
        "the slices overlap, so that an epoch would hold records twice.",
        "use split='train[0:97]', which holds each record once",
        lambda u: opened(u, "tiny", split="train[:50]+train[40:]"),
        lambda u: opened(u, "tiny", split="train[0:97]"),
    ),
]

NAMES += [
    Row(
        "beam_num_workers is set, and Apache Beam is not installed.",
        "pip install 'datarax-tfds[beam]', or leave beam_num_workers out",
        lambda u: prepare_options(TFDSEagerConfig(name="mnist", split="train", beam_num_workers=2)),
        lambda u: prepare_options(TFDSEagerConfig(name="mnist", split="train")),
    ),
]


def read_from(u, text, code=None):
    """The fields that a config file gives, with the code that it needs."""
    place = u.tmp
    (place / "config.yaml").write_text(text)
    (place / "halving.py").write_text("def halved(record):\n    return {'id': record['id'] // 2}\n")
    return ConfigFile.read(place / "config.yaml").fields(code and place / code)


def packed_by(u, rows, code=None):
    read_from(u, f"source: {{name: tiny}}\nrows: {{{rows}}}")
    return ConfigFile.read(u.tmp / "config.yaml").packing(code and u.tmp / code)


HALVED = "source: {name: tiny, split: train, map_fn: halved}"
FILES = [
    Row(
        "map_fn must name one of the functions.",
        "use map_fn: halved",
        lambda u: config_fields({"map_fn": "halvd"}, {"halved": halved}),
        lambda u: config_fields({"map_fn": "halved"}, {"halved": halved}),
    ),
    Row(
        "transform must name one of the functions.",
        "pass functions={'halved': function}",
        lambda u: config_fields({"transform": "halved"}, {}),
        lambda u: config_fields({"transform": "halved"}, {"halved": halved}),
    ),
    Row(
        "the only decoder that has a name is 'skip'.",
        "use decoders: {image: skip}",
        lambda u: config_fields({"decoders": {"image": "none"}}, {}),
        lambda u: config_fields({"decoders": {"image": "skip"}}, {}),
    ),
    Row(
        "a config must have a section source, with the name of a dataset.",
        "add source: {name: mnist, split: train}",
        lambda u: read_from(u, "batch_size: 3"),
        lambda u: read_from(u, "batch_size: 3\nsource: {name: mnist, split: train}"),
    ),
    Row(
        "the config names functions, which no file defines.",
        "name the Python file that defines them, as --code images.py",
        lambda u: read_from(u, HALVED),
        lambda u: read_from(u, HALVED, "halving.py"),
    ),
    Row(
        "... does not define the functions that the config names.",
        "correct the names, or name the file that defines them as --code",
        lambda u: read_from(u, HALVED.replace("halved", "halfed"), "halving.py"),
        lambda u: read_from(u, HALVED, "halving.py"),
    ),
    Row(
        "the section rows must name the function that encodes a text.",
        "add encode: NAME to rows, and give the Python file that defines it as --code",
        lambda u: packed_by(u, "length: 8"),
        lambda u: packed_by(u, "length: 8, encode: halved", "halving.py"),
    ),
]
ROWS = FIELDS + DIRECTORIES + NAMES + FILES


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(user, row):
    row.follow(user)
