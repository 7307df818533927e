"""The few errors of our own; bad arguments are `ValueError` and `TypeError`."""


class DatasetNotFoundError(FileNotFoundError):
    """The dataset is not on this machine, and may not or cannot be prepared."""


class DataLossError(RuntimeError):
    """The bytes on disk are not what the metadata of the dataset promise."""


class StateMismatchError(ValueError):
    """A saved state is damaged, or belongs to another dataset, split, seed or order."""


class TrustError(ValueError):
    """A dataset asks for more than to be read: for code, or for files elsewhere."""
