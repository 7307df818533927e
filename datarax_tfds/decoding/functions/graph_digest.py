"""Digests of TensorFlow graphs, which tell whether two traces of a function compute the same.

The traces may be of one process, or of a run and the run that resumes it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np

from datarax_tfds.decoding.functions.lookup_tables import table_contents, table_kinds

# Attributes that hold names with numbers, which differ from trace to trace.
_NAMES = frozenset({"config", "config_proto", "executor_type", "metadata"})


def bodies(traced: Any) -> dict[str, Any]:
    """A traced function and all functions that it calls, as `FunctionDef`s by name."""
    library = traced.graph.as_graph_def().library.function
    return {body.signature.name: body for body in (*library, traced.function_def)}


def digests(
    traced: Any, shared: Set[int] = frozenset(), ignored: Set[str] = frozenset()
) -> list[bytes]:
    """Digests of the computation of each result of a traced function.

    They are equal for two traces of the same Python code in one process: they do not depend on the
    names of nodes and functions, which are numbered, nor on the order in which these were made.

    Args:
        traced: The `ConcreteFunction`.
        shared: The `id`s of captured tensors that need no comparison.
        ignored: Further attributes of nodes to leave out.
    """
    captures = [
        _hash(str(id(outer)) if id(outer) in shared else _value(outer))
        for outer, _ in traced.graph.captures
    ]
    body = traced.function_def
    arguments = [_hash(str(place)) for place in range(len(body.signature.input_arg))]
    arguments[len(arguments) - len(captures) :] = captures
    return _Digests(bodies(traced), _NAMES | ignored).of_results(body, arguments)


def fingerprint(tf: Any, traced: Any) -> str:
    """A short digest of what a traced function computes, with the values of all constants and
    tables that it captures.

    With one version of TensorFlow, it is equal in all processes for the same code and values. It
    leaves out JAX programs, which name temporary files, and the values of tensors of other graphs,
    which Keras layers may keep.
    """
    kinds = table_kinds(bodies(traced).values())
    captured = (outer for outer, _ in traced.graph.captures if outer.dtype == tf.resource)
    tables = sorted(table_contents(tf, outer, kinds) for outer in captured)
    return _hash(*digests(traced, ignored={"module"}), *tables).hex()[:16]


def _value(captured: Any) -> str:
    if not hasattr(captured, "numpy") or captured.dtype.name in ("resource", "variant"):
        return captured.dtype.name
    array = np.asarray(captured.numpy())
    data = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    return f"{array.dtype} {array.shape} {hashlib.sha256(data).hexdigest()}"


class _Digests:
    """Makes digests of the results of functions; leaves out the `ignored` attributes of nodes."""

    def __init__(self, library: Mapping[str, Any], ignored: Set[str]):
        self._library = library
        self._ignored = ignored
        self._known: dict[str, bytes] = {}

    def of_results(self, body: Any, arguments: list[bytes]) -> list[bytes]:
        """Digests of the results of a function, given those of its arguments."""
        nodes = {node.name: node for node in body.node_def}
        names = (argument.name for argument in body.signature.input_arg)
        found = dict(zip(names, arguments, strict=True))
        results = [body.ret[output.name].partition(":") for output in body.signature.output_arg]
        waiting = [name for name, _, _ in results]
        while waiting:  # no recursion: a graph may be deeper than Python's stack
            name = waiting[-1]
            needed = [] if name in found else list(_inputs(nodes[name]))
            missing = [each for each, _ in needed if each not in found]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if name not in found:
                node = nodes[name]
                inputs = (_hash(found[each], rest) for each, rest in needed)
                called = self._of_function(node.op) if node.op in self._library else node.op
                found[name] = _hash(called, *self._of_attributes(node), *inputs)
        return [_hash(found[name], rest) for name, _, rest in results]

    def _of_attributes(self, node: Any) -> Iterator[bytes]:
        for key, value in sorted(node.attr.items()):
            if key.startswith("_") or key in self._ignored:
                continue
            functions = [value.func] if value.WhichOneof("value") == "func" else value.list.func
            if functions:
                yield _hash(key, *(self._of_function(each.name) for each in functions))
            else:
                yield _hash(key, value.SerializeToString(deterministic=True))

    def _of_function(self, name: str) -> bytes:
        if name not in self._known:
            body = self._library[name]
            arguments = [_hash(str(place)) for place in range(len(body.signature.input_arg))]
            self._known[name] = _hash(*self.of_results(body, arguments))
        return self._known[name]


def _inputs(node: Any) -> Iterator[tuple[str, str]]:
    """The inputs of a node: the node that each comes from, and which of its results it is."""
    for value in node.input:
        if not value.startswith("^"):  # the node only waits for it
            name, _, rest = value.partition(":")
            yield name, rest


def _hash(*parts: str | bytes) -> bytes:
    encoded = (part.encode() if isinstance(part, str) else part for part in parts)
    digest = hashlib.sha256()
    for part in encoded:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
