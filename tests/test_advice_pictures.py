"""The fixes of messages about pictures."""

import sys
from unittest import mock

import pytest
from advice import Row

from datarax_tfds import batch_sharding, draw_placement, make_mesh, show


def drawn(_):
    return draw_placement(batch_sharding(make_mesh({"data": -1})), 16)


def drawn_without_matplotlib(u):
    with mock.patch.dict(sys.modules, {"matplotlib": None, "matplotlib.figure": None}):
        return drawn(u)


ROWS = [
    Row(
        "pictures need matplotlib, which is not installed.",
        "pip install 'datarax-tfds[pictures]'",
        drawn_without_matplotlib,
        drawn,
    ),
    Row(
        "path must end as a file of a kind that matplotlib writes.",
        "use ...",
        lambda u: drawn(u).save("rows.xyz"),
        lambda u: drawn(u).save(u.tmp / "rows.png"),
    ),
    Row(
        "batch must be a batch of a pipeline, or a list of records.",
        "pass a batch, as next(pipeline.batches())",
        lambda u: show(u.pipeline()),
        lambda u: show(next(u.pipeline().batches())),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_a_message_advises_works(row, user):
    row.follow(user)
