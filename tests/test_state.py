import dataclasses
import json
from pathlib import Path

import pytest
from refusals import check_message
from states import CURSOR, IDENTITY

from datarax_tfds import StateMismatchError
from datarax_tfds.order.cursor import Cursor
from datarax_tfds.state.state import cursor_from_state, to_state

GOLDEN = Path(__file__).parent / "golden"


def test_a_state_of_schema_1_restores_for_ever():
    """The file is what version 0.1 wrote. It may be migrated; it may not be refused."""
    state = json.loads((GOLDEN / "state_v1.json").read_text())
    assert cursor_from_state(state, IDENTITY, "test") == CURSOR
    assert to_state(CURSOR, IDENTITY) == state


def test_a_state_survives_json_and_is_small():
    text = json.dumps(to_state(Cursor(2**31 - 1, 59_999), IDENTITY), indent=1)
    assert len(text) < 2048
    assert cursor_from_state(json.loads(text), IDENTITY, "test") == Cursor(2**31 - 1, 59_999)


CODED = dataclasses.replace(IDENTITY, user_code="tensorflow 2.21.0: 0123456789abcdef")


@pytest.mark.parametrize(
    ("saved_code", "code", "warns"),
    [
        (CODED.user_code, CODED.user_code, False),
        (CODED.user_code, "tensorflow 2.21.0: 0123456789abcdee", True),
        (CODED.user_code, None, True),  # without the function
        (CODED.user_code, "tensorflow 2.22.0: 0123456789abcdee", False),  # which makes other graphs
        (None, CODED.user_code, False),  # a state of an earlier version
        (None, None, False),
    ],
)
def test_a_state_of_other_code_is_restored_with_a_warning(saved_code, code, warns, caplog):
    state = to_state(CURSOR, dataclasses.replace(IDENTITY, user_code=saved_code))
    now = dataclasses.replace(IDENTITY, user_code=code)
    assert cursor_from_state(json.loads(json.dumps(state)), now, "test") == CURSOR
    texts = [entry.getMessage() for entry in caplog.records]
    assert len(texts) == warns
    for text in texts:
        check_message(text)
        assert f"user_code: saved {saved_code!r}, now {code!r}" in text


def test_the_code_cannot_change_unnoticed():
    state = to_state(CURSOR, CODED)
    for changed in (state | {"user_code": "tensorflow 2.21.0: 1"}, dict(state)):
        if changed == state:
            del changed["user_code"]
        with pytest.raises(StateMismatchError, match="damaged"):
            cursor_from_state(changed, CODED, "test")
