"""scikit-learn's handwritten digits as a TFDS dataset: 1,797 real images, no download.

Importing this module registers the dataset `digits` with TFDS, which prepares it at first use.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 grey images of the digits 0 to 9; every fifth one is in the test split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            if (number % 5 == 0) == test:
                # Values 0 to 16 in the source; 15 times that spans the range of a byte.
                pixels = (image * 15).astype(np.uint8).reshape(8, 8, 1)
                yield number, {"image": pixels, "label": int(label)}
