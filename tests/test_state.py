import dataclasses
import json
from pathlib import Path

import pytest

from datarax_tfds import StateMismatchError
from datarax_tfds.cursor import Cursor
from datarax_tfds.state import Identity, restored, saved

GOLDEN = Path(__file__).parent / "golden"

IDENTITY = Identity(
    dataset="mnist/3.0.1",
    split="train[0:60000]",
    records=60_000,
    fingerprint="0123456789abcdef",
    features="fedcba9876543210",
    shuffle=True,
    seed=42,
)
CURSOR = Cursor(3, 12_345)


def test_a_state_of_schema_1_restores_for_ever():
    """The file is what version 0.1 wrote. It may be migrated; it may not be refused."""
    state = json.loads((GOLDEN / "state_v1.json").read_text())
    assert restored(state, IDENTITY, "test") == CURSOR
    assert saved(CURSOR, IDENTITY) == state


def test_a_state_survives_json_and_is_small():
    text = json.dumps(saved(Cursor(2**31 - 1, 59_999), IDENTITY), indent=1)
    assert len(text) < 2048
    assert restored(json.loads(text), IDENTITY, "test") == Cursor(2**31 - 1, 59_999)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("dataset", "mnist/3.1.0"),
        ("split", "train[0:30000]"),
        ("records", 59_999),
        ("fingerprint", "another"),
        ("features", "another"),
        ("shuffle", False),
        ("seed", 7),
        ("seed", None),
        ("remainder", "drop"),
        ("order", 2),
    ],
)
def test_a_state_of_another_identity_is_refused_by_name(field, other):
    state = saved(Cursor(0, 5), dataclasses.replace(IDENTITY, **{field: other}))
    now = repr(getattr(IDENTITY, field))
    with pytest.raises(
        StateMismatchError,
        match=rf"^test: the saved state is of another {field}\.\n"
        rf"  {field}: +saved {other!r}, now {now}\n  fix:".replace("[", r"\["),
    ):
        restored(state, IDENTITY, "test")


def test_every_field_that_differs_is_named():
    state = saved(CURSOR, dataclasses.replace(IDENTITY, seed=1, dataset="digits/1.0.0"))
    with pytest.raises(StateMismatchError, match="another dataset, seed"):
        restored(state, IDENTITY, "test")


@pytest.mark.parametrize("state", [None, [], "state", 3])
def test_a_state_is_a_dict(state):
    with pytest.raises(TypeError, match=r"a state is a dict(.|\n)*fix:"):
        restored(state, IDENTITY, "test")


@pytest.mark.parametrize("state", [{}, {"position": 3}, {"schema": 1}, {"schema": "1"}])
def test_a_state_of_another_library_is_refused(state):
    with pytest.raises(StateMismatchError, match=r"not a state of datarax_tfds(.|\n)*fix:"):
        restored(state, IDENTITY, "test")


def test_a_state_of_a_newer_version_is_refused():
    with pytest.raises(StateMismatchError, match=r"newer version(.|\n)*schema: +2(.|\n)*fix:"):
        restored(saved(CURSOR, IDENTITY) | {"schema": 2}, IDENTITY, "test")


@pytest.mark.parametrize("field", list(saved(CURSOR, IDENTITY)))
def test_no_field_can_change_unnoticed(field):
    state = saved(CURSOR, IDENTITY)
    value = state[field]
    changed = value + 1 if isinstance(value, int) else f"{value}x"
    with pytest.raises(StateMismatchError):
        restored(state | {field: changed}, IDENTITY, "test")


@pytest.mark.parametrize(
    "cursor", [Cursor(0, 60_000), Cursor(0, -1), Cursor(-1, 0), Cursor(0, 1.0)]
)
def test_a_position_that_cannot_be_is_refused_though_its_checksum_is_right(cursor):
    with pytest.raises(StateMismatchError, match="damaged"):
        restored(saved(cursor, IDENTITY), IDENTITY, "test")
