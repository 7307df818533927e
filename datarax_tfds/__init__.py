"""Feeds JAX jobs from TensorFlow Datasets, on any number of hosts, and resumes exactly.

    source = TFDSEagerSource(TFDSEagerConfig(name="mnist", split="train", shuffle=True))
    for batch in Pipeline(source=source, batch_size=128):
        train_step(model, batch)

Checkpoints are in `datarax_tfds.checkpoint`. The functions for meshes and processes are here, too.
"""

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import datarax_tfds._sharding_is_ours  # it raises if `sharding` is another package
import datarax_tfds.runtime.forks  # noqa: F401  # notes a fork, also before a name is used

if TYPE_CHECKING:
    from datarax_tfds.public_names import *  # noqa: F403  # what `__getattr__` finds

    __version__: str


def __getattr__(name: str) -> Any:
    """Imports JAX and the public names when the first of them is used.

    `datarax-tfds --help` needs none of them, and JAX alone takes seconds to import.
    """
    if name == "__version__":
        return version("datarax-tfds")
    if name == "__all__" or not name.startswith("__"):
        import datarax_tfds.public_names as public_names

        names = {"__all__": public_names.__all__}
        globals().update(names | {each: getattr(public_names, each) for each in names["__all__"]})
    if name not in globals():  # neither a public name nor an imported submodule
        text = f"module {__name__!r} has no attribute {name!r}"
        error = AttributeError(text, name=name, obj=sys.modules[__name__])  # Python's own error
        raise error
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*__getattr__("__all__"), "__all__", "__version__"])
