import re

import contract
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import N, check_records, equal, ids
from flax import nnx
from oracle import numbers_of_epochs
from sources import EAGER, SIZE, SOURCES, STREAMING, config_of, loaded
from tfds_datasets import TINY_TEST

from datarax_tfds import (
    Cursor,
    Pipeline,
    StateMismatchError,
    TFDSEagerConfig,
    TFDSEagerSource,
    prefetch_to_device,
)
from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.order import Order


@pytest.fixture(params=list(SOURCES))
def place(request):
    return SOURCES[request.param]


@pytest.fixture(params=[False, True], ids=["stored", "shuffled"])
def shuffle(request):
    return request.param


@pytest.fixture
def make(data_dir, place, shuffle):
    """Makes a source at its beginning: a clone, since reading and compiling take time."""

    def make(**fields):
        config = config_of(data_dir, place, **({"shuffle": shuffle} | fields))
        return nnx.clone(loaded(config, place[1]))

    return make


@pytest.fixture
def source(make):
    return make()


@pytest.fixture
def eager(source):
    return isinstance(source, TFDSEagerSource)


@pytest.fixture
def expected_ids(place):
    """The ids of the first epochs, by the promise: records are numbered as they are stored."""

    def ids(shuffle, epochs, seed=5, length=N):
        order = Order(length, seed if shuffle else None)
        if shuffle and place[2] == "sequential":
            order = BlockOrder(length, seed, block_size=8, window=30)
        return numbers_of_epochs(order, epochs).tolist()

    return ids


class TestOrder:
    def test_batches_are_the_order_and_the_records_are_whole(self, source, shuffle, expected_ids):
        served = []
        for _ in range(9):  # two epochs and more
            batch = source.get_batch(SIZE)
            check_records(batch)
            served += ids(batch)
        assert served == expected_ids(shuffle, 3)[: 9 * SIZE]

    def test_all_ways_of_reading_agree(self, make, eager):
        """get_batch, get_batch_at, jitted, iterated singly, as a pipeline, prefetched."""
        one, two, three = make(), make(), make()
        at = jax.jit(lambda start: two.get_batch_at(start, SIZE))
        singly, pipeline = iter(make()), iter(Pipeline(source=three, batch_size=SIZE))
        prefetched = prefetch_to_device(Pipeline(source=make(), batch_size=SIZE), 3)
        stepper = nnx.jit(lambda source: source.get_batch(SIZE))
        jitted = make()
        for step in range(5):  # the fifth runs on into the next epoch
            expected = one.get_batch(SIZE)
            assert equal(two.get_batch_at(step * SIZE, SIZE), expected)
            assert equal(next(pipeline), expected)
            assert equal(next(prefetched), expected)
            assert one.cursor == three.cursor
            if eager:
                assert equal(at(step * SIZE), expected)
                assert equal(stepper(jitted), expected)
                assert jitted.cursor == one.cursor
            for row in range(SIZE if step < 4 else 1):
                record = next(singly)
                assert equal(record, jax.tree.map(lambda column: np.asarray(column)[row], expected))

    def test_iteration_is_the_rest_of_the_epoch(self, source, shuffle, expected_ids):
        source.get_batch(SIZE)
        served = [int(record["id"]) for record in source]
        assert served == expected_ids(shuffle, 1)[SIZE:]
        assert source.cursor == Cursor(1, 0)

    def test_a_key_gives_an_order_of_its_own_and_moves_nothing(self, source, shuffle, eager):
        one, other = jax.random.key(0), jax.random.key(1)
        batch = source.get_batch(SIZE, key=one)
        assert equal(batch, source.get_batch(SIZE, key=one))
        assert source.cursor == Cursor(0, 0)
        check_records(batch)
        if eager:
            jitted = jax.jit(lambda key: source.get_batch_at(0, SIZE, key))
            assert equal(jitted(one), batch)
        if shuffle:
            assert ids(source.get_batch(SIZE, key=other)) != ids(batch)
            raw = jax.random.PRNGKey(0)
            assert equal(source.get_batch(SIZE, key=raw), batch)
            everything = source.get_batch_at(40, 96, one)  # positions wrap around
            assert len(set(ids(everything))) == 96
        else:
            assert ids(batch) == list(range(SIZE))

    def test_records_by_number(self, source):
        for number in (0, 50, N - 1, np.int64(3)):
            check_records(jax.tree.map(lambda column: np.asarray(column)[None], source[number]))
        assert equal(source[-1], source[N - 1])

    def test_set_random_order_goes_on_from_the_same_position(self, source, expected_ids):
        source.get_batch(SIZE)
        for enabled in (True, False):
            source.set_random_order(enabled)
            assert source.is_random_order is enabled
            batch = source.get_batch_at(source.index.get_value(), SIZE)
            assert ids(batch) == expected_ids(enabled, 1)[SIZE : 2 * SIZE]

    def test_reset_goes_back_to_the_beginning_and_may_change_the_seed(
        self, source, shuffle, expected_ids
    ):
        source.get_batch(SIZE)
        source.reset()
        assert ids(source.get_batch(SIZE)) == expected_ids(shuffle, 1)[:SIZE]
        source.reset(seed=6)
        assert source.cursor == Cursor(0, 0)
        assert ids(source.get_batch(SIZE)) == expected_ids(shuffle, 1, seed=6)[:SIZE]


