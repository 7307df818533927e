"""States that are damaged, foreign or none: all refused, and the source stays where it was."""

import dataclasses
import re

import numpy as np
import pytest
from refusals import refused
from states import CURSOR, IDENTITY

from datarax_tfds import (
    Pipeline,
    StateMismatchError,
    TFDSEagerConfig,
    TFDSEagerSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
)
from datarax_tfds.order.cursor import Cursor
from datarax_tfds.state.state import IDENTITY as SAVED_FIELDS
from datarax_tfds.state.state import cursor_from_state, to_state

STATE = to_state(CURSOR, IDENTITY)
NAN, INFINITE = float("nan"), float("inf")


class Odd:
    """Neither equal to anything nor to be compared."""

    def __eq__(self, other):
        raise RuntimeError("not to be compared")

    __hash__ = None


# What is no dict.
NO_DICTS = [None, [], "state", 3, b"{}", True, 1.5, (), [STATE], [("epoch", 3)], {"epoch"},
            np.zeros(3), Odd(), list(STATE.items()), "{}", NAN]  # fmt: skip

CYCLE: dict = {}
CYCLE["epoch"] = CYCLE

# Dicts that no source has saved: of other libraries, empty, of other fields.
NO_STATES = [
    {},
    {"position": 3},
    {"schema": 1},
    {"schema": "1"},
    {"next_index": 17},  # Grain
    {"version": 2, "last_seen_indices": {"0": 41}, "last_worker_index": 0},  # Grain, elastic
    {"epoch": 0, "sample_in_epoch": 512, "num_canonical_nodes": 1},  # Streaming
    {"_iterator_finished": False, "_num_yielded": 12, "_sampler_iter_state": None},  # torchdata
    {"params": {"kernel": np.zeros((2, 2))}, "step": 7},  # a model
    {"epoch": 3, "index": 12_345},
    {1: 2},
    {None: None, "epoch": 3, 2: "a"},
    CYCLE,
    *({key: value for key, value in STATE.items() if key != field} for field in STATE),
    *(STATE | {field: 1} for field in ("batch_size", "Epoch", "", "sha1", 3, None, ("a", 1))),
    *({(key.upper() if key == field else key): value for key, value in STATE.items()}
      for field in STATE),
]  # fmt: skip

# Values of a field that were not what was saved, under the checksum that was.
CHANGED = [
    *[(field, value) for field in STATE
      for value in (None, NAN, INFINITE, 10**30, -(10**30), "", [], {}, [STATE[field]], Odd(), b"1",
                    np.int64(3), 0.5)
      if STATE[field] is not value and field != "schema"],
    *[(field, value + 1) for field, value in STATE.items()
      if isinstance(value, int) and field != "schema"],
    ("shuffle", False),
    *[(field, float(value)) for field, value in STATE.items()
      if isinstance(value, int) and field != "schema"],
    *[(field, str(value)) for field, value in STATE.items() if not isinstance(value, str)
      and field != "schema"],
    *[(field, value + " ") for field, value in STATE.items() if isinstance(value, str)],
    *[(field, value.upper()) for field, value in STATE.items()
      if isinstance(value, str) and value.upper() != value],
    *[(field, value[:-1]) for field, value in STATE.items() if isinstance(value, str)],
    ("epoch", 10**5_000),  # more digits than Python prints
    ("seed", CYCLE),
    ("split", "\ud800"),  # half a character
]  # fmt: skip

SCHEMAS = [
    *[(schema, "newer version") for schema in (2, 3, 2**31, 2**63)],
    *[(schema, "not a state of datarax_tfds|schema") for schema in
      (0, -1, None, "1", "2", 1.5, NAN, [], {}, Odd(), [1], 2**64, 10**5_000)],
    *[(schema, "checksum") for schema in (True, 1.0)],
]  # fmt: skip

