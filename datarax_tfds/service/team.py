"""Knows which workers decode for a reader, and which of them may take another call."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from datarax_tfds.runtime.copying import not_copied
from datarax_tfds.service.executor import Executor

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Member:
    """A worker of a team.

    Args:
        name: Names it in messages.
        executor: Decodes.
        under_way: How many calls it has not answered.
    """

    name: str
    executor: Executor
    under_way: int = 0

    @property
    def is_free(self) -> bool:
        return self.under_way < self.executor.capacity


@not_copied
class Team:
    """The workers that decode for one reader, and the threads of this process that do so.

    A thread of this process that is free takes a call before a worker does. So a worker makes
    nothing slower, and a worker that does not answer gets no more calls than its capacity.

    It logs once that the last worker is gone, and once that there are workers again.

    Args:
        subject: The source that reads, for messages.
        threads: How many calls are decoded here at once.
    """

    def __init__(self, subject: str, threads: int):
        self._subject = subject
        self._threads = self._free_here = threads
        self._members: dict[str, Member] = {}
        self._changed = threading.Condition()
        self._had_workers = False

    @property
    def parallel(self) -> int:
        """How many calls keep the threads and the workers busy.

        One call of each worker is not counted, since it only waits for the others: a batch that is
        cut into fewer calls has larger ones, and each call costs a worker the same beside its
        records.
        """
        capacities = (each.executor.capacity for each in self.members)
        return self._threads + sum(max(1, capacity - 1) for capacity in capacities)

    @property
    def members(self) -> list[Member]:
        with self._changed:
            return list(self._members.values())

    def add(self, name: str, executor: Executor) -> None:
        """Adds a worker that was admitted."""
        with self._changed:
            alone = not self._members
            self._members[name] = Member(name, executor)
            self._changed.notify_all()
        if alone and self._had_workers:
            _log.warning("%s: workers decode again, the first is %s", self._subject, name)
        elif alone:
            _log.info("%s: the first worker that decodes is %s", self._subject, name)
        self._had_workers = True

    def remove(self, name: str, reason: str) -> None:
        """Removes a worker, if it is there."""
        with self._changed:
            removed = self._members.pop(name, None)
            alone = not self._members
        if removed is not None and alone:
            says = "%s: no worker is left, so this process decodes alone. The last was %s: %s"
            _log.warning(says, self._subject, name, reason)

    def take(self) -> Member | None:
        """Waits until a thread of this process or a worker is free, and reserves it.

        The caller must `release` it.

        Returns:
            The worker; None for a thread of this process.
        """
        with self._changed:
            while not self._free_here:
                if (member := self._free_member(None)) is not None:
                    return member
                self._changed.wait()
            self._free_here -= 1
            return None

    def take_other(self, than: Member) -> Member | None:
        """Reserves another worker, if one is free."""
        with self._changed:
            return self._free_member(than)

    @contextmanager
    def here(self) -> Iterator[None]:
        """Waits until a thread is free, and reserves it for the time of the context."""
        with self._changed:
            self._changed.wait_for(lambda: self._free_here)
            self._free_here -= 1
        try:
            yield
        finally:
            self.release(None)

    def release(self, member: Member | None) -> None:
        """Gives back what `take` returned, once its call is over."""
        with self._changed:
            if member is None:
                self._free_here += 1
            else:
                member.under_way -= 1
            self._changed.notify_all()

    def _free_member(self, but: Member | None) -> Member | None:
        """Reserves the free worker that has the fewest calls under way for its capacity."""
        free = [each for each in self._members.values() if each.is_free and each is not but]
        member = min(free, key=lambda each: each.under_way / each.executor.capacity, default=None)
        if member is not None:
            member.under_way += 1
        return member
