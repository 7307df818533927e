"""Decides whether a TensorFlow function gives the same result for the same record in every run.

Its graph shows what it depends on besides its arguments: what it captures, and which operations
TensorFlow declares stateful. Values that it took from Python are constants in the graph, so it is
traced twice and the graphs are compared.
"""

import time
from collections.abc import Callable
from typing import Any

from datarax_tfds.decoding.functions.graph_digest import bodies, digests
from datarax_tfds.decoding.functions.lookup_tables import is_constant_table, table_kinds
from datarax_tfds.decoding.functions.python_state import PythonState, global_generator_states
from datarax_tfds.decoding.functions.user_function import traceable
from sharding.checks import refused

# Operations whose results depend on their inputs alone. TensorFlow declares most of them stateful
# only to keep optimizers from removing or folding them.
_REPEATABLE = frozenset(
    {
        # These run functions, whose own operations are checked, or pure JAX programs.
        *("StatefulPartitionedCall", "While", "If", "Case", "ReduceDataset", "XlaCallModule"),
        # Datasets of tensors, as the steps of an episode, and iteration over them.
        *("TensorDataset", "TensorSliceDataset", "RangeDataset", "ListDataset"),
        "DatasetToSingleElement",
        *("AnonymousIteratorV2", "AnonymousIteratorV3", "MakeIterator", "DeleteIterator"),
        *("IteratorGetNext", "IteratorGetNextSync", "IteratorGetNextAsOptional"),
        # The tables are captured, and only those that are filled once are accepted.
        *("LookupTableFindV2", "LookupTableSizeV2", "LookupTableImportV2", "InitializeTableV2"),
        *("StatelessRandomGetAlg", "CheckNumerics", "CheckNumericsV2", "Print", "DeepCopy"),
    }
)
# Operations whose results may change between two runs, though they are not declared stateful.
_OUTSIDE = frozenset({"ReadFile", "MatchingFiles", "PyFuncStateless"})
_MORE_TRACES = 3  # if another thread may have moved a global generator


