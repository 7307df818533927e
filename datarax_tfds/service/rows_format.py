"""Writes rows as plain bytes, and reads them without copying. They hold values, and no code."""

import json
from typing import Any

import numpy as np

from datarax_tfds.runtime.aligned import ALIGNMENT
from datarax_tfds.service.executor import Rows


def written(rows: Rows) -> list[Any]:
    """Buffers that hold rows: a layout in JSON, its length before it, and then the arrays."""
    buffers: list[Any] = []
    place = 0

    def put(buffer: Any) -> int:
        nonlocal place
        gap = -place % ALIGNMENT
        buffers.extend([bytes(gap), buffer])
        start = place + gap
        place = start + memoryview(buffer).nbytes
        return start

    def layout(value: Any) -> Any:
        if isinstance(value, dict):
            return {"parts": {name: layout(each) for name, each in value.items()}}
        if not isinstance(value, np.ndarray):
            return {"bytes": len(value), "at": put(value)}
        if value.dtype.kind == "O":
            return {"shape": value.shape, "elements": [layout(each) for each in value.flat]}
        # As uint8, because dtypes such as bfloat16 have no buffer.
        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8) if value.size else b""
        # The name has no byte order, but `str` does not know bfloat16.
        dtype = value.dtype.name if value.dtype.isnative else value.dtype.str
        return {"shape": value.shape, "dtype": dtype, "at": put(raw)}

    text = json.dumps(layout(rows)).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return [len(text).to_bytes(8, "little"), text, *buffers]


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
