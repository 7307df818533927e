"""Compares what a worker would give with what this process gives, before the worker is used."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.service.executor import Executor, Rows

CANARIES = 16


@not_copied
class Admission:
    """What a worker must have in common with this process.

    Args:
        read: Decodes records here, and raises if one is corrupt.
        length: Number of records N.
        stochastic: Whether `read` needs keys.
        facts: What else must be equal, by name, such as the versions of libraries.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray, np.ndarray | None], Rows],
        length: int,
        *,
        stochastic: bool,
        facts: Mapping[str, str],
    ):
        self._read = read
        self._length = length
        self._stochastic = stochastic
        self._facts = facts
        self._lock = threading.Lock()
        self._expected: dict[int, str] | None = None

    def compare(self, executor: Executor, facts: Mapping[str, str] | None) -> Future[str | None]:
        """Compares a worker with this process, once it has decoded some records.

        Args:
            executor: The worker.
            facts: What it says of itself; None if only its rows are compared.

        Returns:
            Why the worker cannot be used; None if it can.
        """
        compared: Future[str | None] = Future()
        differing = None if facts is None else self._differing_fact(facts)
        expected = {} if differing is not None else self._digests()
        if not expected:
            compared.set_result(differing or "no record that could be compared is sound here")
            return compared
        calls = {number: executor.submit(*self._asked(number)) for number in expected}
        # Not those of `self`, which a worker that never answers would keep alive.
        unanswered, lock = iter(range(len(calls) - 1)), threading.Lock()

        def answered(_: Future[Rows]) -> None:
            with lock:
                is_last = next(unanswered, None) is None
            if is_last:
                compared.set_result(_difference(expected, calls))

        for call in calls.values():
            call.add_done_callback(answered)
        return compared

    def _differing_fact(self, facts: Mapping[str, str]) -> str | None:
        for name, ours in self._facts.items():
            if facts.get(name) != ours:
                return f"{name} differs: {ours!r} here, {facts.get(name)!r} there"
        return None

    def _digests(self) -> dict[int, str]:
        """The digests of some records from all over the split, without corrupt ones, by number."""
        with self._lock:
            if self._expected is None:
                self._expected = dict(self._decoded_here())
            return self._expected

    def _decoded_here(self) -> Iterator[tuple[int, str]]:
        most = min(CANARIES, self._length)
        # Integers, because floats are not exact beyond 2**53.
        for number in sorted({n * (self._length - 1) // max(most - 1, 1) for n in range(most)}):
            try:
                yield number, digest_of_rows(self._read(*self._asked(number)))
            except Exception:  # noqa: S112  # the same error is raised to the user when it is read
                continue

    def _asked(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        keys = np.array([[number % 2**31, 1]], np.int32) if self._stochastic else None
        return np.array([number], np.int64), keys


def digest_of_rows(rows: Rows) -> str:
    """Identifies names, dtypes, shapes and bytes of rows."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(rows):
        digest.update(jax.tree_util.keystr(path).encode())
        _add(digest, leaf)
    return digest.hexdigest()[:16]


def _add(digest: Any, value: Any) -> None:
    array = np.asarray(value)
    digest.update(f"{array.dtype}{array.shape}".encode())
    if array.dtype.kind != "O":
        digest.update(np.ascontiguousarray(array).tobytes())
        return
    for element in array.flat:  # texts, or arrays whose shape varies
        if isinstance(element, np.ndarray):
            _add(digest, element)
        else:
            digest.update(f"{len(element)} ".encode() + bytes(element))


def _difference(expected: Mapping[int, str], calls: Mapping[int, Future[Rows]]) -> str | None:
    errors, differ = {}, {}
    for number, call in calls.items():
        try:
            digest = digest_of_rows(call.result())
        except Exception as error:  # of any kind, as it is of the worker
            errors[number] = f"{type(error).__name__}: {error}"
        else:
            if digest != expected[number]:
                differ[number] = f"digest {expected[number]} here, {digest} there"
    for found, what in (differ, "differ"), (errors, "were not decoded there"):
        if found:
            count, first = f"{len(found)} of {len(expected)}", min(found)
            return f"{count} records {what}, first record {first}: {found[first]}"
    return None
