import jax
import ml_dtypes
import numpy as np
import pytest

from datarax_tfds.records.packing import Packing

DTYPES = [
    np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64,
    np.float16, np.float32, np.float64, np.complex64, np.complex128,
    ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.int4, ml_dtypes.uint4,
]  # fmt: skip
SHAPES = [(), (3,), (2, 5), (28, 28, 1), (0,), (2, 0, 3), (1,) * 10]


def random_values(dtype, shape, rows):
    """Random bits, so that floats are NaNs, infinities, denormals and -0.0 as well."""
    dtype = np.dtype(dtype)
    bits = np.random.default_rng(0).integers(0, 256, (rows, *shape, dtype.itemsize), np.uint8)
    if dtype.kind == "b":
        return bits[..., 0] > 99
    if dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        return (bits[..., 0] & 7).astype(dtype)
    return bits.view(dtype)[..., 0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_packed_values_come_back_bit_for_bit(dtype, shape):
    with jax.enable_x64(True):
        values = random_values(dtype, shape, rows=6)
        packing = Packing({"x": jax.ShapeDtypeStruct(shape, dtype)})
        buffers = packing.empty(6)
        packing.pack({"x": values}, buffers)
        back = np.asarray(jax.jit(packing.unpack)(buffers, packing.starts)["x"])
    assert back.dtype == values.dtype
    assert back.shape == values.shape
    assert back.tobytes() == values.tobytes()


def test_features_of_one_width_share_an_array():
    spec = {
        "image": jax.ShapeDtypeStruct((5, 4), np.uint8),
        "flag": jax.ShapeDtypeStruct((), np.bool_),
        "nested": {
            "label": jax.ShapeDtypeStruct((), np.int32),
            "box": jax.ShapeDtypeStruct((4,), np.float32),
        },
    }
    packing = Packing(spec)
    assert {width: part.shape for width, part in packing.empty(7).items()} == {
        1: (7, 21),
        4: (7, 5),
    }
    assert packing.row_bytes == 21 + 20


def test_buffers_are_aligned_and_of_zeros():
    packing = Packing({"x": jax.ShapeDtypeStruct((3,), np.uint8)})
    for rows in (1, 5, 1000):
        buffer = packing.empty(rows)[1]
        assert buffer.ctypes.data % 64 == 0
        assert not buffer.any()


def test_columns_of_nested_features_find_their_place():
    spec = {
        "a": {"b": jax.ShapeDtypeStruct((2,), np.int16)},
        "c": jax.ShapeDtypeStruct((), np.int16),
    }
    packing = Packing(spec)
    columns = {"a": {"b": np.array([[1, 2], [3, 4]], np.int16)}, "c": np.array([5, 6], np.int16)}
    buffers = packing.empty(2)
    packing.pack(columns, buffers)
    back = packing.unpack(buffers, packing.starts)
    assert back["a"]["b"].tolist() == [[1, 2], [3, 4]]
    assert back["c"].tolist() == [5, 6]
