"""The one place that imports TensorFlow, at its first use."""

import logging
from typing import Any

_log = logging.getLogger(__name__)


def tensorflow() -> Any:
    """TensorFlow, kept off the accelerators, which JAX uses."""
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        if not tf.config.get_visible_devices(kind):
            continue
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:
            _log.warning(
                "TensorFlow used the %ss before datarax_tfds was first used, and keeps its memory"
                " there; to give it to JAX, call tf.config.set_visible_devices([], %r) first.",
                kind,
                kind,
            )
    return tf
