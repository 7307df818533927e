"""Defines the source that mixes the records of several others by weights."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import jax
from flax import nnx

from datarax_tfds.config.fields import Field, source_name
from datarax_tfds.decoding.device_dtypes import path_name
from datarax_tfds.errors import StateMismatchError
from datarax_tfds.order.cursor import Cursor, require_cursor
from datarax_tfds.order.growing import AnySchedule
from datarax_tfds.order.keys import threefry_2x32
from datarax_tfds.order.mixture import MixtureOrder, Stage, names_of, stages_of_version
from datarax_tfds.order.order import check_seed
from datarax_tfds.order.record_order import RecordOrder
from datarax_tfds.order.sampler import BatchAt, Sampler, Selection, Traced
from datarax_tfds.order.shares import Shares
from datarax_tfds.order.weights import weights_of_parts
from datarax_tfds.packed_source import PackedSource
from datarax_tfds.records.mixture import MixtureRecords
from datarax_tfds.runtime.forks import refuse_in_forked_child
from datarax_tfds.runtime.signatures import set_signature
from datarax_tfds.runtime.untraced import refuse_while_traced
from datarax_tfds.sources.dataset_source import DatasetSource
from datarax_tfds.sources.source import Source
from datarax_tfds.state.mixture_identity import names_of_saved_parts, saved_parts
from datarax_tfds.state.state import Identity, cursor_from_state, to_state, validated
from sharding.checks import is_integer, nearest, refused, whole_number

EpochLength = Literal["total", "shortest", "longest"]
Part = DatasetSource[Any, Any] | PackedSource

_MAX_STATE_BYTES = 2048
_MAX_NAMED = 8  # parts in the name of a mixture


@dataclass(frozen=True)
class MixtureConfig:
    """What pipelines and users look up in `source.config` of a mixture."""

    mapped_by: str | None
    host_keys: frozenset[str] | None
    batch_stats_fn: None = None
    precomputed_stats: None = None
    cacheable: bool = True


@final
class MixtureSource(Source[MixtureRecords]):
    """Mixes the records of several sources by weights, and is used like any other source.

        source = MixtureSource({"web": web, "code": code}, weights={"web": 0.7, "code": 0.3})
        for batch in Pipeline(source=source, batch_size=128):
            train_step(batch)

    Batch k is a pure function of the arguments and k, on any number of hosts and after any resume.
    After any number of records, each part has had its share, up to less than one record (less than
    two, if there are more than four parts with a weight). Each part is read in its own order, and
    begins its own next epoch when it ends: each of its records comes exactly once in each epoch of
    that part. The cursors of the parts themselves are not used, and do not move.

    The parts may be eager, streams, or both, as long as their records have the same features, of
    the same dtypes and shapes. If all are eager, `get_batch_at` can be compiled, and `scan` works.
    The parts keep their records: a mixture needs no copy of them.

    The numbers of records are those of the parts, one part after the other in the order of `parts`:
    `source[0]` is the first record of the first part.

    Args:
        parts: Sources by name, all with one sharding. None stands for a part that was removed: its
            weight says how many records came from it before `set_weights` gave it none.
        weights: How many records come from each part, in any unit. Whole numbers and short decimals
            are exact, as long as they are at most 2**30 in sum as whole numbers without a common
            divisor; other weights are rounded to a millionth of their sum. A part of weight 0 is
            left out. After a resume they must be those of the beginning, and parts that were added
            must have weight 0: `set_weights` changes them.
        epoch_records: How many records are an epoch of the mixture, at whose end a loop over a
            pipeline ends. `total`: as many as all parts with a weight have together. `shortest`:
            as many as there are until a record comes twice. `longest`: as many as it takes until
            every record has come once. Or any number.
        seed: The seed of random stages and of a random `map_fn`, in `[0, 2**32)`. The parts are
            shuffled with their own seeds.
        part_column: The name of a column that says which part each record comes from, int32: 0 for
            the first one in `parts`, -1 for padding.
        name: The name in messages, `MixtureSource(web, code)` by default.

    Attributes:
        parts: The sources by name; None for removed ones.
        weights: The weights that hold at the cursor, as whole numbers.
        index: The next position to hand out, as in other sources.
        epoch: The epoch of that position.
        length: The number of records of an epoch.

    Raises:
        TypeError: `parts` or `weights` is not a dict, or a part is not a source.
        ValueError: There is no part, the weights are not those of the parts, or the parts differ in
            their sharding or their features; the message names every feature that differs.
    """

    def __init__(
        self,
        parts: Mapping[str, Part | None],
        weights: Mapping[str, float],
        *,
        epoch_records: int | EpochLength = "total",
        seed: int = 42,
        part_column: str | None = None,
        name: str | None = None,
    ):
        present = _require_parts(parts)
        names = tuple(parts)
        listed = ", ".join(names) if len(names) <= _MAX_NAMED else f"{len(names)} parts"
        self.name = source_name(name, f"MixtureSource({listed})")
        refuse_in_forked_child(self.name)
        refuse_while_traced(self.name, ", ".join(names))
        _require_alike(present, part_column, self.name)
        first = next(iter(present.values()))
        self.sharding = nnx.static(first.sharding)
        self._parts = nnx.static(_Parts(dict(parts)))
        self._seed = check_seed(seed)
        self.rngs = nnx.data(None)
        self.stochastic, self.stream_name = False, None
        removed = set(names) - set(present)
        whole = weights_of_parts(weights, names, removed, self.name)
        orders = tuple(None if part is None else part.sampler.order for part in parts.values())
        self.length = _epoch_length(epoch_records, names, orders, whole, self.name)
        order = MixtureOrder(names, orders, self.length, (Stage(0, whole),))
        self.sampler = Sampler(order, self._seed)
        self._absent = self._absent_from(Cursor())
        on_host = {key for part in present.values() for key in part.config.host_keys or ()}
        mapped_by = next((by for part in present.values() if (by := part.config.mapped_by)), None)
        self.config = nnx.static(MixtureConfig(mapped_by, frozenset(on_host) or None))
        self.draws = any(part.draws for part in present.values())
        eager = any(part.supports_indexed_access() for part in present.values())
        if eager and order.records >= 2**31:
            raise refused(
                ValueError,
                self.name,
                "with eager parts, all parts must have fewer than 2**31 records together.",
                records=order.records,
                fix="use a TFDSStreamingSource for every part",
            )
        records = MixtureRecords(
            [None if part is None else part.records for part in parts.values()],
            order,
            batch=first.sharding,
            subject=self.name,
            part_column=part_column,
        )
        self._identity = Identity(
            dataset="",
            split="",
            records=self.length,
            fingerprint="",
            features=_digest(sorted(_features(first).items()))[:16],
            shuffle=False,
            seed=None,
            user_code=_user_code(present),
        )
        self._require_small(order)
        self.agree("construction", self.identity.saved() | {"part_column": part_column})
        self._start(records)

    @property
    def parts(self) -> dict[str, Part | None]:
        """The sources by name; None for removed ones."""
        return dict(self._parts.by_name)

    @property
    def order(self) -> MixtureOrder:
        """Which record of which part stands at which position."""
        order = self.sampler.order
        assert isinstance(order, MixtureOrder)
        return order

    @property
    def weights(self) -> dict[str, int]:
        """The weights that hold at the cursor, as whole numbers without a common divisor."""
        stage = self.order.stages[self.order.at_stage(self._position(self.cursor))]
        return dict(zip(self.order.names, stage.weights, strict=True))

    def set_weights(self, weights: Mapping[str, float], at: Cursor | None = None) -> None:
        """Changes the weights from exactly one record on, also in the middle of a batch.

            source.set_weights({"web": 0.5, "code": 0.5})                      # from the cursor on
            source.set_weights({"web": 0.2, "code": 0.8}, at=Cursor(3, 1000))  # later, in epoch 3

        Each part continues where it is. The weights are part of the state: a restored source has
        all changes of the run that was saved. Weights that hold already change nothing, so that a
        program may make the same calls after each resume. All processes must make the same calls.

        Args:
            weights: As for the constructor; without removed parts.
            at: The first record with these weights, at or after the cursor of the source, which is
                the default. They replace all changes that were set for this record or later ones.

        Raises:
            TypeError: As for the constructor; also if `at` is not a `Cursor`.
            ValueError: As for the constructor; also if `at` is before the cursor, or if there are
                too many changes for a state of 2 KB.
        """
        self.require_movable()
        removed = {name for name, part in self.parts.items() if part is None}
        whole = weights_of_parts(weights, self.order.names, removed, self.name)
        at = self.cursor if at is None else require_cursor(at, self.length, self.name, "at")
        start, now = self._position(at), self._position(self.cursor)
        if start < now:
            if self.order.stages[self.order.at_stage(start)].weights == whole:
                return
            raise refused(
                ValueError,
                self.name,
                "the weights of records that were already delivered cannot be changed.",
                at=at,
                cursor=self.cursor,
                fix="use a cursor from source.cursor on, or leave at out",
            )
        order = self.order.with_weights(whole, start)
        self._require_small(order)
        self.agree("set_weights", {"order": order.version, "position": now})
        with self.turn:
            self.sampler = dataclasses.replace(self.sampler, order=order)
            self._absent = self._absent_from(self.cursor)

    def _position(self, cursor: Cursor) -> int:
        return cursor.epoch * self.length + cursor.index

    def _absent_from(self, cursor: Cursor) -> str | None:
        """The first removed part from which records come at a cursor or after it."""
        order = self.order
        for stage in order.stages[order.at_stage(self._position(cursor)) :]:
            for name in names_of(stage.weights, order.names):
                if self._parts.by_name[name] is None:
                    return name
        return None

    def _require_present(self) -> None:
        if self._absent is not None:
            left = {name: 1 for name, part in self.parts.items() if part is not None}
            raise refused(
                ValueError,
                self.name,
                f"the part {self._absent!r} was removed, but has a weight.",
                weights=self.weights,
                fix=f"call source.set_weights({left}), with weights for the parts that are left",
            )

    def _require_small(self, order: MixtureOrder) -> None:
        """Raises if a state with this order would be too large to save."""
        identity = dataclasses.replace(self.identity, order=order.version, remainder="wrap")
        last = Cursor(2**31 - 1, self.length - 1)
        fields = to_state(last, identity)
        if len(json.dumps(fields)) > _MAX_STATE_BYTES or len(order.version) > 1024:
            raise refused(
                ValueError,
                self.name,
                "these weights, and their changes, do not fit a state of 2 KB.",
                parts=len(order.names),
                changes=len(order.stages) - 1,
                bytes=len(json.dumps(fields)),
                fix="use weights of fewer digits, or change them less often",
            )

    def select(self, schedule: AnySchedule, cursor: Cursor) -> BatchAt | Traced:
        self._require_present()
        return super().select(schedule, cursor)

    def _selection(self, start: Any, size: int, key: jax.Array | None) -> Selection:
        self._require_present()
        return super()._selection(start, size, key)

    def seek(self, cursor: Cursor, sampler: Sampler | None = None) -> None:
        super().seek(cursor, sampler)
        self._absent = self._absent_from(cursor)

    def _sampler_of(self, shuffle: bool, seed: int) -> Sampler:
        shuffled = [part.config.shuffle for part in self.parts.values() if part is not None]

        def reordered(name: str, part: Part | None) -> RecordOrder | None:
            if part is None:
                return None
            if not shuffle or (any(shuffled) and not part.config.shuffle):
                return part.ordered(None)
            own = part.sampler.seed if seed == self._seed else _seed_of_part(seed, name)
            return part.ordered(own)

        orders = tuple(reordered(name, part) for name, part in self.parts.items())
        return Sampler(dataclasses.replace(self.order, parts=orders), seed)

    @property
    def identity(self) -> Identity:
        """What a saved cursor is valid for."""
        return dataclasses.replace(super().identity, **saved_parts(self._identities()))

    def _identities(self) -> dict[str, Identity | None]:
        identities: dict[str, Identity | None] = {}
        for (name, part), order in zip(self.parts.items(), self.order.parts, strict=True):
            identities[name] = None
            if part is not None and order is not None:
                shuffle, seed = order.seed is not None, order.seed
                identities[name] = dataclasses.replace(
                    part.identity, shuffle=shuffle, seed=seed, order=order.version, user_code=None
                )
        return identities

    def _saved_place(
        self, state: Mapping[str, Any], identity: Identity, subject: str
    ) -> tuple[Cursor, Sampler | None]:
        """The saved cursor, and the order with the saved changes of weights."""
        fields = validated(state, subject)
        if not str(fields["order"]).startswith("mixture"):
            return cursor_from_state(state, identity, subject), None
        identities = self._identities()
        names = names_of_saved_parts(fields, identities, subject)
        stages = stages_of_version(fields["order"], len(names))
        if stages is None:
            return cursor_from_state(state, identity, subject), None
        places = [names.index(name) if name in names else None for name in self.order.names]
        stages = tuple(
            Stage(start, tuple(0 if at is None else weights[at] for at in places))
            for start, weights in stages
        )
        order = dataclasses.replace(self.order, stages=stages)
        self._require_begun_alike(stages[0].weights, fields, subject)
        saved = {name: fields[name] for name in ("dataset", "split", "order")}
        if set(names) != set(identities) or None in identities.values():
            # One digest of all parts, and of all their code, says nothing of those that are left.
            saved |= {"fingerprint": fields["fingerprint"], "user_code": fields.get("user_code")}
        cursor = cursor_from_state(state, dataclasses.replace(identity, **saved), subject)
        return cursor, dataclasses.replace(self.sampler, order=order)

    def _require_begun_alike(
        self, weights: tuple[int, ...], fields: Mapping[str, Any], subject: str
    ) -> None:
        """Raises unless the saved run began with the weights and the epochs of this one."""
        begun = self.order.stages[0].weights
        saved, now = (dict(zip(self.order.names, each, strict=True)) for each in (weights, begun))
        if saved != now:
            raise refused(
                StateMismatchError,
                subject,
                "the saved run began with other weights.",
                saved=saved,
                now=now,
                fix=f"use weights={saved}, restore the state, and then call set_weights to change"
                " the weights from there on",
            )
        if fields["records"] != self.length:
            raise refused(
                StateMismatchError,
                subject,
                "an epoch of the saved mixture has another number of records.",
                saved=fields["records"],
                now=self.length,
                fix=f"use epoch_records={fields['records']}",
            )

    def supports_indexed_access(self) -> bool:
        return self._records.traceable

    @property
    def corrupt_records(self) -> dict[int, int]:
        """The number of each corrupt record that this process has found so far in any part, and the
        number of the record that replaces it.
        """
        found: dict[int, int] = {}
        for part, start in zip(self.parts.values(), self.order.starts, strict=False):
            replaced = {} if part is None else part.corrupt_records
            found |= {start + record: start + by for record, by in replaced.items()}
        return found

    def get_dataset_info(self) -> dict[str, Any]:
        """The `tfds.core.DatasetInfo` of each part, by its name."""
        return {
            name: part.get_dataset_info() for name, part in self.parts.items() if part is not None
        }


set_signature(MixtureSource, [])


class _Parts:
    """The parts by name; as an object, so that NNX compares mixtures by it."""

    def __init__(self, by_name: dict[str, Part | None]):
        self.by_name = by_name


def _require_parts(parts: Any) -> dict[str, Part]:
    """The parts that are not removed."""
    if not isinstance(parts, Mapping):
        raise refused(
            TypeError,
            "MixtureSource",
            f"parts must be a dict of sources by name, got {type(parts).__name__}.",
            parts=type(parts).__name__,
            fix="use MixtureSource({'web': web, 'code': code}, weights={'web': 0.7, 'code': 0.3})",
        )
    for name, part in parts.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.:/+-]+", name):
            raise refused(
                ValueError,
                "MixtureSource",
                "the name of a part must be made of letters, digits and the signs . : / + - _"
                " only.",
                name=repr(name),
                fix="use a name such as 'web'",
            )
        if part is not None and not isinstance(part, DatasetSource | PackedSource):
            raise refused(
                TypeError,
                "MixtureSource",
                f"the part {name!r} must be an eager source, a stream or a PackedSource.",
                got=type(part).__name__,
                fix="pass sources, as from_tfds('mnist', 'train'); in place of a mixture, pass its"
                " parts; in place of a BucketedSource, pass a stream with pad_to",
            )
    present = {name: part for name, part in parts.items() if part is not None}
    if not present:
        raise refused(
            ValueError,
            "MixtureSource",
            "a mixture must have at least one part.",
            parts=dict(parts),
            fix="use MixtureSource({'web': web}, weights={'web': 1})",
        )
    return present


def _require_alike(parts: Mapping[str, Part], column: str | None, subject: str) -> None:
    """Raises unless all parts have one sharding and one element spec."""
    first, *others = parts
    for other in others:
        if parts[other].sharding != parts[first].sharding:
            raise refused(
                ValueError,
                subject,
                "all parts must have the same sharding.",
                sharding=f"{first} {parts[first].sharding}, {other} {parts[other].sharding}",
                fix="build every part with the same sharding=batch_sharding(mesh)",
            )
        one, two = _features(parts[first]), _features(parts[other])
        apart = [name for name in {**one, **two} if one.get(name) != two.get(name)]
        if apart:
            raise refused(
                ValueError,
                subject,
                f"the records of {first!r} and {other!r} differ in {len(apart)} features.",
                features="\n".join(
                    f"{name}: {first} {one.get(name, 'none')}, {other} {two.get(name, 'none')}"
                    for name in apart
                ),
                fix="use include_keys or exclude_keys for features that both have, and a map_fn"
                " that gives them one dtype and shape",
            )
    if column is not None and (not isinstance(column, str) or column in _features(parts[first])):
        raise refused(
            ValueError,
            subject,
            "part_column must be the name of a new column.",
            part_column=repr(column),
            features=", ".join(_features(parts[first])),
            fix="use part_column='part', or leave it out",
        )


def _features(source: Part) -> dict[str, str]:
    """Dtype and shape of each feature of a record."""
    spec = jax.tree_util.tree_leaves_with_path(source.records.spec)
    features = {path_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in spec}
    on_host = source.records.host_spec.items()
    return features | {
        name: f"{leaf.dtype}{list(leaf.shape)} on the host" for name, leaf in on_host
    }


def _epoch_length(
    wanted: Any,
    names: tuple[str, ...],
    orders: tuple[RecordOrder | None, ...],
    weights: tuple[int, ...],
    subject: str,
) -> int:
    """The number of records of an epoch of the mixture."""
    if is_integer(wanted, 1):
        return int(wanted)
    if wanted not in get_args(EpochLength):
        near = nearest(wanted, get_args(EpochLength)) if isinstance(wanted, str) else None
        whole = whole_number(wanted)
        use = whole if whole and whole > 0 else repr(near or "total")
        problem = (
            "epoch_records must be a number of at least 1, or 'total', 'shortest' or 'longest'."
        )
        fix = f"use epoch_records={use}"
        raise Field(subject, "epoch_records", wanted).refusal(problem, fix=fix)
    if None in orders:
        raise refused(
            ValueError,
            subject,
            "with a removed part, epoch_records must be the number of the saved run.",
            epoch_records=wanted,
            removed=", ".join(n for n, order in zip(names, orders, strict=True) if order is None),
            fix="use epoch_records=state['records'], of the state to restore",
        )
    lengths = [order.length for order in orders if order is not None]
    weighted = [(length, part) for part, length in enumerate(lengths) if weights[part]]
    if wanted == "total":
        return sum(length for length, _ in weighted)
    shares = Shares(weights, names)
    # By halving: a part has its share up to less than two records.
    ends = [(length + 2) * sum(weights) // weights[part] + 1 for length, part in weighted]

    def beyond(count: int) -> bool:
        counts = shares.counts(count)
        if wanted == "shortest":
            return any(counts[part] > length for length, part in weighted)
        return all(counts[part] >= length for length, part in weighted)

    low, high = 0, min(ends) if wanted == "shortest" else max(ends)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return low if wanted == "shortest" else high


def _seed_of_part(seed: int, name: str) -> int:
    word = int(_digest(name)[:8], 16)
    return threefry_2x32((0, seed), (1 << 30, word))[0]


def _user_code(parts: Mapping[str, Part]) -> str | None:
    """One digest of what users' code in all parts computes, after the version of TensorFlow."""
    codes = {name: part.identity.user_code for name, part in sorted(parts.items())}
    version = next((code.partition(":")[0] for code in codes.values() if code), None)
    return None if version is None else f"{version}:{_digest(codes)[:16]}"


def _digest(value: Any) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()
