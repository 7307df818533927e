"""Measures what bounds a host of many cores: the time in which Python's lock (GIL) is held.

    python scripts/benchmarks/many_cores.py --data-dir data

It prints, for small images, the time of a core that each stage takes in the thread that calls it.
Decoding is replaced by a function that returns zeros, because it does not hold the lock. What is
left is nearly the time with the lock; copies by the kernel, which do not need it, are shown apart.
"""

import itertools
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_words  # noqa: F401  (says what takes so long)
import benchmark_data
import jax
import numpy as np
import tyro

from datarax_tfds import Pipeline, TFDSStreamingConfig, TFDSStreamingSource

CHUNK = 512  # records in a call, as in a stream of small records


@dataclass(frozen=True)
class Options:
    """What to run."""

    data_dir: Path = Path("data")
    rounds: int = 7


def cost(run: Callable[[Any], Any], calls: Sequence[Any], rounds: int) -> str:
    """Microseconds a record, of this thread: in Python and libraries, and in the kernel."""
    run(calls[0])
    best = (np.inf, 0.0)
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_THREAD)
        for call in calls:
            run(call)
        after = resource.getrusage(resource.RUSAGE_THREAD)
        spent = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        best = min(best, spent, key=sum)
    user_us, kernel_us = (1e6 * seconds / (len(calls) * CHUNK) for seconds in best)
    return f"{user_us:5.2f} us, and {kernel_us:.2f} us in the kernel"


def stages(source: TFDSStreamingSource, options: Options) -> None:
    reader: Any = source.records.reader
    numbers = np.random.default_rng(0).permutation(len(source))
    calls = [numbers[start : start + CHUNK] for start in range(0, 100 * CHUNK, CHUNK)]
    records = {id(call): reader.files.read(call) for call in calls}
    decode = reader._decoder  # no public name replaces the decoding
    decode(records[id(calls[0])])
    decode._traced = nothing(reader.spec)
    print("a record of", round(reader.split.record_bytes), "bytes:")
    print("  reading and checksums       ", cost(reader.files.read, calls, options.rounds))
    empty = lambda call: decode(records[id(call)])  # noqa: E731
    print("  a call that decodes nothing ", cost(empty, calls, options.rounds))
    print("  all that a thread does      ", cost(reader.read, calls, options.rounds))


def nothing(spec: dict[str, Any]) -> Any:
    import tensorflow as tf

    def zeros(records: Any) -> Any:
        del records
        return {
            name: tf.zeros([CHUNK, *leaf.shape], tf.int64 if name == "label" else leaf.dtype)
            for name, leaf in spec.items()
        }

    return tf.function(zeros, [tf.TensorSpec([None], tf.string)]).get_concrete_function()


def against_kernel(source: TFDSStreamingSource, options: Options) -> None:
    """Compares a stream with TensorFlow's PNG kernel alone, on the same images and all cores."""
    import tensorflow as tf

    reader: Any = source.records.reader
    spec = {"image": tf.io.FixedLenFeature([], tf.string)}
    chunks = [
        tf.io.parse_example(reader.files.read(np.arange(n, n + CHUNK)), spec)["image"]
        for n in range(0, 60 * CHUNK, CHUNK)
    ]
    one = tf.function(
        lambda image: tf.ensure_shape(tf.io.decode_png(image, 1), (28, 28, 1)),
        [tf.TensorSpec([], tf.string)],
    ).get_concrete_function()

    def each(images: Any) -> Any:
        return tf.raw_ops.MapDefun(
            arguments=[images],
            captured_inputs=[],
            output_types=[tf.uint8],
            output_shapes=[(28, 28, 1)],
            f=one,
            max_intra_op_parallelism=1,
        )

    kernel = tf.function(each, [tf.TensorSpec([None], tf.string)]).get_concrete_function()
    for batch_size in (128, 512):
        batches = Pipeline(source=source, batch_size=batch_size).batches()
        steps = 30_000 // batch_size
        ratios, main_us = [], []
        with ThreadPoolExecutor() as pool:
            for _ in range(options.rounds):
                begun = time.perf_counter()
                list(pool.map(kernel, chunks))
                alone = (time.perf_counter() - begun) / (len(chunks) * CHUNK)
                begun, own = time.perf_counter(), time.thread_time()
                for batch in itertools.islice(batches, steps):
                    jax.block_until_ready(batch)
                records = steps * batch_size
                ratios.append(alone * records / (time.perf_counter() - begun))
                main_us.append(1e6 * (time.thread_time() - own) / records)
        low, middle, high = np.quantile(ratios[1:], [0, 0.5, 1])
        print(
            f"batches of {batch_size}: {middle:.2f} ({low:.2f} to {high:.2f}) of what the kernel"
            f" does alone; the loop takes {min(main_us):.2f} us a record"
        )


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    name = benchmark_data.png_28(options.data_dir)
    config = TFDSStreamingConfig(
        name=name, split="train", data_dir=str(options.data_dir), shuffle=True
    )
    against_kernel(TFDSStreamingSource(config), options)
    stages(TFDSStreamingSource(config), options)


if __name__ == "__main__":
    sys.exit(main())
