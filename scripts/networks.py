"""The networks of the training scripts: two for images, and one that finds objects in them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Small(nnx.Module):
    """Two convolutions and two dense layers.

    Args:
        shape: Height, width and channels of an image.
        classes: The number of logits.
        rngs: Where the parameters come from.
    """

    def __init__(self, *, shape: tuple[int, int, int], classes: int, rngs: nnx.Rngs):
        height, width, channels = shape
        self.conv1 = nnx.Conv(channels, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.dense = nnx.Linear(-(-height // 2) * -(-width // 2) * 64, 128, rngs=rngs)
        self.head = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(self.conv2(x))
        return self.head(nnx.relu(self.dense(x.reshape(len(x), -1))))


class ResNet(nnx.Module):
    """A residual network, by default ResNet-50 (He et al., 2015) for images of 224 x 224 pixels.

    A batch is normalized over all devices, because the mean of a global array is over all of it.

    Args:
        shape: Height, width and channels of an image.
        classes: The number of logits; None for a network that is only asked for its `features`.
        blocks: The blocks of each stage. After the first stage, each halves the resolution.
        width: The channels of the first stage; each later one has twice as many.
        bottleneck: Blocks of three convolutions; else of two.
        small_images: Begin with the full resolution, not with a quarter of it.
        dtype: Of the activations. The parameters are float32.
        rngs: Where the parameters come from.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        classes: int | None,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        bottleneck: bool = True,
        small_images: bool = False,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        how = {"dtype": jnp.dtype(dtype), "rngs": rngs}
        kernel, strides = ((3, 3), 1) if small_images else ((7, 7), 2)
        self.small_images = small_images
        self.stem = nnx.Conv(shape[-1], width, kernel, strides, use_bias=False, **how)
        self.norm = nnx.BatchNorm(width, momentum=0.9, **how)
        channels, made = width, []
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage and not block else 1
                made.append(Residual(channels, width << stage, stride, bottleneck, how))
                channels = made[-1].channels
        self.blocks = nnx.List(made)
        self.channels = channels
        self.head = None if classes is None else nnx.Linear(channels, classes, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """`[batch, height / 32, width / 32, channels]`, if there are four stages."""
        x = nnx.relu(self.norm(self.stem(images)))
        if not self.small_images:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return x

    def __call__(self, images: jax.Array) -> jax.Array:
        assert self.head is not None
        return self.head(self.features(images).mean((1, 2)).astype(jnp.float32))


class Residual(nnx.Module):
    """Two or three convolutions, which are added to their input."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool, how: Any):
        # Kernel, channels and stride of each.
        layers = [(3, width, stride), (3, width, 1)]
        if bottleneck:
            layers = [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
        self.channels = layers[-1][1]
        same = stride == 1 and channels == self.channels
        self.shortcut = None if same else Normalized(channels, 1, self.channels, stride, how)
        inputs = [channels, *(width for _, width, _ in layers)]
        self.layers = nnx.List(
            [Normalized(given, *layer, how) for given, layer in zip(inputs, layers, strict=False)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return nnx.relu(shortcut + self.layers[-1](x))


class Normalized(nnx.Module):
    """A convolution and the normalization of its result."""

    def __init__(self, inputs: int, kernel: int, outputs: int, stride: int, how: Any):
        self.conv = nnx.Conv(inputs, outputs, (kernel,) * 2, stride, use_bias=False, **how)
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, **how)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class Detector(nnx.Module):
    """Finds objects: each cell of a grid says of which class the object is whose centre it has.

    It is the plainest detector that learns, a CenterNet (Zhou et al., 2019) on the last features of
    a ResNet: one object of a class per cell, and one box per cell.

    Args:
        backbone: Computes the features.
        classes: The number of classes.
        rngs: Where the other parameters come from.
    """

    def __init__(self, backbone: ResNet, *, classes: int, rngs: nnx.Rngs):
        self.backbone, channels = backbone, backbone.channels
        self.hidden = nnx.Conv(channels, channels // 4, (3, 3), rngs=rngs)
        # A probability of 1 % for each class at first: nearly all cells are without an object.
        rare = nnx.initializers.constant(-4.6)
        self.classes = nnx.Conv(channels // 4, classes, (1, 1), bias_init=rare, rngs=rngs)
        self.boxes = nnx.Conv(channels // 4, 4, (1, 1), rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits `[batch, rows, columns, classes]`, and boxes `[batch, rows, columns, 4]`.

        A box is its top, left, bottom and right edge in [0, 1], as in the datasets of TFDS.
        """
        x = nnx.relu(self.hidden(self.backbone.features(images).astype(jnp.float32)))
        rows, columns = x.shape[1:3]
        down, right = jnp.mgrid[:rows, :columns]
        cells = jnp.stack([down, right], -1).astype(jnp.float32)
        moved, sizes = jnp.split(nnx.sigmoid(self.boxes(x)), 2, axis=-1)
        centres = (cells[None] + moved) / jnp.array([rows, columns], jnp.float32)
        return self.classes(x), jnp.concatenate([centres - sizes / 2, centres + sizes / 2], -1)


NETWORKS = {"small": Small, "resnet": ResNet}
