"""The place that `golden/state_v1.json` saves."""

from datarax_tfds.order.cursor import Cursor
from datarax_tfds.state.state import Identity

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
