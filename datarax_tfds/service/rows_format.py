"""Writes rows as plain bytes, and reads them without copying. They hold values, and no code."""

import itertools
import json
from typing import Any

import numpy as np

from datarax_tfds.runtime.aligned import ALIGNMENT
from datarax_tfds.service.executor import Rows


def written(*parts: Rows) -> list[Any]:
    """Buffers that hold rows: a layout in JSON, its length before it, and then the arrays.

    Args:
        parts: Rows that were decoded one part after the other. They are read as one.
    """
    buffers: list[Any] = []
    place = 0

    def put(*raw: Any) -> int:
        nonlocal place
        gap = -place % ALIGNMENT
        buffers.extend([bytes(gap), *raw])
        start = place + gap
        place = start + sum(memoryview(each).nbytes for each in raw)
        return start

    def layout(*values: Any) -> Any:
        first = values[0]
        if isinstance(first, dict):
            names = first.keys()
            return {"parts": {name: layout(*(each[name] for each in values)) for name in names}}
        if not isinstance(first, np.ndarray):
            return {"bytes": len(first), "at": put(first)}
        shape = (sum(map(len, values)), *first.shape[1:]) if len(values) > 1 else first.shape
        if first.dtype.kind == "O":
            elements = itertools.chain.from_iterable(each.flat for each in values)
            return {"shape": shape, "elements": [layout(each) for each in elements]}
        # The name has no byte order, but `str` does not know bfloat16.
        dtype = first.dtype.name if first.dtype.isnative else first.dtype.str
        return {"shape": shape, "dtype": dtype, "at": put(*map(_raw, values))}

    text = json.dumps(layout(*parts)).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return [len(text).to_bytes(8, "little"), text, *buffers]


def _raw(array: np.ndarray) -> Any:
    # As uint8, because dtypes such as bfloat16 have no buffer.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8) if array.size else b""


def read(body: np.ndarray) -> Rows:
    """The rows that were written, as views of the bytes `[n]`."""
    start = 8 + int.from_bytes(body[:8].tobytes(), "little")
    return _placed(json.loads(body[8:start].tobytes()), body[start:])


def _placed(layout: Any, body: np.ndarray) -> Any:
    if "parts" in layout:
        return {name: _placed(each, body) for name, each in layout["parts"].items()}
    if "bytes" in layout:
        return body[layout["at"] : layout["at"] + layout["bytes"]].tobytes()
    shape = tuple(layout["shape"])
    if "elements" in layout:
        array = np.empty(len(layout["elements"]), object)
        for place, element in enumerate(layout["elements"]):
            array[place] = _placed(element, body)
        return array.reshape(shape)
    dtype = np.dtype(layout["dtype"])  # ml_dtypes, which JAX imports, knows bfloat16 by its name
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return body[layout["at"] : layout["at"] + size].view(dtype).reshape(shape)
