"""The saved state: a small dict of the cursor, the identity of the run's data, and a checksum."""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from datarax_tfds.errors import StateMismatchError
from datarax_tfds.order import order
from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.cursor import Cursor, Remainder
from datarax_tfds.order.strata import StrataOrder
from sharding.checks import error_message, refused

_log = logging.getLogger(__name__)

SCHEMA = 1

# In the fingerprint of the files, before the digest of what a filter keeps of their records.
FILTERED = ", kept "


@dataclass(frozen=True)
class Identity:
    """What determines the sequence of records. A cursor is valid only for one identity.

    Args:
        dataset: The name, config and version, as `mnist/3.0.1`.
        split: The resolved ranges, as `train[0:60000]`, however the split was written.
        records: Number of records N.
        fingerprint: Digest of the names and lengths of the files, and of the bytes of the splits.
            With a filter, a digest of the set of records that it keeps follows.
        features: Digest of the names, dtypes and shapes of a record's arrays. It ends in
            `, stateful map_fn` if the values may differ after a resume.
        shuffle: Whether the records come in random order.
        seed: The seed of the order and of a random `map_fn`; None without either.
        remainder: What happens at the end of an epoch.
        order: The version of the algorithm that orders the records, with its parameters.
        user_code: Digest of what `map_fn` and other code of users computes, with the version of
            TensorFlow. A state with another digest is restored with a warning. It is None, and not
            saved, without such code, or if the code may compute something else in every run.
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
    user_code: str | None = field(default=None, compare=False)

    def saved(self) -> dict[str, Any]:
        """The fields that are part of a state."""
        code = {} if self.user_code is None else {"user_code": self.user_code}
        return {name: getattr(self, name) for name in IDENTITY} | code


IDENTITY = tuple(each.name for each in dataclasses.fields(Identity) if each.compare)
_ARGUMENTS = ("split", "shuffle", "seed", "remainder")  # users pass these, under the same names
_FIELDS = {"schema", "epoch", "index", "sha256", *IDENTITY}
_OPTIONAL = {"user_code"}  # states of earlier versions do not have it


def to_state(cursor: Cursor, identity: Identity) -> dict[str, Any]:
    """The state at a cursor: a dict of JSON types, under 2 KB, the same on every process.

    `epoch` and `index` count delivered records; `sha256` is the checksum of the other fields.
    """
    fields = {
        "schema": SCHEMA,
        "epoch": cursor.epoch,
        "index": cursor.index,
        **identity.saved(),
    }
    return fields | {"sha256": _digest(fields)}


def cursor_from_state(
    state: Mapping[str, Any],
    identity: Identity,
    subject: str,
    earlier_fingerprints: Callable[[], Collection[str]] = tuple,
) -> Cursor:
    """The cursor of a saved state, which must be undamaged and have this identity.

    Warns if the user's code computes something else than in the run that was saved.

    Args:
        state: What `to_state` returned, possibly after a round trip through JSON.
        identity: The identity of the run that continues.
        subject: The source or pipeline that restores, for messages.
        earlier_fingerprints: Returns the fingerprints of the same files in states of earlier
            versions. It may look at each file, and is called only if the fingerprints differ.

    Raises:
        TypeError: `state` is not a dict.
        StateMismatchError: The state is damaged, of a newer schema, or of another identity. The
            message names every field that differs, with its saved and its present value.
    """
    fields = validated(state, subject)
    now = identity.saved()
    fingerprint = fields["fingerprint"]
    same = {
        "split": merged(fields["split"]) == merged(identity.split),
        "fingerprint": fingerprint == identity.fingerprint or fingerprint in earlier_fingerprints(),
    }
    differing = [name for name in IDENTITY if not same.get(name, fields[name] == now[name])]
    if differing:
        given = [f"{name}={fields[name]!r}" for name in differing if name in _ARGUMENTS]
        if "order" in differing:
            given += _arguments_of_order(fields)
        if "fingerprint" in differing and FILTERED in f"{fingerprint}{identity.fingerprint}":
            given.append("the filter_fn of that run" if FILTERED in fingerprint else "no filter_fn")
        precision = ", and under the same jax_enable_x64" * ("features" in differing)
        raise refused(
            StateMismatchError,
            subject,
            f"the saved state and this run differ in {', '.join(differing)}.",
            **{name: f"saved {fields[name]!r}, now {now[name]!r}" for name in differing},
            fix="build the source and the pipeline as they were"
            f"{', with ' * bool(given)}{', '.join(given)}{precision}; or start afresh with"
            " reset()",
        )
    _warn_of_other_code(fields.get("user_code"), identity.user_code, subject)
    return Cursor(fields["epoch"], fields["index"])


def _arguments_of_order(fields: Mapping[str, Any]) -> list[str]:
    """The arguments of a config that give the order of a saved state, if it is of one split."""
    version, length = fields["order"], fields["records"]
    if not isinstance(version, str):
        return ["access='random', strata=None"]
    if strata := StrataOrder.of_version(version, length, None):
        return [f"strata={strata.strata}"]
    blocks = BlockOrder.of_version(version, length, seed=0)
    return [] if blocks is None else [blocks.arguments]


def _warn_of_other_code(saved: str | None, now: str | None, subject: str) -> None:
    if saved is None or saved == now:
        return
    version, now_version = saved.partition(":")[0], (now or saved).partition(":")[0]
    if version != now_version:
        return  # another version of TensorFlow makes other graphs of the same code
    _log.warning(
        "%s",
        error_message(
            subject,
            "map_fn, transform or a decoder computes something else than in the run that was saved,"
            " so that the records differ from here on.",
            user_code=f"saved {saved!r}, now {now!r}",
            fix="if you did not change that code on purpose, look for a value that differs from run"
            " to run (a random number or a time taken when a module is imported, or the order of a"
            " set), and make it the same in every run, for example by a fixed seed",
        ),
    )


def merged(split: str) -> str:
    """Resolved ranges, with adjacent ones joined: `train[0:48]+train[48:97]` is `train[0:97]`."""
    ranges: list[tuple[str, int, int]] = []
    for part in split.split("+"):
        found = re.fullmatch(r"(.+)\[(\d+):(\d+)\]", part)
        if found is None:
            return split
        name, start, stop = found[1], int(found[2]), int(found[3])
        if ranges and ranges[-1][0] == name and ranges[-1][2] == start:
            start = ranges.pop()[1]
        ranges.append((name, start, stop))
    return "+".join(f"{name}[{start}:{stop}]" for name, start, stop in ranges)


def validated(state: Mapping[str, Any], subject: str) -> Mapping[str, Any]:
    """Verifies a saved state of any identity; returns its fields without the checksum.

    Raises:
        TypeError: `state` is not a dict.
        StateMismatchError: It is damaged, of a newer schema, or not a state.
    """
    if not isinstance(state, Mapping):
        raise refused(
            TypeError,
            subject,
            "the state must be a dict.",
            got=type(state).__name__,
            fix="pass what get_state() returned",
        )
    # Replaces values that `to_state` never writes, so that the checksum refuses them.
    state = {
        name: value if _is_plain(value) else type(value).__name__ for name, value in state.items()
    }
    fields = {name: value for name, value in state.items() if name != "sha256"}
    schema = fields.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise refused(
            StateMismatchError,
            subject,
            "the state was saved by a newer version of datarax_tfds.",
            schema=schema,
            readable=f"up to {SCHEMA}",
            fix="restore with the version that saved it, or a later one",
        )
    if set(state) - _OPTIONAL != _FIELDS or schema != SCHEMA:
        raise refused(
            StateMismatchError,
            subject,
            "this is not a state of datarax_tfds.",
            schema=repr(schema),
            missing=sorted(_FIELDS - set(state)),
            unknown=sorted(set(map(str, state)) - _FIELDS - _OPTIONAL)[:8],
            fix="pass what get_state() returned, or the 'data' item of the checkpoint",
        )
    if state["sha256"] != _digest(fields):
        raise refused(
            StateMismatchError,
            subject,
            "the saved state is damaged: its checksum does not match.",
            sha256=f"saved {state['sha256']!r}, of its fields {_digest(fields)!r}",
            fix="restore the step that latest_valid_step(manager) finds",
        )
    if not _plausible(fields):
        raise refused(
            StateMismatchError,
            subject,
            "the saved state is damaged: its cursor is outside of the data.",
            **{name: repr(fields[name]) for name in ("epoch", "index", "records")},
            fix="restore the step that latest_valid_step(manager) finds",
        )
    return fields


def _plausible(fields: Mapping[str, Any]) -> bool:
    epoch, index, records = fields["epoch"], fields["index"], fields["records"]
    integers = all(type(value) is int for value in (epoch, index, records))
    # The epoch is an int32 on the devices.
    return integers and 0 <= epoch < 2**31 and 0 <= index < records


def _is_plain(value: Any) -> bool:
    """Whether this is a JSON scalar, and not too large for a state."""
    if type(value) in (int, str):
        return value.bit_length() <= 64 if isinstance(value, int) else len(value) <= 1024
    return value is None or type(value) in (bool, float)


def _digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON: keys sorted, no spaces, ASCII."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
