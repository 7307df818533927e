"""Parts of a batch are joined in memory that JAX uses on the CPU without a copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarax_tfds.runtime.aligned import concatenated


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int64, np.float32, bool, jnp.bfloat16, np.complex64]
)
@pytest.mark.parametrize("shape", [(), (3,), (5, 7)])
def test_joined_parts_are_used_without_a_copy(dtype, shape):
    parts = [np.full((rows, *shape), rows).astype(dtype) for rows in (2, 1, 4)]
    joined = concatenated(parts)
    np.testing.assert_array_equal(joined, np.concatenate(parts))
    assert joined.dtype == dtype
    with jax.enable_x64(True):
        on_device = jax.device_put(joined, jax.devices()[0])
    assert on_device.unsafe_buffer_pointer() == joined.ctypes.data


@pytest.mark.parametrize("parts", [
    [np.array([b"a"], object), np.array([b"bc", b""], object)],  # text has no memory of its own
    [np.zeros((2, 0), np.float32), np.zeros((1, 0), np.float32)],
    [np.zeros((0, 3), np.float32), np.ones((1, 3), np.float32)],
])  # fmt: skip
def test_parts_without_bytes_are_joined_too(parts):
    joined, expected = concatenated(parts), np.concatenate(parts)
    np.testing.assert_array_equal(joined, expected)
    assert joined.dtype == expected.dtype
