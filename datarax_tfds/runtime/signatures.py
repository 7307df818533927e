"""The arguments of an NNX module, as `help()`, editors and errors name them."""

import functools
import inspect
from collections.abc import Iterable
from typing import Any

from sharding.checks import require_arguments


def set_signature(cls: type, fields: Iterable[str]) -> None:
    """Shows the parameters of `__init__`, which NNX hides, and refuses all other keywords.

    Args:
        cls: The class of the module.
        fields: The fields of the config, which may be passed by mistake.
    """
    made = cls.__init__
    _, *parameters = inspect.signature(made).parameters.values()
    public = [each for each in parameters if not each.name.startswith("_")]
    named = {each.name for each in parameters}
    elsewhere = dict.fromkeys(fields, "the config of the source")

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        unknown = kwargs.keys() - named
        require_arguments(cls.__name__, unknown, [each.name for each in public], elsewhere)
        made(self, *args, **kwargs)

    cls.__init__ = init
    cls.__signature__ = inspect.Signature(public)
