"""What a source or a pipeline must deliver, computed without it."""

import numpy as np
import tfds_datasets

from datarax_tfds.order.order import Order
from datarax_tfds.order.sampler import RecordOrder

N = tfds_datasets.TINY_TRAIN


def numbers_of_epochs(order: RecordOrder, epochs: int) -> np.ndarray:
    """The record numbers of the first epochs in an order."""
    every = [order.host_numbers(epoch, 0, order.length) for epoch in range(epochs)]
    return np.concatenate(every)


def expected_ids(epochs: int = 1) -> list[int]:
    """The ids of the records of `tiny` in the first epochs of seed 5."""
    return numbers_of_epochs(Order(N, 5), epochs).tolist()
