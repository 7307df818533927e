"""One process of a job that takes rows of tokens."""

import sys
from pathlib import Path

DATA_DIR, PACKING, PLACE = *sys.argv[1:3], Path(sys.argv[3])
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import packed_texts
from saving_steps import take_steps

from datarax_tfds import (
    PackedSource,
    TFDSStreamingConfig,
    TFDSStreamingSource,
    batch_sharding,
    initialize,
    make_mesh,
)

initialize()
mesh = make_mesh({"data": -1})
config = TFDSStreamingConfig(name="docs", split="train", data_dir=DATA_DIR)
stream = TFDSStreamingSource(config, sharding=batch_sharding(mesh))
encoded = []


def encode(text):
    encoded.append(text)
    return packed_texts.encode(text)


source = PackedSource(
    stream,
    encode=encode,
    encode_name="bytes",
    length=packed_texts.LENGTH,
    packing=PACKING,
    shuffle=True,
    seed=5,
)
assert source.kept_tokens == source.tokens


def note_encoded():
    (PLACE / f"encoded-{jax.process_index()}").write_text(str(len(encoded)))


note_encoded()
take_steps(source, mesh, PLACE, sys.argv[4:], after_step=note_encoded)
