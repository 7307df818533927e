"""What is saved of a run's place in its data: one small dict that checks itself."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datarax_tfds import order
from datarax_tfds.cursor import Cursor, Remainder
from datarax_tfds.errors import StateMismatchError
from sharding.messages import explain

SCHEMA = 1


@dataclass(frozen=True)
class Identity:
    """All that fixes the sequence of records: a cursor means something only beside it.

    Args:
        dataset: Name, config and version, as `mnist/3.0.1`.
        split: The resolved ranges, as `train[0:60000]`, however the split was written.
        records: Number of records N.
        fingerprint: Digest of the names, lengths and sizes of the files.
        features: Digest of the names, dtypes and shapes of a record's arrays.
        shuffle: Whether the records come in random order.
        seed: Of the order, and of a random `map_fn`; absent without either.
        remainder: What happens at the end of an epoch.
        order: The version of the algorithm that orders the records, with all that it depends on.
    """

    dataset: str
    split: str
    records: int
    fingerprint: str
    features: str
    shuffle: bool
    seed: int | None
    remainder: Remainder = "wrap"
    order: int | str = order.VERSION


IDENTITY = tuple(field.name for field in dataclasses.fields(Identity))
_FIELDS = {"schema", "epoch", "index", "sha256", *IDENTITY}


def saved(cursor: Cursor, identity: Identity) -> dict[str, Any]:
    """The state of a run at a cursor: of JSON types only, under 2 KB, the same on every process.

    `epoch` and `index` count records handed out; `sha256` is that of the rest.
    """
    fields = {
        "schema": SCHEMA,
        "epoch": cursor.epoch,
        "index": cursor.index,
        **dataclasses.asdict(identity),
    }
    return fields | {"sha256": _digest(fields)}


def restored(state: Mapping[str, Any], identity: Identity, subject: str) -> Cursor:
    """The cursor of a saved state, once it is proved sound and of this identity.

    Args:
        state: What `saved` returned, perhaps after a trip through JSON.
        identity: That of the run which is to go on.
        subject: Who restores, for messages.

    Raises:
        TypeError: `state` is not a dict.
        StateMismatchError: A `ValueError`. The state is damaged, of a newer schema, or of another
            identity: the message names every field that differs, as saved and as it is now.
    """
    fields = sound(state, subject)
    now = dataclasses.asdict(identity)
    differing = [name for name in IDENTITY if fields[name] != now[name]]
    if differing:
        raise StateMismatchError(
            explain(
                subject,
                f"the saved state is of another {', '.join(differing)}.",
                **{name: f"saved {fields[name]!r}, now {now[name]!r}" for name in differing},
                fix="build the source and the pipeline as they were, or start afresh with reset()",
            )
        )
    return Cursor(fields["epoch"], fields["index"])


def sound(state: Mapping[str, Any], subject: str) -> Mapping[str, Any]:
    """A saved state, if it is one of ours, whole and unchanged, whatever it is a state of.

    Raises:
        TypeError: `state` is not a dict.
        StateMismatchError: As `restored`.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            explain(
                subject,
                "a state is a dict.",
                got=type(state).__name__,
                fix="pass what get_state() returned",
            )
        )
    # What `saved` never writes fails the checksum, and may not fail on the way there.
    state = {
        name: value if _is_plain(value) else type(value).__name__ for name, value in state.items()
    }
    fields = {name: value for name, value in state.items() if name != "sha256"}
    schema = fields.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise StateMismatchError(
            explain(
                subject,
                "the state was saved by a newer version of datarax_tfds.",
                schema=schema,
                readable=f"up to {SCHEMA}",
                fix="restore with the version that saved it, or a later one",
            )
        )
    if set(state) != _FIELDS or schema != SCHEMA:
        raise StateMismatchError(
            explain(
                subject,
                "this is not a state of datarax_tfds.",
                schema=repr(schema),
                missing=sorted(_FIELDS - set(state)),
                unknown=sorted(set(map(str, state)) - _FIELDS)[:8],
                fix="pass what get_state() returned, or the 'data' item of the checkpoint",
            )
        )
    if state["sha256"] != _digest(fields):
        raise StateMismatchError(
            explain(
                subject,
                "the saved state is damaged: its checksum does not match.",
                sha256=f"saved {state['sha256']!r}, of its fields {_digest(fields)!r}",
                fix="restore an earlier checkpoint",
            )
        )
    if not _plausible(fields):
        raise StateMismatchError(
            explain(
                subject,
                "the saved state is damaged: it is of no place in the data.",
                **{name: repr(fields[name]) for name in ("epoch", "index", "records")},
                fix="restore an earlier checkpoint",
            )
        )
    return fields


def _plausible(fields: Mapping[str, Any]) -> bool:
    epoch, index, records = fields["epoch"], fields["index"], fields["records"]
    integers = all(type(value) is int for value in (epoch, index, records))
    # An epoch is an int32 on the devices.
    return integers and 0 <= epoch < 2**31 and 0 <= index < records


def _is_plain(value: Any) -> bool:
    """Whether this is a JSON scalar of a size that a state may have."""
    if type(value) in (int, str):
        return value.bit_length() <= 64 if isinstance(value, int) else len(value) <= 1024
    return value is None or type(value) in (bool, float)


def _digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON: keys sorted, no spaces, ASCII."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
