"""Says in a few characters of a saved state which parts a mixture has."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from datarax_tfds.errors import StateMismatchError
from datarax_tfds.state.state import Identity, merged
from sharding.checks import refused

_ASPECTS = ("dataset", "split", "features", "order")
_DIGITS = 4  # of each aspect; with many parts, of all of them together

# More than this would not fit a state of 2 KB beside the weights.
_MAX_NAMES = 300
_MAX_FULL_PARTS = 20

_REMOVED = "-"


def saved_parts(identities: Mapping[str, Identity | None]) -> dict[str, str]:
    """The fields of a state that identify the parts of a mixture: `dataset` has their names,
    `split` the digests of their identities, and `fingerprint` one digest of all.

    Args:
        identities: By name; None for a part that was removed.
    """
    names = sorted(identities)
    full = len(names) <= _MAX_FULL_PARTS
    width = _DIGITS * len(_ASPECTS) if full else _DIGITS
    digests = []
    for name in names:
        identity = identities[name]
        digests.append(_REMOVED * width if identity is None else _digits(identity, full))
    every = "\n".join(f"{name} {identities[name]}" for name in names)
    return {
        "dataset": f"mixture of {_listed(names)}",
        "split": "".join(digests),
        "fingerprint": _digest(every)[:16],
    }


def names_of_saved_parts(
    fields: Mapping[str, Any], identities: Mapping[str, Identity | None], subject: str
) -> list[str]:
    """The names of the parts of a saved mixture, sorted, which must be parts of this one.

    Args:
        fields: The saved state.
        identities: Those of the parts of this mixture; None for a part that was removed.
        subject: The source, for messages.

    Raises:
        StateMismatchError: A part is missing, or is not the saved one.
    """
    saved = str(fields["dataset"]).removeprefix("mixture of ")
    if saved.startswith("#"):
        count, digests = saved[1:].split(" ", 1)
        width = len(digests) // int(count)
        by_digest = {_digest(name)[:width]: name for name in identities}
        listed = [digests[at : at + width] for at in range(0, len(digests), width)]
        names = [by_digest.get(digest) or f"with the digest {digest}" for digest in listed]
    else:
        names = saved.split(", ")
    missing = [name for name in names if name not in identities]
    if missing:
        nothing = ", ".join(f"{name!r}: None" for name in missing)
        raise refused(
            StateMismatchError,
            subject,
            f"the saved mixture has parts that this one has not: {', '.join(missing)}.",
            saved=", ".join(names),
            now=", ".join(identities),
            fix=f"add the parts again; or, to go on without their records, add {nothing} to parts,"
            " and call set_weights after the state is restored",
        )
    width = len(fields["split"]) // len(names)
    full = width > _DIGITS
    for place, name in enumerate(names):
        of_saved = fields["split"][place * width : (place + 1) * width]
        identity = identities[name]
        if identity is None:
            continue
        now = _digits(identity, full)
        if now != of_saved:
            aspects = "dataset, split, features or order"
            if full:
                pairs = zip(_pieces(of_saved), _pieces(now), _ASPECTS, strict=True)
                aspects = ", ".join(aspect for one, other, aspect in pairs if one != other)
            if of_saved.startswith(_REMOVED):
                aspects = "being there: it was removed"
            raise refused(
                StateMismatchError,
                subject,
                f"the part {name!r} of the saved mixture and of this one differ in {aspects}.",
                saved=of_saved,
                now=f"{now} ({identity.dataset}, {identity.split}, seed {identity.seed})",
                fix=f"build the part {name!r} as it was; or give it another name and weight 0, set"
                f" {name!r} to None, and call set_weights after the state is restored",
            )
    return names


def _listed(names: list[str]) -> str:
    text = ", ".join(names)
    if len(text) <= _MAX_NAMES:
        return text
    digests = list(map(_digest, names))
    width = next(n for n in range(_DIGITS, 65) if len({each[:n] for each in digests}) == len(names))
    return f"#{len(names)} {''.join(digest[:width] for digest in digests)}"


def _digits(identity: Identity, full: bool) -> str:
    aspects = (
        (identity.dataset, identity.fingerprint),
        (merged(identity.split), identity.records),
        identity.features,
        (identity.shuffle, identity.seed, identity.order),
    )
    if full:
        return "".join(_digest(repr(aspect))[:_DIGITS] for aspect in aspects)
    return _digest(repr(aspects))[:_DIGITS]


def _pieces(digits: str) -> Iterable[str]:
    return (digits[at : at + _DIGITS] for at in range(0, len(digits), _DIGITS))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
