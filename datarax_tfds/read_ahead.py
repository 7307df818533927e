"""What follows the batch in hand, begun before it is asked for."""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from datarax_tfds.selection import AtCursor


class Cancellable(Protocol):
    """Work under way, in other threads."""

    def cancel(self) -> None: ...


Work = TypeVar("Work", bound=Cancellable)


class ReadAhead(Generic[Work]):
    """Begins the batches that follow while the one in hand is in use, also over an epoch's end.

    What is under way is found by what it is. So nothing has to be told of a jump: after
    `set_state`, or with another batch size, the next batch is begun when it is asked for, and
    others only once the one after it has been, too. Two streams are kept, as of a source and a
    clone of it: twice `depth` batches at most.

    For one thread: that of the caller.

    Args:
        begin: Begins to read a batch.
        depth: How many batches to be ahead.
    """

    def __init__(self, begin: Callable[[AtCursor], Work], depth: int):
        self._begin = begin
        self._depth = depth
        self._under_way: OrderedDict[AtCursor, Work] = OrderedDict()
        self._expected: deque[AtCursor] = deque(maxlen=2)  # what would follow the last batches

    def __call__(self, batch: AtCursor) -> Work:
        """The work on a batch, which others will not get again."""
        follows = batch in self._expected
        self._expected.append(batch.following)
        work = self._under_way.pop(batch, None) or self._begin(batch)
        for _ in range(self._depth if follows else 0):
            batch = batch.following
            if batch not in self._under_way:
                self._under_way[batch] = self._begin(batch)
        while len(self._under_way) > 2 * self._depth:
            _, unwanted = self._under_way.popitem(last=False)
            unwanted.cancel()
        return work

    def clear(self) -> None:
        """Gives up what is under way."""
        for unwanted in self._under_way.values():
            unwanted.cancel()
        self._under_way.clear()
