"""Reads the lookup tables that a traced TensorFlow function captures."""

from collections.abc import Iterable
from typing import Any

# The types of the keys and of the values of a table, of TensorFlow's enum DataType.
Kind = tuple[int, int]


def table_kinds(bodies: Iterable[Any]) -> set[Kind]:
    """The types of keys and values of all tables that these `FunctionDef`s of TensorFlow read."""
    return {
        (node.attr["Tin"].type, node.attr["Tout"].type)
        for body in bodies
        for node in body.node_def
        if node.op == "LookupTableFindV2"
    }


def is_constant_table(tf: Any, resource: Any, kinds: Iterable[Kind]) -> bool:
    """Whether a resource is a table that cannot be written: inserting even zero rows fails."""
    if resource.dtype != tf.resource:
        return False
    for keys, values in kinds:
        try:
            tf.raw_ops.LookupTableInsertV2(
                table_handle=resource,
                keys=tf.zeros([0], tf.dtypes.as_dtype(keys)),
                values=tf.zeros([0], tf.dtypes.as_dtype(values)),
            )
        except tf.errors.UnimplementedError:
            return True
        except tf.errors.OpError:
            continue  # a table of other types, or not a table
    return False


def table_contents(tf: Any, resource: Any, kinds: Iterable[Kind]) -> str:
    """All keys and values as a string, in the order of the keys; empty if it is not a table."""
    for keys, values in kinds:
        try:
            exported = tf.raw_ops.LookupTableExportV2(
                table_handle=resource,
                Tkeys=tf.dtypes.as_dtype(keys),
                Tvalues=tf.dtypes.as_dtype(values),
            )
        except tf.errors.OpError:
            continue  # a table of other types, or not a table
        return repr(sorted(zip(*(each.numpy().tolist() for each in exported), strict=True)))
    return ""
