"""Defines the source of rows of tokens, which are packed from the texts of another source."""

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, final

from flax import nnx

from datarax_tfds.config.config import TFDSStreamingConfig
from datarax_tfds.config.fields import Field, flag
from datarax_tfds.counts.count_files import CountFiles
from datarax_tfds.counts.counting import Counting, sampled
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.derived_source import DerivedSource
from datarax_tfds.files.kept_index import versions_of
from datarax_tfds.files.split import Split
from datarax_tfds.order.block_order import BlockOrder
from datarax_tfds.order.order import Order
from datarax_tfds.order.record_order import RecordOrder
from datarax_tfds.records.eager import EagerRecords
from datarax_tfds.records.memory import EAGER_MEMORY_FRACTION, free_host_bytes
from datarax_tfds.records.streaming import StreamingRecords
from datarax_tfds.runtime.threads import bounded
from datarax_tfds.tfds_source import TFDSStreamingSource
from datarax_tfds.tokens.arguments import PackingWay, reading_of, require_arguments
from datarax_tfds.tokens.counted_tokens import CountedTokens
from datarax_tfds.tokens.documents import DecodeErrors, Documents
from datarax_tfds.tokens.encoder import Encoder, fingerprint, require_equal
from datarax_tfds.tokens.kept_tokens import KeptTokens
from datarax_tfds.tokens.packed_reader import PackedReader
from datarax_tfds.tokens.rows import VERSION, WINDOW, BestFitRows, ConcatRows
from datarax_tfds.tokens.served_tokens import served_tokens
from datarax_tfds.tokens.token_counts import TokenCounts
from datarax_tfds.tokens.token_files import TokenFiles
from sharding.checks import refused
from sharding.hosts.agreement import extend_deadlines

_log = logging.getLogger(__name__)

_SAMPLE_BYTES, _SAMPLE_DOCUMENTS = 1 << 20, 32  # on which a tokenizer is tried
_MIN_WINDOW = 256  # documents that are packed together, if they are read by blocks


@dataclass(frozen=True)
class PackedConfig:
    """What pipelines and users look up in `source.config` of a packed source."""

    shuffle: bool
    seed: int
    cacheable: bool
    mapped_by: None = None
    host_keys: None = None
    batch_stats_fn: None = None
    precomputed_stats: None = None