class Repeatability:
    """Tells whether a function would give other results after a resume.

    It would if it uses variables, mutable tables, random operations without a seed, clocks, files,
    queues or Python functions, or if Python draws random numbers or counts while it is traced. It
    may use assertions, printing, control flow, other traced functions and constant tables.

    Args:
        tf: TensorFlow.
        function: The function of the user, before it is traced.
        *called: Functions of the user that it calls, but does not refer to by a name.
    """

    def __init__(self, tf: Any, function: Callable[..., Any], *called: Callable[..., Any]):
        self._tf = tf
        self._function = function
        self._python = PythonState(function, *called)
        self._global_generators = global_generator_states()

    def require(self, traced: Any, *, what: str, subject: str) -> None:
        """Traces the function once more, and refuses it if it is not repeatable.

        `traced` is its first trace, a `ConcreteFunction`; messages call it `what`.
        """
        facts, is_random = _stateful_parts(self._tf, traced)
        problem = "depends on state that a resume does not restore."
        if is_random:
            problem = "draws random numbers that a resume would not draw again."
        elif not facts:
            facts = {"python": self._change(traced)}
            problem = (
                "depends on what Python does while it is traced, which a resume does not repeat."
            )
        if not any(facts.values()):
            return
        first, name = "", "filter_fn" if what == "filter_fn" else "map_fn"
        if facts.keys() & {"variables", "resources"}:
            first = (
                f"make a constant outside {name}, as c = tf.constant(variable.numpy()), and use"
                " it there; "
            )
        elif not is_random:
            first = (
                "compute all of it by TensorFlow's operations on the record, without a clock"
                " (to measure how long something takes, use time.perf_counter; compute a fixed"
                f" date outside {name} and close over the value); "
            )
        if name == "filter_fn":
            raise refused(
                ValueError,
                subject,
                f"filter_fn {problem}",
                **facts,
                fix=f"{first}to keep a random part of the records, take a hash of a feature, as"
                " tf.strings.to_hash_bucket_fast(tf.as_string(record['id']), 10) == 0",
            )
        raise refused(
            ValueError,
            subject,
            f"{what} {problem}",
            **facts,
            fix=f"{first}for random numbers take a seed, as map_fn(record, seed), and use"
            " tf.random.stateless_* or tf.image.stateless_random_*, not Keras's random"
            " layers; or accept other batches after a resume, with"
            " allow_stateful_map_fn=True",
        )

    def _change(self, traced: Any) -> str:
        """What differs in Python when the function is traced again; empty if nothing does."""
        try:
            other = self._traced_again(*traced.structured_input_signature)
        except Exception as error:  # the user's code may raise anything
            return f"a second trace raises {type(error).__name__}"
        drawn = "it draws random numbers of random or numpy.random"
        if self._python.reads_clock:
            return "it reads the clock, by time.time, datetime.now or the like"
        if self._python.has_drawn():
            return drawn
        if _stateful_parts(self._tf, other)[0]:
            return "a second trace has other operations"
        if not self._is_same(traced, other):
            return "a second trace has other constants or operations"
        # The draw may come from a function that this one calls by an attribute, or another thread.
        moved = self._global_generators != global_generator_states()
        return drawn if moved and not self._drawn_elsewhere(traced) else ""

    def _drawn_elsewhere(self, traced: Any) -> bool:
        """Whether it is not the function but another thread that draws from global generators.

        If they do not change during one of several traces, the function does not draw. If they
        change during each, they are watched for as long without a trace. If they change then, too,
        another thread draws, and the graphs decide.
        """
        begun = time.perf_counter()
        same = True
        for _ in range(_MORE_TRACES):
            before = global_generator_states()
            other = self._traced_again(*traced.structured_input_signature)
            if global_generator_states() == before:
                return True
            same = same and self._is_same(traced, other)
        before = global_generator_states()
        time.sleep(time.perf_counter() - begun)
        return same and global_generator_states() != before

    def _is_same(self, traced: Any, other: Any) -> bool:
        """Whether two traces compute the same; also true if they cannot be compared."""
        captured = [outer for outer, _ in other.graph.captures]
        if not all(hasattr(tensor, "numpy") for tensor in captured):
            # A Keras layer may keep tensors of the graph that it was built in.
            return True
        shared = {id(outer) for outer, _ in traced.graph.captures} & set(map(id, captured))
        return digests(traced, shared) == digests(other, shared)

    def _traced_again(self, arguments: Any, options: Any) -> Any:
        again: Any = self._function
        if hasattr(again, "python_function"):  # a tf.function keeps its first trace
            autograph = getattr(again, "_autograph", True)
            again = self._tf.function(again.python_function, autograph=autograph)
        return traceable(self._tf, again).get_concrete_function(*arguments, **options)


def _stateful_parts(tf: Any, traced: Any) -> tuple[dict[str, str], bool]:
    """What a traced function depends on besides its arguments, as facts for a message; and whether
    one of its operations draws random numbers.
    """
    library = bodies(traced)
    nodes = [node for body in library.values() for node in body.node_def]
    variables = {id(variable.handle): variable for variable in traced.graph.variables}
    tables = table_kinds(library.values())
    resources = [
        f"{outer.dtype.name} of {inner.name.partition(':')[0]}"
        for outer, inner in traced.graph.captures
        if outer.dtype in (tf.resource, tf.variant)
        and id(outer) not in variables
        and not is_constant_table(tf, outer, tables)
    ]
    stateful = {node.op: node for node in nodes if _is_stateful(node.op)}
    parts = {
        "variables": [
            f"{variable.name} {variable.dtype.name}{variable.shape.as_list()}"
            for variable in variables.values()
        ],
        "resources": resources,
        "operations": sorted(stateful),
    }
    # TensorFlow's random operations have two seeds as attributes.
    is_random = any({"seed", "seed2"} <= set(node.attr) for node in stateful.values())
    return {name: ", ".join(part) for name, part in parts.items() if part}, is_random


def _is_stateful(operation: str) -> bool:
    """Whether the results of an operation depend on more than its inputs."""
    from tensorflow.python.framework import op_def_registry

    if operation in _OUTSIDE:
        return True
    definition = op_def_registry.get(operation)
    if definition is None or not definition.is_stateful or operation in _REPEATABLE:
        return False
    # An operation without results, and without a resource to change, only checks or prints.
    takes = {argument.type for argument in definition.input_arg}
    return bool(definition.output_arg) or bool(takes & {_RESOURCE, _VARIANT})


_RESOURCE, _VARIANT = 20, 21  # of TensorFlow's enum DataType
