"""What follows the batch in hand, begun before it is asked for."""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from datarax_tfds.selection import AtCursor


class Cancellable(Protocol):
    """Work under way, in other threads."""

    def cancel(self) -> None: ...


Work = TypeVar("Work", bound=Cancellable, covariant=True)


class Begin(Protocol[Work]):
    """Begins to read batches: one that is awaited at once, or some that will be."""

    def __call__(self, batches: Sequence[AtCursor], /, *, awaited: bool) -> Sequence[Work]: ...


class ReadAhead(Generic[Work]):
    """Begins the batches that follow while the one in hand is in use, also over an epoch's end.

    They are begun in groups, which cost less than their batches one by one. What is under way is
    found by what it is. So nothing has to be told of a jump: after `set_state`, or with another
    batch size, the next batch is begun when it is asked for, and others only once the one after it
    has been, too. Two streams are kept, as of a source and a clone of it.

    For one thread: that of the caller.

    Args:
        begin: Begins to read batches.
        depth: How many groups to be ahead of that of the batch in hand.
        together: How many batches like this one make a group.
    """

    def __init__(
        self,
        begin: Begin[Work],
        depth: int,
        together: Callable[[AtCursor], int],
    ):
        self._begin = begin
        self._depth = depth
        self._together = together
        # Work on a batch, and the batch that follows its group.
        self._under_way: OrderedDict[AtCursor, tuple[Work, AtCursor]] = OrderedDict()
        self._expected: deque[AtCursor] = deque(maxlen=2)  # what would follow the last batches

    def __call__(self, batch: AtCursor) -> Work:
        """The work on a batch, which others will not get again."""
        follows = batch in self._expected
        self._expected.append(batch.following)
        begun = self._under_way.pop(batch, None)
        work, end = begun or (self._begin([batch], awaited=True)[0], batch.following)
        if follows and self._depth:
            together = self._together(batch)
            for _ in range(self._depth):
                if end not in self._under_way:
                    self._begin_group(end, together)
                _, end = self._under_way[end]
            while len(self._under_way) > 2 * (self._depth + 1) * together:
                _, (unwanted, _) = self._under_way.popitem(last=False)
                unwanted.cancel()
        return work

    def clear(self) -> None:
        """Gives up what is under way."""
        for unwanted, _ in self._under_way.values():
            unwanted.cancel()
        self._under_way.clear()

    def _begin_group(self, batch: AtCursor, together: int) -> None:
        group = []
        while len(group) < together and batch not in self._under_way:
            group.append(batch)
            batch = batch.following
        # The first of a stream is awaited soon.
        begun = self._begin(group, awaited=not self._under_way)
        for member, work in zip(group, begun, strict=True):
            self._under_way[member] = work, batch
