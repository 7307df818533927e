import jax
import numpy as np
import pytest

from sharding import batch_sharding, global_batch, local_rows, make_mesh, row_shards
from sharding.placement import check_batch_size


@pytest.mark.parametrize(("batch_size", "row_shards"), [(8, 4), (4, 4), (np.int64(8), 4), (5, 1)])
def test_a_batch_may_have_any_size_that_divides_over_its_row_shards(batch_size, row_shards):
    mesh = make_mesh({"data": row_shards}, devices=jax.devices()[:row_shards])
    check_batch_size(batch_size, batch_sharding(mesh))


def test_the_refusal_names_the_nearest_sizes():
    with pytest.raises(ValueError, match="use 8 or 16"):
        check_batch_size(13, batch_sharding(make_mesh({"data": 8})))


def test_local_rows_cover_a_batch_exactly_once(sharding):
    size = 24
    places = local_rows(sharding, size)
    covered = sorted(row for start, stop in places for row in range(start, stop))
    assert covered == list(range(size))
    devices = [device for held in places.values() for device in held]
    assert sorted(map(str, devices)) == sorted(map(str, sharding.device_set))


def test_each_row_is_read_once_and_lands_where_the_sharding_says(sharding):
    size = 24
    rows = {"x": np.arange(size * 3, dtype=np.int32).reshape(size, 3), "y": np.arange(size) > 4}
    asked = []

    def read(part):
        asked.append((part.start, part.stop))
        return jax.tree.map(lambda column: column[part].copy(), rows)

    batch = global_batch(read, size, sharding)
    assert len(asked) == len(set(asked)) == row_shards(sharding)
    for name, column in rows.items():
        assert np.array_equal(batch[name], column)
        for shard in batch[name].addressable_shards:
            assert np.array_equal(shard.data, column[shard.index])


def test_the_same_rows_whatever_the_order_of_the_devices():
    devices = jax.devices()
    straight = batch_sharding(make_mesh({"data": 8}, devices=devices))
    reverse = batch_sharding(make_mesh({"data": 8}, devices=devices[::-1]))
    rows = np.arange(16)
    batches = [global_batch(lambda part: rows[part], 16, s) for s in (straight, reverse)]
    assert np.array_equal(batches[0], batches[1])
