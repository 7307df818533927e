"""One of several processes that want a dataset which is missing, and note who makes it."""

import os
import sys
import time

DATA_DIR, NOTES, SLEEP_S = sys.argv[1:]
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "scripts"))

import digits

from datarax_tfds import TFDSStreamingConfig, initialize
from datarax_tfds.files.split import open_split

initialize()  # does nothing where the processes are of different jobs
if os.environ.get("JAX_NUM_PROCESSES"):
    DATA_DIR += os.environ["JAX_PROCESS_ID"]  # as on hosts that share no file system


class NotedDigits(digits.Digits):
    """Digits that tell when they are made."""

    name = "noted_digits"

    def _generate_examples(self, test):
        with open(NOTES, "a") as file:
            file.write(f"{os.getpid()}\n")
        for number, example in enumerate(super()._generate_examples(test)):
            if number == 100:
                time.sleep(float(SLEEP_S))
            yield example


split = open_split(TFDSStreamingConfig(name="noted_digits", split="train", data_dir=DATA_DIR))
assert len(split) == 1437
sys.stdout.write(f"{split.fingerprint}\n")
