"""Writes the order of a run into its log, and rebuilds it for the audit."""

from collections.abc import Mapping, Sequence
from typing import Any

from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.bucket_order import BucketOrder, Buckets
from datarax_tfds.order.mixture import MixtureOrder, Stage, stages_of_version
from datarax_tfds.order.order import Order
from datarax_tfds.order.record_order import RecordOrder
from datarax_tfds.order.strata import StrataOrder
from sharding.checks import refused


def logged_parts(order: RecordOrder) -> list[list[Any]] | None:
    """What a saved state does not say of an order. Of a mixture, these are the name, length, seed
    and version of each part; of buckets, those of all records. None for any other order of one
    split, of which the state says everything.
    """
    if isinstance(order, BucketOrder):
        return [[order.buckets.written()]]
    if not isinstance(order, MixtureOrder):
        return None
    return [
        [name, *(() if part is None else (part.length, part.seed, part.version))]
        for name, part in zip(order.names, order.parts, strict=True)
    ]


def logged_order(state: Mapping[str, Any], parts: Sequence[Sequence[Any]] | None) -> RecordOrder:
    """The order of a run.

    Args:
        state: The saved state with which the run begins.
        parts: What `logged_parts` gave.

    Raises:
        ValueError: A later version of the library wrote it.
    """
    version, length = state["order"], state["records"]
    seed = state["seed"] if state["shuffle"] else None
    if parts is None:
        return _order_of_split(version, length, seed)
    if (base := BucketOrder.base_version(version)) is not None:
        return _order_of_buckets(version, _order_of_split(base, length, seed), parts)
    names = tuple(name for name, *_ in parts)
    stages = stages_of_version(version, len(names))
    if stages is None:
        raise _unknown(version)
    places = [sorted(names).index(name) for name in names]
    orders = [
        _order_of_split(described[2], described[0], described[1]) if described else None
        for _, *described in parts
    ]
    by_part = tuple(Stage(start, tuple(weights[at] for at in places)) for start, weights in stages)
    return MixtureOrder(names, tuple(orders), length, by_part)


def are_sound(version: int | str, parts: Any) -> bool:
    """Whether what `logged_parts` gave is undamaged. Only buckets are looked at."""
    return BucketOrder.base_version(version) is None or _buckets(str(version), parts) is not None


def _buckets(version: str, parts: Any) -> Buckets | None:
    """The buckets of all records, if they are those of an order."""
    match parts:
        case [[str(written)]] if (buckets := Buckets.read(written)) is not None:
            return buckets if f"buckets {buckets.digest} " in version else None
        case _:
            return None


def _order_of_buckets(version: str, base: RecordOrder, parts: Any) -> BucketOrder:
    order, buckets = None, _buckets(version, parts)
    if buckets is not None and isinstance(base, Order | BlockOrder):
        order = BucketOrder.of_version(version, base, buckets)
    if order is None:
        raise _unknown(version)
    return order


def _order_of_split(version: int | str, length: int, seed: int | None) -> RecordOrder:
    if isinstance(version, str):
        strata = StrataOrder.of_version(version, length, seed)
        order = strata or BlockOrder.of_version(version, length, seed or 0)
        if order is None:
            raise _unknown(version)
        return order
    return Order(length, seed)


def _unknown(version: str) -> ValueError:
    return refused(
        ValueError,
        "CursorLog",
        "this version of datarax_tfds does not know the order in the log.",
        order=repr(version),
        fix="use the version of datarax_tfds that wrote the log",
    )
