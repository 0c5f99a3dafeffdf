"""The models of the benchmarks, with made-up data of the right shape.

Written so that Keras 2 and Keras 3, on any backend, build the same models: the peers
are measured on them too. Keras is an argument, so that the titles can be read without
starting a framework.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """A model, its batch and its optimizer.

    Attributes:
        title: name in the table.
        build: makes the model from the module keras.
        example: (shape, number of token ids or None for real values) of one row of x.
        classes: number of labels.
        batch_size: rows in a batch, expected rows in a private one.
        steps: steps in a block, so that a block takes about a third of a second.
        optimizer: "sgd" or "adam".
        has_logits: whether the outputs are logits, not probabilities.
    """

    title: str
    build: Callable[[Any], Any]
    example: tuple[tuple[int, ...], int | None]
    classes: int
    batch_size: int
    steps: int
    optimizer: str = "sgd"
    has_logits: bool = True

    def data(self, rows: int, seed: int = 0) -> tuple[Any, Any]:
        """(x, y) of random rows: int32 ids or float32 in [0, 1), and int32 labels."""
        generator = np.random.default_rng(seed)
        shape, ids = self.example
        if ids is None:
            x = generator.random((rows, *shape), dtype=np.float32)
        else:
            x = generator.integers(0, ids, (rows, *shape), dtype=np.int32)
        return x, generator.integers(0, self.classes, rows, dtype=np.int32)


def mlp(keras: Any, activation: str | None = None) -> Any:
    """784-256-256-10: 269,322 weights."""
    return keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(10, activation=activation),
        ]
    )


def mlp_softmax(keras: Any) -> Any:
    """The same with probabilities for outputs, whose loss looks for their logits."""
    return mlp(keras, "softmax")


def cnn(keras: Any) -> Any:
    """The network of the MNIST tutorials of DP-SGD: 26,010 weights."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 8, strides=2, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(2, strides=1),
            keras.layers.Conv2D(32, 4, strides=2, activation="relu"),
            keras.layers.MaxPooling2D(2, strides=1),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def transformer(keras: Any) -> Any:
    """Two encoder layers over 64 of 10,000 tokens: 744,194 weights."""

    class Positions(keras.layers.Layer):
        """Adds a learned vector to each position of a sequence."""

        def build(self, input_shape: Any) -> None:
            """One vector a position."""
            self.table = self.add_weight(
                name="table", shape=tuple(input_shape[1:]), initializer="uniform"
            )
            self.built = True

        def call(self, inputs: Any) -> Any:
            """[batch, position, width]."""
            return inputs + self.table

    inputs = keras.Input((64,), dtype="int32")
    x = Positions()(keras.layers.Embedding(10_000, 64)(inputs))
    for _ in range(2):
        attended = keras.layers.MultiHeadAttention(num_heads=4, key_dim=16)(x, x)
        x = keras.layers.LayerNormalization()(keras.layers.Add()([x, attended]))
        y = keras.layers.Dense(64)(keras.layers.Dense(256, activation="relu")(x))
        x = keras.layers.LayerNormalization()(keras.layers.Add()([x, y]))
    return keras.Model(
        inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(x))
    )


def embedding(keras: Any) -> Any:
    """The mean of 32 vectors out of 100,000, then a linear layer: 6,400,650 weights."""
    return keras.Sequential(
        [
            keras.Input((32,), dtype="int32"),
            keras.layers.Embedding(100_000, 64),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(10),
        ]
    )


def wide_resnet(keras: Any) -> Any:
    """WRN-16-4, groups of channels in place of batches: 2,748,890 weights.

    Zagoruyko & Komodakis 2016 (arXiv:1605.07146); with GroupNormalization in 16 groups
    as in De et al. 2022 (arXiv:2204.13650).
    """

    def activated(x: Any) -> Any:
        return keras.layers.Activation("relu")(keras.layers.GroupNormalization(16)(x))

    def convolved(x: Any, width: int, size: int = 3, strides: int = 1) -> Any:
        options = {"strides": strides, "padding": "same", "use_bias": False}
        return keras.layers.Conv2D(width, size, **options)(x)

    inputs = keras.Input((32, 32, 3))
    x = convolved(inputs, 16)
    for width, first_strides in ((64, 1), (128, 2), (256, 2)):
        for block in range(2):
            strides = first_strides if block == 0 else 1
            y = activated(x)
            shortcut = x if block else convolved(y, width, 1, strides)
            y = convolved(activated(convolved(y, width, 3, strides)), width)
            x = keras.layers.Add()([shortcut, y])
    x = keras.layers.GlobalAveragePooling2D()(activated(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def lstm(keras: Any) -> Any:
    """64 units over 64 steps of 32 numbers: 25,482 weights."""
    return keras.Sequential(
        [keras.Input((64, 32)), keras.layers.LSTM(64), keras.layers.Dense(10)]
    )


_EMBEDDING = ((32,), 100_000)
CASES = {
    "mlp": Case("MLP", mlp, ((784,), None), 10, 256, 80),
    "mlp_softmax": Case(
        "MLP, softmax", mlp_softmax, ((784,), None), 10, 256, 80, has_logits=False
    ),
    "cnn": Case("CNN", cnn, ((28, 28, 1), None), 10, 250, 40),
    "transformer": Case("transformer", transformer, ((64,), 10_000), 2, 64, 8),
    "embedding": Case("embedding, SGD", embedding, _EMBEDDING, 10, 256, 50),
    "embedding_adam": Case(
        "embedding, Adam", embedding, _EMBEDDING, 10, 256, 16, "adam"
    ),
    "wrn": Case("WRN-16-4", wide_resnet, ((32, 32, 3), None), 10, 64, 2),
    "lstm": Case("LSTM", lstm, ((64, 32), None), 10, 64, 30),
}
"""By the names that the commands take."""
