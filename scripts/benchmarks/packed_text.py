"""Compares packed text with Grain's packing, and with the tokenizer alone.

    pip install tokenizers
    python scripts/benchmarks/packed_text.py --data-dir data --out runs/benchmark

The tokenizer is a byte-pair encoding, trained on some of the texts. The documents are docstrings of
installed packages. Grain gets them from memory, and encodes them in each epoch. We encode them when
they are counted, and read their tokens from the disk; or, with `keep_tokens=False`, we read the
texts from a TFRecord file and encode them in each epoch, too. The table is also written to
`packed_text.txt`, `packed_text.json` and `packed_text.png` in `--out`.
"""

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import grain
import jax
import numpy as np
import tyro
from benchmarking import Comparison, in_turn, show
from grain.experimental import BestFitPackIterDataset, ConcatThenSplitIterDataset

from datarax_tfds import Cursor, PackedSource, Pipeline, TFDSStreamingConfig, TFDSStreamingSource
from datarax_tfds.packed_source import PackingWay

ROW_TOKENS, BATCH = 2048, 16
RESUMES = 20  # in a run


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    rounds: int = 5
    documents: int = 5_000


def trained(texts: list[str]) -> Any:
    """A byte-pair encoding of 8,000 tokens."""
    import tokenizers  # pyright: ignore  # installed for this benchmark only

    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts[:2000], vocab_size=8000, show_progress=False)
    return tokenizer


def stream(options: Options) -> TFDSStreamingSource:
    name = benchmark_data.docstrings(options.data_dir)
    split = f"train[:{options.documents}]"
    config = TFDSStreamingConfig(name=name, split=split, data_dir=str(options.data_dir))
    return TFDSStreamingSource(config)


def epoch_of_ours(make: Callable[[], PackedSource], *, kept: bool) -> Callable[[], None]:
    """An epoch of a new source, which finds nothing of earlier ones but what is on the disk: the
    counts of tokens and, if they are `kept`, the tokens.
    """

    def run() -> None:
        source = make()
        assert source.kept_tokens == (source.tokens if kept else 0)
        for batch in Pipeline(source=source, batch_size=BATCH, remainder="pad"):
            jax.block_until_ready(batch)

    return run


def epoch_of_grain(texts: list[str], encode: Any, packing: str) -> Callable[[], None]:
    """Grain's best fit takes no document that is longer than a row: their ends are left out."""
    documents = grain.MapDataset.source(texts).shuffle(seed=0)

    def tokens(text: str) -> dict[str, np.ndarray]:
        ids = np.array(encode(text).ids, np.int32)
        return {"tokens": ids[:ROW_TOKENS] if packing == "best_fit" else ids}

    def run() -> None:
        encoded = documents.map(tokens).to_iter_dataset()
        length = {"tokens": ROW_TOKENS}
        if packing == "best_fit":
            rows = BestFitPackIterDataset(encoded, length_struct=length, num_packing_bins=64)
        else:
            rows = ConcatThenSplitIterDataset(encoded, length_struct=length)
        for batch in rows.batch(BATCH):
            jax.block_until_ready(jax.device_put(batch))

    return run


def main() -> None:
    options = tyro.cli(Options)
    source = stream(options)
    texts = [record["text"].decode() for record in source]
    source.seek(Cursor())
    tokenizer = trained(texts)
    fields = {"encode": tokenizer, "length": ROW_TOKENS, "encode_name": "trained here"}
    counts = options.data_dir / benchmark_data.DOCSTRINGS / "1.0.0" / ".token_counts"
    shutil.rmtree(counts, ignore_errors=True)  # of another tokenizer, or without tokens

    def packed_by(packing: PackingWay, **more: Any) -> PackedSource:
        return PackedSource(source, packing=packing, shuffle=True, **fields, **more)

    sources: dict[PackingWay, PackedSource] = {
        "best_fit": packed_by("best_fit"),
        "concat": packed_by("concat"),
    }
    on_disk = sum(file.stat().st_size for file in counts.rglob("tokens*"))

    def alone() -> None:
        for start in range(0, len(texts), 256):
            for encoding in tokenizer.encode_batch(texts[start : start + 256]):
                np.array(encoding.ids, np.int32)

    def counted(keep_tokens: bool) -> None:
        shutil.rmtree(counts)
        packed_by("concat", keep_tokens=keep_tokens)

    def resumed(row: int) -> Callable[[], None]:
        packed = sources["concat"]

        def run() -> None:
            for _ in range(RESUMES):
                packed.seek(Cursor(0, row))
                jax.block_until_ready(packed.get_batch(1))

        return run

    def compared(
        name: str, ours: Callable[[], None], peer: Callable[[], None], target: float, units: int = 1
    ) -> Comparison:
        return in_turn(name, ours, peer, target=target, rounds=options.rounds, units=units)

    def comparisons() -> Iterator[Comparison]:
        for packing in sources:
            kept = epoch_of_ours(functools.partial(packed_by, packing), kept=True)
            again = functools.partial(packed_by, packing, keep_tokens=False)
            theirs = epoch_of_grain(texts, tokenizer.encode, packing)
            yield compared(f"{packing}, tokens on disk, against Grain", kept, theirs, 3)
            yield compared(f"{packing}, tokens on disk, against the tokenizer", kept, alone, 0.8)
            encodes = epoch_of_ours(again, kept=False)
            yield compared(f"{packing}, keep_tokens=False, against Grain", encodes, theirs, 1)
        cached = packed_by("concat", keep_tokens=False, cacheable=True)
        yield compared(
            "a later epoch in memory (cacheable=True), concat, against Grain",
            epoch_of_ours(cached.clone, kept=False),
            epoch_of_grain(texts, tokenizer.encode, "concat"),
            3,
        )
        for keep, says in ((False, "keep_tokens=False"), (True, "and writing tokens")):
            ours = functools.partial(counted, keep)
            yield compared(f"counting, {says}, against the tokenizer", ours, alone, 0.8)
        last = len(sources["concat"]) - 1
        yield compared(
            "resuming at the last row, against the first", resumed(last), resumed(0), 0.9, RESUMES
        )

    notes = [
        f"{packing}: {len(packed):,} rows of {ROW_TOKENS:,}, {packed.padding:.3%} padding"
        for packing, packed in sources.items()
    ]
    tokens = sources["concat"].tokens
    notes.append(f"{len(texts):,} documents, {tokens:,} tokens, which take {on_disk:,} bytes")
    show("Packed text: an epoch", comparisons(), notes, options.out / "packed_text")


if __name__ == "__main__":
    main()
