"""What a source reads and how, checked once at construction."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datarax_tfds.order import check_seed
from sharding.messages import explain

Layout = Literal["auto", "replicated", "sharded"]


@dataclass(frozen=True)
class TFDSEagerConfig:
    """What a `TFDSEagerSource` reads.

        TFDSEagerConfig(name="mnist", split="train", shuffle=True, seed=7)

    Args:
        name: Name in TFDS, as `mnist`, `coco/2017` or `mnist:3.0.1`. Required.
        split: Any split that TFDS understands, as `train`, `test[:10%]`, `train+test`. Required.
        data_dir: Where datasets are prepared; TFDS's own default where absent.
        include_keys: The features to load; all where absent. Exclusive with `exclude_keys`.
        exclude_keys: The features to leave out.
        try_gcs: Whether TFDS may look for a prepared copy in its public bucket. Exclusive
            with `data_dir`.
        shuffle: Whether every epoch has a random order of its own.
        seed: Of that order, in `[0, 2**32)`.
        as_supervised: Whether records are `{"image": ..., "label": ...}`, made of the dataset's
            supervised keys, whatever those are called.
        download_and_prepare_kwargs: Passed to TFDS when it prepares the dataset.
        local_files_only: Whether to refuse at once a dataset that is not prepared.
        shuffle_buffer_size: Accepted and without effect: the eager order is a shuffle of the
            whole split.
        layout: How the records lie on the mesh: `replicated` on every device, `sharded` over all
            of them, or `auto`: replicated where that takes up to a tenth of the smallest device.
    """

    name: str | None = None
    split: str | None = None
    data_dir: str | None = None
    include_keys: Set[str] | None = None
    exclude_keys: Set[str] | None = None
    try_gcs: bool = False
    shuffle: bool = False
    seed: int = 42
    as_supervised: bool = False
    download_and_prepare_kwargs: Mapping[str, Any] | None = None
    local_files_only: bool = False
    shuffle_buffer_size: int = 1000
    layout: Layout = "auto"

    def __post_init__(self):
        check_seed(self.seed)
        for field in ("name", "split"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value:
                raise self._refused(field, f"{field} is required.", f"pass {field}='...'")
        if self.include_keys is not None and self.exclude_keys is not None:
            raise self._refused(
                "include_keys", "both key filters are set.", "set include_keys or exclude_keys"
            )
        if self.try_gcs and self.data_dir is not None:
            raise self._refused(
                "try_gcs", "try_gcs and data_dir exclude each other.", "set only one of the two"
            )
        if self.layout not in get_args(Layout):
            raise self._refused(
                "layout", "no such layout.", f"one of {', '.join(get_args(Layout))}"
            )
        for field in ("include_keys", "exclude_keys"):
            keys = getattr(self, field)
            if isinstance(keys, str):
                raise self._refused(field, f"{field} is a set of names.", f"use {{{keys!r}}}")
            if keys is not None:
                object.__setattr__(self, field, frozenset(keys))

    def __hash__(self) -> int:
        # The fields may hold dicts; equal configs still have equal hashes.
        return hash((type(self), self.name, self.split, self.data_dir))

    def _refused(self, field: str, problem: str, fix: str) -> ValueError:
        return ValueError(
            explain(type(self).__name__, problem, fix=fix, **{field: repr(getattr(self, field))})
        )