# Places that cannot be, though the checksum is right.
PLACES = [(0, 60_000), (0, 60_001), (0, -1), (-1, 0), (0, 1.0), (0.0, 0), ("0", 0), (0, "0"),
          (None, 0), (0, None), (NAN, 0), (0, NAN), (True, 0), (0, False), (2**31, 0), (2**63, 0),
          (10**30, 0), (0, 2**63), (0, -(10**30)), ([0], 0), (-1, -1), (INFINITE, 5)]  # fmt: skip

# Sound states of other runs: every field that differs is named.
FOREIGN = [
    *[({field: value}, [field]) for field, value in
      (("dataset", "mnist/3.1.0"), ("dataset", "mnist/3.0.0"), ("dataset", "fashion_mnist/3.0.1"),
       ("dataset", "mnist/config/3.0.1"), ("split", "train[0:30000]"), ("split", "test[0:60000]"),
       ("split", "train[30000:60000]+train[0:30000]"), ("split", "train[1:60001]"),
       ("records", 60_001), ("records", 30_000), ("fingerprint", "0123456789abcdee"),
       ("features", "fedcba9876543211"), ("shuffle", False), ("seed", 7), ("seed", None),
       ("seed", 43), ("remainder", "drop"), ("remainder", "pad"), ("order", 2), ("order", 0),
       ("order", "blocks of 8 in windows of 4 blocks, 1"))],
    ({"seed": 1, "dataset": "digits/1.0.0"}, ["dataset", "seed"]),
    ({"shuffle": False, "seed": None}, ["shuffle", "seed"]),
    ({"split": "test[0:10000]", "records": 13_000, "fingerprint": "a"},
     ["split", "records", "fingerprint"]),
    ({"dataset": "a/1.0.0", "split": "b[0:1]", "records": 99_999, "fingerprint": "c",
      "features": "d", "shuffle": False, "seed": 1, "remainder": "pad", "order": 9},
     list(SAVED_FIELDS)),
]  # fmt: skip

# Real runs over the same data, or almost: what another config changes.
RUNS = [
    ({"seed": 7}, ["seed"]),
    ({"shuffle": False}, ["shuffle", "seed"]),
    ({"split": "test"}, ["split", "records", "fingerprint"]),
    ({"split": "train[:50]"}, ["split", "records", "fingerprint"]),
    ({"split": "train[10:]"}, ["split", "records"]),
    ({"name": "tiny_one"}, ["dataset", "fingerprint"]),
    ({"name": "tiny_array"}, ["dataset", "fingerprint"]),
    ({"include_keys": {"id"}}, ["features"]),
    ({"exclude_keys": {"label"}}, ["features"]),
    ({"access": "sequential"}, ["order"]),
    ({"map_fn": lambda record: {"id": record["id"]}}, ["features"]),
]  # fmt: skip


def refuses(state, kind, message):
    with refused(kind, f"^test: .*{message}.*fix: "):
        cursor_from_state(state, IDENTITY, "test")


@pytest.mark.parametrize("state", NO_DICTS)
def test_what_is_not_a_dict_is_refused(state):
    refuses(state, TypeError, f"the state must be a dict.*got: +{type(state).__name__}")


@pytest.mark.parametrize("state", NO_STATES)
def test_a_dict_that_no_source_saved_is_refused(state):
    refuses(state, StateMismatchError, "not a state of datarax_tfds.*missing: .*unknown: ")


@pytest.mark.parametrize(("field", "value"), CHANGED, ids=lambda value: type(value).__name__)
def test_a_value_that_was_not_saved_is_refused(field, value):
    refuses(STATE | {field: value}, StateMismatchError, "damaged.*sha256: ")


@pytest.mark.parametrize(("schema", "message"), SCHEMAS, ids=lambda value: type(value).__name__)
def test_another_schema_is_refused(schema, message):
    refuses(STATE | {"schema": schema}, StateMismatchError, message)