class TestState:
    @pytest.mark.parametrize("prefetch", [None, 0, 1, 2, 4])
    def test_resume_after_every_batch(self, make, prefetch):
        contract.check_resume_after_every_batch(
            lambda: Pipeline(source=make(), batch_size=SIZE), prefetch
        )

    def test_a_state_is_the_same_wherever_it_was_saved(self, make, data_dir, shuffle):
        elsewhere = TFDSEagerConfig(
            name="tiny", split="train", data_dir=str(data_dir), shuffle=shuffle, seed=5
        )
        source, other = make(split="train"), TFDSEagerSource(elsewhere)
        source.get_batch(SIZE)
        state = source.get_state()
        assert set(state) == set(other.get_state())
        by_blocks = getattr(source.config, "access", "random") == "sequential" and shuffle
        if source.config.name == "tiny" and not by_blocks:
            other.set_state(state)
            assert other.get_state() == state

    def test_a_state_of_another_source_is_refused_and_nothing_moves(self, make):
        source = make()
        source.get_batch(SIZE)
        before = source.get_state()
        for fields, differs in [
            ({"split": "test"}, "split"),
            ({"split": "train[:96]"}, "split, records"),
            ({"include_keys": {"id"}}, "features"),
            ({"shuffle": True, "seed": 6}, "seed"),
            ({"shuffle": not source.config.shuffle}, "shuffle, seed"),
        ]:
            with pytest.raises(StateMismatchError, match=re.escape(differs)):
                source.set_state(make(**fields).get_state())
        with pytest.raises(TypeError, match="the state must be a dict"):
            source.set_state(None)
        assert source.get_state() == before

    def test_equal_splits_have_equal_states(self, make):
        """Whatever the words: the resolved ranges are compared."""
        make(split="train[:48]").set_state(make(split="train[:50%]").get_state())


def test_clones_go_their_own_ways(source):
    copy = nnx.clone(source)
    batch = source.get_batch(SIZE)
    assert copy.cursor == Cursor(0, 0)
    assert equal(copy.get_batch(SIZE), batch)
    graphdef, state = nnx.split(source)
    assert not [leaf for leaf in jax.tree.leaves(state) if np.size(leaf) > 3]
    assert nnx.merge(graphdef, state).cursor == source.cursor


# One place of each layout, because each program takes seconds to compile. A batch in a program of
# its own is compared on every place in `test_all_ways_of_reading_agree`.
LAYOUTS = ["one device", "8 devices, replicated", "replicas, sharded"]


