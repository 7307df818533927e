"""Decodes a record in parts: numbers, images and text, and what TFDS decodes from the whole record.

The first three are quicker ways for TFDS's own classes; tests compare each of them with TFDS. TFDS
itself decodes users' classes and sequences.
"""

from collections.abc import Mapping
from typing import Any

from datarax_tfds.decoding.plan import DecodingPlan
from datarax_tfds.decoding.tfds_decoding import (
    decode_by_tfds,
    repeatable_fingerprint,
    traced_spec,
    values_of_tfds,
)
from datarax_tfds.decoding.tfds_features import by_path, column_kind, dict_classes, only


class FeatureColumns:
    """The features of a plan. Their leaves are named by their paths, as `objects/label`.

    Attributes:
        others: The features that TFDS decodes from the whole record.
        plain_spec: Type specs of the numbers.
        encoded_spec: Type specs of what `decode_record` takes: the record and its encoded bytes.
        record_spec: Type specs of what `decode_record` returns.
        fingerprint: Identifies the users' code that decodes features; None without such code, or if
            the code may give other values in another run.

    Raises:
        ValueError: TFDS cannot decode a feature, or a resume would not repeat its decoding.
    """

    def __init__(self, tf: Any, plan: DecodingPlan):
        self._tf = tf
        self._plan = plan
        self.others = [key for key in plan.keys if not self._are_columns(key)]
        self._columns = only(plan.features, set(plan.keys) - set(self.others))
        found = list(by_path(self._columns))
        self._plain = {path: leaf for path, leaf in found if column_kind(leaf) == "numbers"}
        self._encoded = {path: leaf for path, leaf in found if column_kind(leaf) == "bytes"}

        text = tf.TensorSpec([], tf.string)
        self.plain_spec = {path: leaf.get_tensor_spec() for path, leaf in self._plain.items()}
        self.encoded_spec = (text, dict.fromkeys(self._encoded, text))
        self.record_spec = {path: leaf.get_tensor_spec() for path, leaf in self._encoded.items()}
        if self.others:
            self.record_spec |= traced_spec(tf, plan, self.others)
        self.fingerprint: str | None = None
        if plan.user_keys and not plan.config.allow_stateful_map_fn:
            self.fingerprint = repeatable_fingerprint(tf, plan, plan.user_keys)

    def _are_columns(self, key: str) -> bool:
        """Whether TFDS, too, decodes a feature leaf by leaf, and all its leaves are columns."""
        features = self._plan.features
        if type(features) not in dict_classes() or key in self._plan.decoders:
            return False
        return all(column_kind(leaf) for _, leaf in by_path({key: features[key]}))

    def parse(self, serialized: Any) -> tuple[dict[str, Any], Any]:
        """Parses records `[n]`: their numbers `[n, ...]`, and what `decode_record` takes `[n]`."""
        spec = self._columns.tf_example_spec
        parsed = self._tf.io.parse_example(serialized, spec) if spec else {}
        plain = {
            # TFRecord keeps integers and bool as int64, floats as float32.
            path: leaf.decode_batch_example(
                self._tf.cast(parsed[path], leaf.get_serialized_info().tf_dtype)
            )
            for path, leaf in self._plain.items()
        }
        return plain, (serialized, {path: parsed[path] for path in self._encoded})

    def decode_record(self, serialized: Any, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """Decodes the encoded bytes of one record, and its features that are not columns."""
        decoded = {path: leaf.decode_example(encoded[path]) for path, leaf in self._encoded.items()}
        if self.others:
            decoded |= decode_by_tfds(self._tf, self._plan, serialized, self.others)
        return decoded

    def decode_columns(self, serialized: bytes) -> dict[str, Any]:
        """Decodes the columns of one record."""
        plain, (_, encoded) = self.parse(self._tf.constant([serialized]))
        return {path: column[0] for path, column in plain.items()} | {
            path: leaf.decode_example(encoded[path][0]) for path, leaf in self._encoded.items()
        }

    def nest(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """Nests values by path as a record is nested, under the names that users see."""

        def of_feature(feature: Any, path: str) -> Any:
            if path in leaves:
                return leaves[path]
            return {name: of_feature(part, f"{path}/{name}") for name, part in feature.items()}

        def of_name(part: Any) -> Any:
            if isinstance(part, str):
                return leaves[part] if part in leaves else of_feature(self._columns[part], part)
            if isinstance(part, tuple):
                return tuple(map(of_name, part))
            return {name: of_name(inner) for name, inner in part.items()}

        return of_name(self._plan.names)

    def read_through(self, serialized: bytes) -> None:
        """Decodes one record, with all steps of its episodes, and raises if that fails."""
        self._read(self.decode_columns(serialized))
        self._read(decode_by_tfds(self._tf, self._plan, serialized, self.others))

    def read_skipped(self, serialized: bytes) -> None:
        """As `read_through`, for the features that `SkipDecoding` leaves to a `map_fn`."""
        self._read(
            values_of_tfds(self._plan, serialized, self._plan.skipped_keys, with_decoders=False)
        )

    def _read(self, decoded: Any) -> None:
        for value in self._tf.nest.flatten(decoded):
            if isinstance(value, self._tf.data.Dataset):
                for element in value:
                    self._read(element)
