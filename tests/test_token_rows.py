"""Rows of tokens hold every token of every document once, as simple loops say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import best_fitted

from datarax_tfds.tokens.rows import WINDOW, BestFitRows, ConcatRows
from datarax_tfds.tokens.token_counts import TokenCounts

SIZES = st.lists(st.integers(0, 40) | st.just(0), min_size=1, max_size=60).filter(any)
LENGTHS = st.integers(1, 17)


def counts_of(sizes):
    return TokenCounts(np.array(sizes, np.uint32))


def listed(pieces, rows):
    """The (document, start, count) pieces of each row."""
    found = [[] for _ in range(rows)]
    columns = (pieces.row, pieces.document, pieces.start, pieces.count)
    for row, *piece in zip(*(column.tolist() for column in columns), strict=True):
        found[row].append(tuple(piece))
    return found


@given(SIZES, LENGTHS, st.randoms(use_true_random=False))
def test_concatenated_rows_are_slices_of_all_tokens(sizes, length, chance):
    rows = ConcatRows(counts_of(sizes), length)
    stream = [(document, at) for document, size in enumerate(sizes) for at in range(size)]
    expected = [stream[start : start + length] for start in range(0, len(stream), length)]
    assert rows.count == len(expected)
    numbers = list(range(rows.count))
    chance.shuffle(numbers)
    found = listed(rows.pieces(np.array(numbers)), len(numbers))
    for number, pieces in zip(numbers, found, strict=True):
        tokens = [(n, at) for n, start, size in pieces for at in range(start, start + size)]
        assert tokens == expected[number]
        assert all(size for *_, size in pieces)


@pytest.mark.parametrize("sizes", [
    [0] * 700 + [5],  # blocks of documents without tokens, at either end
    [5] + [0] * 700,
    [3] * 256 + [0] * 256 + [2] * 3,
    [2000],
    [1],
])  # fmt: skip
def test_concatenated_rows_of_odd_documents(sizes):
    counts = counts_of(sizes)
    rows = ConcatRows(counts, 7)
    every = rows.pieces(np.arange(rows.count))
    assert int(every.count.sum()) == counts.total == sum(sizes)
    expected = np.repeat(np.arange(len(sizes)), sizes)
    assert np.array_equal(np.repeat(every.document, every.count), expected)
    assert np.array_equal(counts.located(np.arange(counts.total))[0], expected)


@given(SIZES, LENGTHS, st.integers(1, 70))
def test_best_fit_is_that_of_a_simple_loop(sizes, length, window):
    rows = BestFitRows(counts_of(sizes), length, window)
    expected = []
    for first in range(0, len(sizes), window):
        for row in best_fitted(sizes[first : first + window], length):
            expected.append([(first + number, *piece) for number, *piece in row])
    assert rows.count == len(expected)
    assert listed(rows.pieces(np.arange(rows.count)), rows.count) == expected
    some = np.arange(rows.count)[::-2]
    assert listed(rows.pieces(some), len(some)) == [expected[number] for number in some]


# Mean and spread of the logarithm of the tokens of a document.
@pytest.mark.parametrize(("mean", "spread"), [(5.5, 1.2), (3, 0.5), (6.9, 0.4), (7.2, 1.0)])
def test_best_fit_pads_no_more_than_grain(mean, spread):
    import grain
    from grain.experimental import BestFitPackIterDataset

    length = 1024
    chance = np.random.default_rng(5)
    sizes = np.clip(chance.lognormal(mean, spread, 3000).astype(int), 1, length)
    dataset = grain.MapDataset.source([{"tokens": np.ones(size, np.int32)} for size in sizes])
    packed = BestFitPackIterDataset(
        dataset.to_iter_dataset(), length_struct={"tokens": length}, num_packing_bins=64
    )
    theirs = sum(1 for _ in packed)
    ours = BestFitRows(counts_of(sizes), length).count
    padding = lambda rows: 1 - sizes.sum() / (rows * length)
    assert padding(ours) <= padding(theirs) + 0.01


def test_windows_are_packed_alone():
    """What a later window has does not change the rows of the earlier ones."""
    sizes = np.random.default_rng(3).integers(1, 900, 2 * WINDOW)
    one, both = (BestFitRows(counts_of(part), 512) for part in (sizes[:WINDOW], sizes))
    rows = np.arange(one.count)
    assert listed(one.pieces(rows), one.count) == listed(both.pieces(rows), one.count)
