"""Our sources as the source of the released `datarax` package's Pipeline, where it is installed."""

import dataclasses
import inspect
import re

import jax
import numpy as np
import pytest
from checkout import ROOT
from contract import N, check_records, ids
from flax import nnx

from datarax_tfds import TFDSEagerConfig, TFDSEagerSource, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.order.order import Order

pytest.importorskip(
    "datarax",
    reason="datarax is not installed: scripts/beside_datarax runs these tests beside it",
)
from datarax.pipeline import Pipeline

SIZE = 24
FIELDS = {"name": "tiny", "split": "train", "shuffle": True, "seed": 5}


@pytest.fixture(autouse=True)
def as_datarax_is_written():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_the_program_that_the_page_on_moving_starts_from_runs(data_dir):
    page = (ROOT / "docs/moving.md").read_text()
    [program] = re.findall(r'```python title="datarax"\n(.*?)```', page, re.DOTALL)
    program = program.replace('"mnist"', f'"tiny", data_dir={str(data_dir)!r}')
    names = {"rngs": nnx.Rngs(0)}
    exec(program, names)
    assert len(next(iter(names["pipeline"]))["image"]) == 32


def normalize(batch):
    return batch | {"scaled": batch["image"] / 255}


class Normalize(nnx.Module):
    def __call__(self, batch):
        return normalize(batch)


@pytest.fixture
def eager(data_dir):
    return TFDSEagerSource(TFDSEagerConfig(**FIELDS, data_dir=str(data_dir)), rngs=nnx.Rngs(0))


def make(source, **fields):
    return Pipeline(
        source=source, stages=[Normalize()], batch_size=SIZE, rngs=nnx.Rngs(0), **fields
    )


def test_an_epoch_holds_each_record_once(eager):
    served = []
    for batch in make(eager):
        check_records(batch)
        served += ids(batch)
    assert sorted(served) == list(range(N))
    assert served != sorted(served)


def test_step_and_scan_and_a_resume_agree_with_the_loop(eager):
    stepped = make(eager)
    expected = [ids(stepped.step()) for _ in range(4)]
    assert [ids(batch) for batch in make(eager)][:4] == expected
    scanned = make(eager).scan(lambda batch: batch["id"], length=4)
    assert np.asarray(scanned).tolist() == expected
    resumed, session = make(eager), make(eager)
    session.step(), session.step()
    resumed.set_state(session.get_state())
    assert ids(resumed.step()) == expected[2]


def test_a_stream_is_handed_on_in_its_own_order(data_dir):
    source = TFDSStreamingSource(TFDSStreamingConfig(**FIELDS, data_dir=str(data_dir)))
    batches = iter(make(source))
    served = [number for _ in range(4) for number in ids(next(batches))]
    assert served == Order(N, 5).host_numbers(0, 0, N)[: 4 * SIZE].tolist()


def test_what_it_takes_ours_take_too():
    import datarax.sources

    import datarax_tfds

    fields = set()
    for name in ("TFDSEagerConfig", "TFDSStreamingConfig"):
        theirs = {field.name for field in dataclasses.fields(getattr(datarax.sources, name))}
        ours = {field.name for field in dataclasses.fields(getattr(datarax_tfds, name))}
        assert theirs <= ours
        fields |= ours
    for name in ("TFDSEagerSource", "TFDSStreamingSource"):
        theirs = inspect.signature(getattr(datarax.sources, name).__init__).parameters
        assert set(theirs) - {"self"} <= set(
            inspect.signature(getattr(datarax_tfds, name)).parameters
        )
    theirs = set(inspect.signature(datarax.sources.from_tfds).parameters)
    assert theirs <= {"name", "split", "eager", "rngs", "kwargs"} | fields
