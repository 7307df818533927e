"""The fixes of messages about what other libraries are given."""

import pickle
import shutil
from unittest import mock

import grain
import pytest
import tfds_datasets
from advice import Row

from datarax_tfds import PipelineCollector, TFDSStreamingConfig, grain_dataset, random_access


def config(u, name="tiny", data_dir=None, **fields):
    data_dir = str(data_dir or u.data_dir)
    return TFDSStreamingConfig(name=name, split="train", data_dir=data_dir, **fields)


def source(u):
    return random_access(config(u))


def written_anew(u):
    """A copy of a source, of whose dataset other files are there now."""
    tfds_datasets.write(u.tmp, "equal")
    copy = pickle.dumps(random_access(config(u, "equal", u.tmp)))
    shutil.rmtree(u.tmp / "equal")
    tfds_datasets.write(u.tmp, "equal", shards=2)
    return pickle.loads(copy)


def without_grain(u):
    with mock.patch("datarax_tfds.adapters.grain_dataset.find_spec", return_value=None):
        grain_dataset(u.pipeline())


def without_prometheus(u):
    with mock.patch("datarax_tfds.adapters.prometheus.find_spec", return_value=None):
        PipelineCollector(u.pipeline())


ROWS = [
    Row(
        "each of pipelines must be a Pipeline, got TFDSEagerSource.",
        "pass pipelines, as Pipeline(source=source, batch_size=128)",
        lambda u: PipelineCollector(u.loaded),
        lambda u: list(PipelineCollector(u.pipeline()).collect()),
    ),
    Row(
        "prometheus_client is not installed.",
        "pip install 'datarax-tfds[prometheus]', or write pipeline.report().scalars() to another"
        " system",
        without_prometheus,
        lambda u: PipelineCollector(u.pipeline()),
        lambda u: u.pipeline().report().scalars(),
    ),
    Row(
        "since must be an earlier report.",
        "pass what report() returned before, or leave it out",
        lambda u: u.pipeline().report(since=3),
        lambda u: u.pipeline().report(since=u.pipeline().report()),
        lambda u: u.pipeline().report(),
    ),
    Row(
        "config must be a TFDSStreamingConfig or a TFDSEagerConfig.",
        "pass a config such as TFDSStreamingConfig(name='mnist', split='train')",
        lambda u: random_access("tiny"),
        lambda u: random_access(config(u)),
    ),
    Row(
        "the config draws its seed from a stream of rngs, and there are none here.",
        "set seed in the config, and leave out stochastic and stream_name",
        lambda u: random_access(config(u, stochastic=True, stream_name="order")),
        lambda u: random_access(config(u, seed=3)),
    ),
    Row(
        "a record is taken by its number, which is one integer.",
        "pass an integer, as source[0]; for a slice, use [source[number] for number in range(8)]",
        lambda u: source(u)[:8],
        lambda u: source(u)[0],
        lambda u: [source(u)[number] for number in range(8)],
    ),
    Row(
        "the dataset was written anew since this source was made.",
        "make it again, with random_access(config)",
        lambda u: written_anew(u)[0],
        lambda u: random_access(config(u, "equal", u.tmp))[0],
    ),
    Row(
        "pipeline must be a Pipeline, got TFDSEagerSource.",
        "pass a pipeline, as Pipeline(source=source, batch_size=128); for single records, use"
        " grain.MapDataset.source(random_access(config))",
        lambda u: grain_dataset(u.loaded),
        lambda u: next(iter(grain_dataset(u.pipeline()))),
        lambda u: grain.MapDataset.source(random_access(config(u)))[0],
    ),
    Row(
        "Grain is not installed.",
        "pip install 'datarax-tfds[grain]', or iterate over pipeline.batches()",
        without_grain,
        lambda u: grain_dataset(u.pipeline()),
        lambda u: next(u.pipeline().batches()),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fix_of_a_message_works_when_it_is_followed(user, row):
    row.follow(user)