@pytest.mark.parametrize(("epoch", "index"), PLACES, ids=lambda value: type(value).__name__)
def test_a_place_that_cannot_be_is_refused_though_its_checksum_is_right(epoch, index):
    state = to_state(Cursor(epoch, index), IDENTITY)
    refuses(state, StateMismatchError, "damaged.*(epoch: .*index: .*records: +60000|sha256: )")


@pytest.mark.parametrize(("fields", "named"), FOREIGN)
def test_a_state_of_another_run_is_refused_by_every_field_that_differs(fields, named):
    other = dataclasses.replace(IDENTITY, **fields)
    facts = [
        f"{field}: +saved {re.escape(repr(getattr(other, field)))},"
        f" now {re.escape(repr(getattr(IDENTITY, field)))}"
        for field in named
    ]
    said = f"^test: the saved state and this run differ in {', '.join(named)}\\."
    with refused(StateMismatchError, ".*".join([said, *facts, "fix:"])):
        cursor_from_state(to_state(Cursor(0, 5), other), IDENTITY, "test")


KINDS = {
    "eager": (TFDSEagerSource, TFDSEagerConfig),
    "streaming": (TFDSStreamingSource, TFDSStreamingConfig),
}


def source_of(data_dir, place, **fields):
    source, config = KINDS[place]
    fields = {"name": "tiny", "split": "train", "shuffle": True, "seed": 3} | fields
    return source(config(data_dir=data_dir, **fields))


@pytest.fixture(scope="module", params=list(KINDS))
def source(request, data_dir):
    source = source_of(data_dir, request.param)
    source.get_batch(10)
    return source


@pytest.fixture(params=[True, False], ids=["source", "pipeline"])
def run(request, source):
    return source if request.param else Pipeline(source=source, batch_size=8)


@pytest.mark.parametrize(("fields", "named"), RUNS)
def test_a_source_goes_on_with_no_state_of_another(data_dir, run, fields, named):
    other = source_of(data_dir, "streaming", **fields)
    other.get_batch(4)
    before = run.get_state()
    with refused(StateMismatchError, f"differ in {', '.join(named)}\\.") as caught:
        run.set_state(other.get_state())
    facts = str(caught.value)
    assert all(f"{field}:" in facts for field in named)
    assert run.get_state() == before


def test_a_source_that_refuses_a_state_has_not_moved(run):
    """Neither its cursor nor its counts, whatever it is given."""
    before, counts = run.get_state(), getattr(run, "source", run).get_operation_stats()
    states = [
        *NO_DICTS,
        *NO_STATES,
        *(before | {field: value} for field, value in CHANGED if before[field] is not value),
        *(before | {"schema": schema} for schema, _ in SCHEMAS),
        *(to_state(Cursor(*place), run.identity) for place in PLACES if place[1] != 60_000),
        to_state(Cursor(0, len(getattr(run, "source", run))), run.identity),
    ]
    for state in states:
        with pytest.raises((TypeError, StateMismatchError), match="fix: "):
            run.set_state(state)
        assert run.get_state() == before
    assert getattr(run, "source", run).get_operation_stats() == counts


@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_a_pipeline_goes_on_with_no_state_of_another_remainder(source, remainder):
    wraps = Pipeline(source=source, batch_size=8)
    other = Pipeline(source=source, batch_size=8, remainder=remainder)
    before = wraps.get_state()
    with refused(StateMismatchError, f"remainder: +saved 'wrap', now '{remainder}'"):
        other.set_state(before)
    with refused(StateMismatchError, f"remainder: +saved '{remainder}', now 'wrap'"):
        wraps.set_state(other.get_state())
    assert wraps.get_state() == before


@pytest.mark.parametrize("cursor", [Cursor(2**31 - 1, 96), Cursor(0, 0), Cursor(5, 96)])
def test_the_furthest_places_are_gone_on_from(data_dir, cursor):
    for place in KINDS:
        source = source_of(data_dir, place)
        source.set_state(to_state(cursor, source.identity))
        assert source.cursor == cursor
        assert len(source.get_batch_at(cursor.index, 1)["id"]) == 1
