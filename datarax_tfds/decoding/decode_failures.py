"""Writes the errors about records that cannot be decoded: the record, `map_fn` or memory fails."""

import re

from datarax_tfds.decoding.decoder import Decoder
from datarax_tfds.decoding.episodes import UNEQUAL_STEPS
from datarax_tfds.decoding.functions.filter_fn import name_of
from datarax_tfds.decoding.plan import DecodingPlan
from datarax_tfds.errors import RESTORE, RESTORE_OR_SKIP, DataLossError
from datarax_tfds.files.split import Split
from sharding.checks import error_message, refused

# TensorFlow quotes a record that it cannot parse.
_QUOTED = re.compile(r", value: .*", re.DOTALL)
# The name of an operation outside of a graph in TensorFlow's errors.
_OPERATION = re.compile(r"\{\{function_node __wrapped__\S+\}\} | \[Op:\w+\].*")
# In TensorFlow's error if XLA cannot compile a tf.function with jit_compile=True.
_NOT_COMPILED, _UNSUPPORTED = "tf2xla conversion failed", "Detected unsupported operations"


def decode_failure(
    split: Split,
    plan: DecodingPlan,
    decoder: Decoder,
    record: tuple[int, bytes],
    error: Exception,
    *,
    row: int,
) -> Exception:
    """The error to raise for a record (its number and bytes) on which the decoder fails.

    `row` is the row of the record in the batch that is read.
    """
    number, serialized = record

    def message(problem: str, *, fix: str) -> str:
        where = split.files.where(number)
        return error_message(plan.subject, problem, where=where, error=reason(error), fix=fix)

    text, name = _text(error), name_of(plan.config.map_fn)
    if UNEQUAL_STEPS in text:
        problem = f"an episode {UNEQUAL_STEPS} than the episodes that were looked at first."
        fix = "let map_fn turn the steps, a tf.data.Dataset there, into arrays of one shape"
        return ValueError(message(problem, fix=fix))
    if _NOT_COMPILED in text:
        _, unsupported, named = text.partition(_UNSUPPORTED)
        return refused(
            RuntimeError,
            plan.subject,
            f"XLA cannot compile {name} for the features that it is given.",
            error=(unsupported + named).splitlines()[0] if named else reason(error),
            fix=f"leave out jit_compile=True where {name} is, or calls, a tf.function; or,"
            " if it is text that XLA cannot take, leave the text out with exclude_keys",
        )
    mapped = plan.config.map_fn is not None
    in_map_fn = mapped and decoder.error_of(serialized, skipped=False) is None
    if in_map_fn:
        damage = decoder.error_of(serialized, skipped=True)
        if damage is None:
            fix = f"let {name} cope with this record"
            if len(split) > 1:
                fix = f"{fix}, or leave it out with split={split.without(number)!r}"
            return RuntimeError(message(f"{name} fails on a record.", fix=fix))
        error = damage
    problem = "a record cannot be decoded."
    if isinstance(error, decoder.bad_bytes_errors):
        loss = DataLossError(message(problem, fix=RESTORE_OR_SKIP))
        depends_on_seed = in_map_fn and decoder.stochastic
        return loss.of_record(number, reason(error), row if depends_on_seed else None)
    return DataLossError(message(problem, fix=f"free memory if it is short; else {RESTORE}"))


def quotes_the_record(error: Exception) -> bool:
    """Whether an error of TensorFlow has the bytes of the record in its text."""
    return _QUOTED.search(_text(error)) is not None


def reason(error: Exception) -> str:
    """The line of TensorFlow's error that says what went wrong, without what it quotes."""
    text = _OPERATION.sub("", _QUOTED.sub("", _text(error)))
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("[[")][-1]


def _text(error: Exception) -> str:
    """The text of TensorFlow's error, even if Python could not decode it."""
    if isinstance(error, UnicodeDecodeError):
        return error.object.decode(errors="replace")
    return str(error)
