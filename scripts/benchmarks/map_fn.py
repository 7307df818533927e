"""Compares a map_fn, from its first batch on, with the same function under tf.data (AUTOTUNE).

    python scripts/benchmarks/map_fn.py --data-dir data --out runs/benchmark

Each measurement runs in a new process, like each start of a job, and ours and the peer take turns.
The script prints ratios with their spread for the time to the first batch, the time to the first
1,024 records, and the time per later record. Imports of libraries are not counted.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import tyro
from benchmarking import Comparison, show

BATCH = 64
FIRST, LATER = 1_024, 1_792  # records

# The targets: the first batch and the first records may take 1.2 times as long as the peer's, and
# later records take no longer than the peer's.
CASES = {
    "resize": "JPEG 224: resize to 256, random crop and flip",
    "pad": "PNG 32: pad, random crop and flip",
    "control": "PNG 32: tf.cond, a Keras layer, tf.while_loop",
    "decode_crop": "JPEG 224: random-resized crop, decoded in part",
}
TARGETS = {"first batch": 1 / 1.2, f"first {FIRST:,} records": 1 / 1.2, "later records": 1.0}


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    out: Path = Path("runs/benchmark")
    rounds: int = 5
    cases: tuple[str, ...] = tuple(CASES)
    process: str = ""  # internal: the side that a subprocess measures, "ours" or "peer"


def dataset_of(case: str) -> Callable[[Path], str]:
    return benchmark_data.png_32 if case in ("pad", "control") else benchmark_data.jpeg_224


def function_of(case: str) -> Callable[[dict[str, Any], Any], dict[str, Any]]:
    import tensorflow as tf

    from datarax_tfds import decode_random_crop

    def resize(record: dict[str, Any], seed: Any) -> dict[str, Any]:
        image = tf.image.resize(record["image"], (256, 256))
        image = tf.image.stateless_random_crop(image, (224, 224, 3), seed)
        image = tf.image.stateless_random_flip_left_right(image, seed)
        return {"image": tf.cast(image, tf.uint8), "label": record["label"]}

    def pad(record: dict[str, Any], seed: Any) -> dict[str, Any]:
        image = tf.pad(record["image"], [[4, 4], [4, 4], [0, 0]])
        image = tf.image.stateless_random_crop(image, (32, 32, 3), seed)
        image = tf.image.stateless_random_flip_left_right(image, seed)
        return {"image": image, "label": record["label"]}

    rescaling = tf.keras.layers.Rescaling(1 / 255)

    def control(record: dict[str, Any], seed: Any) -> dict[str, Any]:
        image = rescaling(record["image"])
        bright = tf.random.stateless_uniform([], seed) < 0.5
        image = tf.cond(bright, lambda: image * 1.5, lambda: tf.image.transpose(image))
        turns = tf.random.stateless_uniform([], seed, 0, 4, tf.int32)
        _, image = tf.while_loop(
            lambda turn, _: turn < turns,
            lambda turn, image: (turn + 1, tf.image.rot90(image)),
            (0, image),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None, 3])),
        )
        return {"image": tf.ensure_shape(image, (32, 32, 3)), "label": record["label"]}

    def decode_crop(record: dict[str, Any], seed: Any) -> dict[str, Any]:
        image = decode_random_crop(record["image"], seed, (160, 160), area=(0.08, 0.25))
        image = tf.image.stateless_random_flip_left_right(image, seed)
        return {"image": image, "label": record["label"]}

    return {"resize": resize, "pad": pad, "control": control, "decode_crop": decode_crop}[case]


def decoders_of(case: str) -> dict[str, Any] | None:
    import tensorflow_datasets as tfds

    return {"image": tfds.decode.SkipDecoding()} if case == "decode_crop" else None


def ours(case: str, name: str, options: Options) -> Iterator[Any]:
    from datarax_tfds import Pipeline, TFDSStreamingConfig, TFDSStreamingSource

    config = TFDSStreamingConfig(
        name=name,
        split="train",
        data_dir=str(options.data_dir),
        shuffle=True,
        map_fn=function_of(case),
        decoders=decoders_of(case),
    )
    pipeline = Pipeline(source=TFDSStreamingSource(config), batch_size=BATCH)
    while True:
        yield from pipeline


def tf_data(case: str, name: str, options: Options) -> Iterator[Any]:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    function = function_of(case)
    dataset: Any = tfds.load(
        name,
        split="train",
        data_dir=options.data_dir,
        decoders=decoders_of(case),
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    seeds = tf.data.Dataset.counter(dtype=tf.int32).map(lambda number: tf.stack([0, number]))
    dataset = tf.data.Dataset.zip(dataset.repeat(), seeds)
    dataset = dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE)
    return iter(tfds.as_numpy(dataset.batch(BATCH).prefetch(tf.data.AUTOTUNE)))


def measure(side: str, case: str, options: Options) -> None:
    """Prints the seconds to the first batch, to the first records, and per later record."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    import datarax_tfds  # noqa: F401

    # TensorFlow and TFDS import parts of themselves at their first use: do that before the clock.
    tf.data.Dataset.range(1)
    tf.keras.layers.Rescaling(1.0)
    tfds.features.FeaturesDict({})
    name = dataset_of(case)(options.data_dir)
    jax.block_until_ready(jax.numpy.zeros(1))
    start = time.perf_counter()
    batches = {"ours": ours, "peer": tf_data}[side](case, name, options)
    times = []
    for number in range((FIRST + LATER) // BATCH):
        jax.block_until_ready(next(batches))
        if (number + 1) * BATCH in (BATCH, FIRST, FIRST + LATER):
            times.append(time.perf_counter() - start)
    print(json.dumps([times[0], times[1], (times[2] - times[1]) / LATER]))


def in_a_process(side: str, case: str, options: Options) -> list[float]:
    command = [sys.executable, __file__, "--data-dir", str(options.data_dir), "--cases", case]
    done = subprocess.run(
        [*command, "--process", side], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def comparisons(options: Options) -> Iterator[Comparison]:
    later: dict[str, list[float]] = {}
    for case in options.cases:
        dataset_of(case)(options.data_dir)
        rows = [Comparison(f"{CASES[case]}: {what}", TARGETS[what]) for what in TARGETS]
        for _ in range(options.rounds):
            for side in ("ours", "peer"):
                for row, seconds in zip(rows, in_a_process(side, case, options), strict=True):
                    (row.ours_s if side == "ours" else row.peer_s).append(seconds)
        later[case] = rows[-1].ours_s
        yield from rows
    if {"resize", "decode_crop"} <= later.keys():
        name = "later records: crops decoded in part, against resize and crop of the whole"
        yield Comparison(name, 1.5, later["decode_crop"], later["resize"])


def main(options: Options) -> None:
    if options.process:
        measure(options.process, options.cases[0], options)
        return
    title = f"map_fn against tf.data, {jax.default_backend()}, jax {jax.__version__}"
    show(title, comparisons(options), save_as=options.out / "map_fn")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