@pytest.mark.parametrize("place", [EAGER[name] for name in LAYOUTS], ids=LAYOUTS)
class TestWithinPrograms:
    @pytest.mark.parametrize("shuffle", [False])  # the order does not concern the rows
    def test_nothing_copies_the_rows(self, source):
        packed, _ = source.records.scan_inputs(np.zeros((1, 8), np.int32))
        rows = jax.tree.leaves(packed.rows)

        def pointers():
            return [
                shard.data.unsafe_buffer_pointer()
                for part in rows
                for shard in part.addressable_shards
            ]

        before = pointers()
        step = nnx.jit(lambda source: source.get_batch(SIZE))
        for _ in range(20):
            source.get_batch(SIZE)
            step(source)
        graphdef, state = nnx.split(source)
        copy = nnx.merge(graphdef, state)
        assert copy.records is source.records is nnx.clone(source).records
        assert not [leaf for leaf in jax.tree.leaves(state) if np.size(leaf) > 3]
        assert pointers() == before

    def test_reading_within_loops_of_a_callers_own(self, source, shuffle, expected_ids):
        def step(start, _):
            return start + SIZE, source.get_batch_at(start, SIZE)["id"]

        _, scanned = jax.jit(lambda: jax.lax.scan(step, 0, length=6))()
        assert np.asarray(scanned).ravel().tolist() == expected_ids(shuffle, 2)[: 6 * SIZE]

        @nnx.jit
        def total(source):
            def body(step, total):
                return total + source.get_batch_at(step * SIZE, SIZE)["id"].sum()

            return jax.lax.fori_loop(0, 4, body, jnp.int32(0))

        assert total(source) == sum(expected_ids(shuffle, 1)[: 4 * SIZE])

    def test_a_cursor_does_not_move_in_a_jit_that_only_closes_over_it(self, source):
        with pytest.raises(flax.errors.TraceContextError, match="trace level"):
            jax.jit(lambda: source.get_batch(SIZE))()
        assert source.cursor == Cursor(0, 0)

    def test_a_scan_may_carry_the_source(self, source, shuffle, expected_ids):
        @nnx.scan(in_axes=nnx.Carry, out_axes=(nnx.Carry, 0), length=5)
        def run(source):
            return source, source.get_batch(SIZE)["id"]

        source.index.set_value(jnp.int32(0))
        source.epoch.set_value(jnp.int32(0))
        _, served = run(source)
        assert np.asarray(served).ravel().tolist() == expected_ids(shuffle, 2)[: 5 * SIZE]
        assert source.cursor == Cursor(1, 5 * SIZE - N)


@pytest.mark.parametrize("place", STREAMING.values(), ids=list(STREAMING))
def test_a_stream_within_a_program_is_refused(source):
    with pytest.raises(NotImplementedError, match=r"compiled function(.|\n)*fix:(.|\n)*Eager"):
        jax.jit(lambda: source.get_batch_at(0, SIZE))()
    assert equal(source.get_batch_at(0, SIZE), source.get_batch(SIZE))


def test_what_a_source_tells_of_itself(source, shuffle):
    assert len(source) == source.length == N
    assert source.element_spec() == {
        "id": jax.ShapeDtypeStruct((), np.int32),
        "image": jax.ShapeDtypeStruct((5, 4, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((), np.int32),
    }
    batch = source.get_batch(SIZE)
    spec = jax.tree.map(lambda column: (column.shape[1:], column.dtype), batch)
    assert spec == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), source.element_spec())
    assert (source.index.get_value(), source.epoch.get_value()) == (SIZE, 0)
    assert source.split_name == "train"
    assert source.dataset_name == source.config.name
    assert source.name == f"{type(source).__name__}({source.config.name}:train)"
    assert source.is_random_order is shuffle
    assert source.get_dataset_info().splits["train"].num_examples == N
    assert re.match(r"TFDS(Eager|Streaming)Source\(tiny.*:train\): 97 records, ", str(source))
    assert repr(source) == str(source)
    pipeline = Pipeline(source=source, stages=[jax.numpy.negative], batch_size=SIZE)
    assert str(pipeline).startswith("Pipeline: batches of 24, remainder 'wrap', stage 0 (negative)")
    assert str(pipeline).endswith(str(source))


@pytest.mark.parametrize("place", EAGER.values(), ids=list(EAGER))
def test_all_records_as_arrays(source):
    data = jax.tree.map(lambda column: np.asarray(column)[:N], source.data)
    check_records(data)
    assert ids(data) == list(range(N))


def test_a_small_split_is_served_too(make, shuffle, expected_ids):
    source = make(split="test")
    served = [number for _ in range(3) for number in ids(source.get_batch(SIZE))]
    numbers = expected_ids(shuffle, 6, length=TINY_TEST)
    assert served == [1000 + number for number in numbers[: 3 * SIZE]]
