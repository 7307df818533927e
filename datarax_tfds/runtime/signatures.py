"""The signature of an NNX module, as `help()` and editors show it."""

import inspect


def constructor_signature(cls: type) -> inspect.Signature:
    """The parameters of `__init__`, which NNX hides behind `(*args, **kwargs)`."""
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    return inspect.Signature([each for each in parameters if not each.name.startswith("_")])