@final
class PackedSource(DerivedSource[EagerRecords | StreamingRecords]):
    """Delivers rows of tokens of one length, packed from the texts of a source.

        text = TFDSStreamingSource(TFDSStreamingConfig(name="wiki40b/en", split="train"))
        source = PackedSource(text, encode=tokenizer, length=2048, shuffle=True)
        for batch in Pipeline(source=source, batch_size=64):
            train_step(batch)    # {"tokens": int32[64, 2048], "segment_ids": ..., "positions": ...}

    It is used like any other source. Its records are the rows. Batch k is a pure function of the
    arguments and k, on any number of hosts and after any resume, and each token of each document
    comes exactly once in an epoch.

    At the first construction, all documents are encoded once: by all processes together, in all
    their threads. Their tokens and the counts of these are kept on the disk, so that later
    constructions find them. From then on, which tokens a row takes is arithmetic: a row reads only
    these, and a resume costs the same anywhere.

    The columns are int32 `[batch_size, length]`. `segment_ids` counts the documents of a row from
    1, and is 0 for padding. `positions` counts the tokens from 0 in each segment, so that it is
    below `length`: a document that was cut begins at 0 again in the next row.

    Args:
        source: The stream of which each record has a text. Its order and its cursor are not used.
        feature: The path of the text in a record, as `text` or `article/body`.
        encode: The tokenizer: a function from a text to its token ids, as a list or an array of
            integers; or an object with a method `encode_batch` for a list of texts, which is then
            used. The ids may also be the attribute `ids` of what is returned. It is called by
            several threads at once, and must return the same ids for the same text. Workers of the
            `service` of `source` call it, too, and find it by its import path.
        length: The tokens of a row.
        packing: `concat` cuts all documents, one after the other in stored order, into rows:
            nothing is padded but the end of the last row. `best_fit` cuts only documents that are
            longer than a row, and puts the others into rows that have room.
        eos_id: A token that is added at the end of every document.
        pad_id: The token of padding.
        shuffle: Whether the rows come in random order, which differs from epoch to epoch; by
            default, as the records of `source` do.
        seed: The seed of the order, in `[0, 2**32)`; by default, that of `source`.
        encode_name: Identifies the tokenizer, as `"llama-3, 2024-04"`. By default, it is identified
            by what it makes of some of the documents. Saved states and counts of tokens are valid
            for one tokenizer only.
        errors: What happens to bytes that are not UTF-8: `strict` raises an error when tokens are
            counted, `replace` and `ignore` are those of `bytes.decode`.
        keep_tokens: Whether tokens are kept on the disk when they are counted, 2 or 4 bytes each,
            and are read from there. A document whose tokens are not on the disk of a process is
            encoded whenever a row needs it.
        cacheable: Whether tokens that are not on the disk are kept in memory, so that later epochs
            need not encode these documents again: those of the first documents that are read, up
            to a tenth of the free memory.
        eager: Whether all rows are made at the construction, and kept on the devices: for small
            sets, as those of an evaluation. `get_batch_at` can then be compiled, and `scan` works.
        name: The name in messages, `PackedSource(dataset:split)` by default.

    Attributes:
        index: The next position to hand out, as in other sources.
        epoch: The epoch of that position.
        length: The number of rows of an epoch.

    Raises:
        TypeError: `source` is not a `TFDSStreamingSource`, or `encode` is not a tokenizer.
        ValueError: The feature is not a text, a text is not UTF-8, there are no tokens, or `encode`
            gives other tokens when it is called again, or has no import path for workers.
        RuntimeError: `encode` fails on a text.
    """

    def __init__(
        self,
        source: TFDSStreamingSource,
        feature: str = "text",
        *,
        encode: Any,
        length: int,
        packing: PackingWay = "concat",
        eos_id: int | None = None,
        pad_id: int = 0,
        shuffle: bool | None = None,
        seed: int | None = None,
        encode_name: str | None = None,
        errors: DecodeErrors = "strict",
        keep_tokens: bool = True,
        cacheable: bool = False,
        eager: bool = False,
        name: str | None = None,
    ):
        stream = self._derive(source, name)
        config, split = source.config, stream.split
        require_arguments(self.name, length, packing, eos_id, pad_id, errors, encode_name)
        flags = {"keep_tokens": keep_tokens, "cacheable": cacheable, "eager": eager}
        for option, value in flags.items():
            flag(Field(self.name, option, value))
        ordering = self._ordering_of(source, shuffle, seed)
        self.config = nnx.static(PackedConfig(cacheable=cacheable, **ordering))
        reading = reading_of(config, split, feature, self.name)
        reader = RecordReader(split, reading, self.name)
        self._reads(reader)
        self._require_repeatable(reader, "tokens")
        encoder = Encoder(encode, eos_id, self.name)
        # Of 4 bytes each. Rows would take three times as much.
        room = int(EAGER_MEMORY_FRACTION * free_host_bytes()) // 4 if cacheable else None
        documents = Documents(reader, feature, errors, encoder, self.name, cached_tokens=room)
        self._documents = nnx.static(documents)
        served = served_tokens(
            documents, reading, feature=feature, errors=errors, encode=encode, eos_id=eos_id
        )
        sample, tokens = self._tried(documents)
        tokenizer = encode_name or fingerprint(tokens)
        described = f"{feature}, errors {errors}, eos {eos_id is not None}, encode {tokenizer}"
        files = CountFiles.of_reader(reader, described)
        token_files = None
        if keep_tokens and self._repeats_in_other_runs(config):
            token_files = TokenFiles(
                files.places, self._made_of(split, files.key), eos_id, self.name
            )
        counts = self._counted(documents, files, token_files)
        kept = None
        if token_files is not None:
            kept = KeptTokens(token_files, counts, self.name)
        self._kept = nnx.static(kept)
        window = self._read_by_blocks(reader, source)
        if packing == "concat":
            way, rows = packing, ConcatRows(counts, length)
        else:
            way, rows = f"{packing} of {window}", BestFitRows(counts, length, window)
        self.length = rows.count
        self._tokens = counts.total
        self._row_tokens = length
        if self._blocks is not None:
            per_document = rows.count / len(documents)
            self._blocks = tuple(max(1, round(each * per_document)) for each in self._blocks)
        packed = PackedReader(
            documents,
            counts,
            kept,
            served,
            rows,
            length=length,
            pad_id=pad_id,
            kept_in=str(files),
            subject=self.name,
        )
        packed.require_same(sample, tokens)
        self.sampler = self._sampler_of(self.config.shuffle, self.config.seed)
        features = (
            f"{length} tokens of {feature}, {way}, {VERSION}, encode {tokenizer},"
            f" eos {eos_id}, pad {pad_id}, errors {errors}"
        )
        counted = hashlib.sha256(counts.counts.tobytes()).hexdigest()[:16]
        self._identify(reader, features, token_counts=counted)
        files.remove_parts(len(documents))
        self._start(self._opened(packed, config.prefetch_buffer, eager))

    def _opened(
        self, packed: PackedReader, prefetch_buffer: int, eager: bool
    ) -> EagerRecords | StreamingRecords:
        if eager:
            return EagerRecords(packed, batch=self.sharding, layout="auto")
        return StreamingRecords(
            packed,
            batch=self.sharding,
            prefetch_buffer=prefetch_buffer,
            cacheable=False,  # the documents keep their tokens
        )

    def _tried(self, documents: Documents) -> tuple[Any, list[Any]]:
        """A sample of the documents, and their tokens, which must be the same when asked again."""
        record_bytes = documents.reader.split.record_bytes
        most = max(1, min(_SAMPLE_DOCUMENTS, int(_SAMPLE_BYTES / record_bytes)))
        sample = sampled(len(documents), most)
        with extend_deadlines(f"trying the tokenizer of {self.name}"):
            tokens = documents.encoded(sample)
            again = documents.encoded(sample)
        require_equal(tokens, again, lambda row: documents.where(int(sample[row])), self.name)
        return sample, tokens

    def _repeats_in_other_runs(self, config: TFDSStreamingConfig) -> bool:
        if config.allow_stateful_map_fn:
            says = "%s: tokens are not kept on the disk, because of allow_stateful_map_fn"
            _log.info(says, self.name)
        return not config.allow_stateful_map_fn

    def _made_of(self, split: Split, key: str) -> str:
        """Identifies the texts and the tokenizer; the texts may change when a file is replaced."""
        doing = "looking at the versions of the files"
        versions = bounded(lambda: versions_of(split.files.paths), self.name, lambda: doing)
        return "\n".join([key, *versions])

    def _counted(
        self, documents: Documents, files: CountFiles, token_files: TokenFiles | None
    ) -> TokenCounts:
        """The tokens of each document, which the processes count together."""
        counting = Counting(CountedTokens(documents, token_files), files, self.name)
        counts = TokenCounts(self._counted_together(counting, documents=len(documents)))
        if not counts.total:
            raise refused(
                ValueError,
                self.name,
                "the documents have no tokens.",
                documents=len(documents),
                fix="pass another feature, or an encode that returns at least one token",
            )
        return counts

    def _read_by_blocks(self, reader: RecordReader, source: TFDSStreamingSource) -> int:
        """Reads blocks of records if the source does; returns how many documents to pack together.

        Rows that are near each other then come near each other, as the records of the source do.
        """
        order = source.ordered(0)
        self._blocks: tuple[int, ...] | None = None
        if not isinstance(order, BlockOrder):
            return WINDOW
        # A row may take documents of two blocks, and those of a window.
        reader.read_blocks(order.block_size, 2 * order.window)
        window = -(-_MIN_WINDOW // order.block_size) * order.block_size
        self._blocks = max(order.block_size, window), max(order.window, window)
        return window

    def ordered(self, seed: int | None) -> RecordOrder:
        """Returns the order of a seed; for None, the stored order."""
        if seed is None or self._blocks is None:
            return Order(self.length, seed)
        block_size, window = self._blocks
        return BlockOrder(self.length, seed, min(block_size, self.length), window)

    @property
    def tokens(self) -> int:
        """The number of tokens of an epoch, without padding."""
        return self._tokens

    @property
    def kept_tokens(self) -> int:
        """How many of these are kept on the disk of this process, and need not be made again."""
        return 0 if self._kept is None else self._kept.total

    @property
    def padding(self) -> float:
        """The share of padding in all rows of an epoch, in `[0, 1)`."""
        return 1 - self._tokens / (self.length * self._row_tokens)

    def supports_indexed_access(self) -> bool:
        return isinstance(self._records, EagerRecords)

    def reset_cache(self) -> None:
        """Frees the memory of the tokens that `cacheable` keeps; does nothing if it is not set."""
        if self.config.cacheable:
            self._documents.forget()
