"""Models and data that a gradient path must get right, one case a kind of layer.

Index letters: n examples, t time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

Rows = tuple[Any, Any, Any]
"""(x, y, sample_weight), [n, ...]."""

DataMaker = Callable[[np.random.Generator, int], Rows]


@dataclass(frozen=True)
class Case:
    """A model, its losses, and examples for it.

    Attributes:
        build: an uncompiled model; equal architecture at every call.
        rows: (generator, n) to n examples; y is a float array (or structure of them).
        losses: to the arguments of compile that define the loss.
        is_float_input: whether an example's inputs can hold a NaN.
    """

    build: Callable[[], keras.Model]
    rows: DataMaker
    losses: Callable[[], dict[str, Any]] = field(
        default=lambda: {"loss": keras.losses.MeanSquaredError()}
    )
    is_float_input: bool = True


@contextmanager
def precision(policy: str) -> Iterator[None]:
    """Builds layers under a dtype policy, with the floatx that goes with it."""
    previous = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy(policy)
    keras.config.set_floatx("float64" if policy == "float64" else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous[0])
        keras.config.set_floatx(previous[1])


def arrays(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> DataMaker:
    """Normal inputs and targets of these shapes, unweighted."""

    def make(generator: np.random.Generator, count: int) -> Rows:
        x = generator.standard_normal((count, *inputs))
        return x, generator.standard_normal((count, *outputs)), None

    return make


def weighted(make: DataMaker, steps: tuple[int, ...] = ()) -> DataMaker:
    """The same rows with weights from 0.02 to 50, one an example or one a time step."""

    def make_weighted(generator: np.random.Generator, count: int) -> Rows:
        x, y, _ = make(generator, count)
        weight = np.geomspace(0.02, 50.0, count).reshape(-1, *(1 for _ in steps))
        return x, y, weight * generator.uniform(0.5, 1.0, (count, *steps))

    return make_weighted


def token_ids(length: int, outputs: tuple[int, ...]) -> DataMaker:
    """Ids below 5: a sequence of 6 holds one twice. The first id is never padding."""

    def make(generator: np.random.Generator, count: int) -> Rows:
        x = generator.integers(0, 5, (count, length)).astype("int32")
        x[:, 0] = generator.integers(1, 5, count)
        return x, generator.standard_normal((count, *outputs)), None

    return make


def _dense(use_bias: bool, shape: tuple[int, ...] = (3,)) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Dense(4, activation="tanh", use_bias=use_bias),
            layers.Dense(2, use_bias=use_bias),
        ]
    )


def _convolutional() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, strides=2, padding="same", activation="tanh"),
            layers.Conv2D(2, 2, use_bias=False),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def _many_channels() -> keras.Model:
    inputs = keras.Input((6, 5, 4))
    shared = layers.Conv2D(4, 3, padding="same", activation="tanh")
    outputs = layers.Conv2DTranspose(5, 2, strides=2)(shared(shared(inputs)))
    outputs = layers.Conv2D(3, (2, 3), strides=(2, 3))(outputs)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(outputs)))


def _normalized(layer: Callable[[], layers.Layer]) -> keras.Model:
    return keras.Sequential(
        [keras.Input((3, 4)), layers.Dense(4), layer(), layers.Dense(2)]
    )


def _embedding(mask_zero: bool) -> keras.Model:
    embedding = layers.Embedding(5, 3, mask_zero=mask_zero)
    reading = layers.LSTM(3) if mask_zero else layers.Flatten()
    return keras.Sequential(
        [keras.Input((6,), dtype="int32"), embedding, reading, layers.Dense(2)]
    )


def _masked_sequence() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(5, 3, mask_zero=True),
            layers.Dense(2),
        ]
    )


def _shared() -> keras.Model:
    inputs = keras.Input((4,))
    shared = layers.Dense(4, activation="tanh")
    return keras.Model(inputs, layers.Dense(2)(shared(shared(inputs))))


def _recurrent() -> keras.Model:
    return keras.Sequential([keras.Input((5, 3)), layers.LSTM(3), layers.Dense(2)])


def _attention() -> keras.Model:
    inputs = keras.Input((4, 6))
    attended = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2)(attended))


class Recomputed(layers.Layer):
    """Two layers under keras.remat; one has an op that no rule of ours knows."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(4, activation="tanh")
        self.scale = layers.Dense(
            4, activation=lambda x: tf.math.cumulative_logsumexp(x, axis=-1)
        )
        self.recomputed = keras.remat(self.scale)

    def build(self, shape: Any) -> None:
        self.dense.build(shape)
        self.scale.build((*shape[:-1], 4))

    def call(self, x: Any) -> Any:
        return self.recomputed(keras.remat(self.dense)(x))


def _recomputed() -> keras.Model:
    with keras.RematScope("activations"):
        hidden = layers.Dense(4, activation="tanh")
    return keras.Sequential([keras.Input((3,)), hidden, Recomputed(), layers.Dense(2)])


def _several_outputs() -> keras.Model:
    inputs = keras.Input((3,))
    hidden = layers.Dense(4, activation="tanh")(inputs)
    first = layers.Dense(2, name="first")(hidden)
    return keras.Model(inputs, [first, layers.Dense(1, name="second")(hidden)])


def _several_rows(generator: np.random.Generator, count: int) -> Rows:
    x = generator.standard_normal((count, 3))
    y = [generator.standard_normal((count, width)) for width in (2, 1)]
    return x, y, None


def _several_losses() -> dict[str, Any]:
    losses = [keras.losses.MeanSquaredError(), keras.losses.MeanAbsoluteError()]
    return {"loss": losses, "loss_weights": [0.3, 2.0]}


def _regularized() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, kernel_regularizer=keras.regularizers.L2(5.0)),
            layers.Dense(2, bias_regularizer=keras.regularizers.L1(5.0)),
        ]
    )


def _activity_regularized() -> keras.Model:
    regularizer = keras.regularizers.L2(0.1)
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activity_regularizer=regularizer),
            layers.Dense(2),
        ]
    )


def _probabilities(activation: str) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation="tanh"),
            layers.Dense(3, activation=activation, kernel_initializer=_LARGE),
        ]
    )


_LARGE = keras.initializers.RandomNormal(stddev=200.0, seed=4)
"""Initial weights with which probabilities round to 0 and 1."""


def _classes(generator: np.random.Generator, count: int) -> Rows:
    x = generator.standard_normal((count, 3))
    return x, np.eye(3)[generator.integers(0, 3, count)], None


def quartic(y_true: Any, y_pred: Any) -> Any:
    """A custom loss: mean over outputs of the error to the fourth power."""
    return keras.ops.mean((y_true - y_pred) ** 4, axis=-1)


def _reduced(reduction: str | None) -> Callable[[], dict[str, Any]]:
    return lambda: {"loss": keras.losses.MeanSquaredError(reduction=reduction)}


_dense_rows = arrays((3,), (2,))

CASES: dict[str, Case] = {
    "dense": Case(lambda: _dense(True), _dense_rows),
    "dense without bias": Case(lambda: _dense(False), _dense_rows),
    "dense of rank 3": Case(lambda: _dense(True, (4, 3)), arrays((4, 3), (4, 2))),
    "dense of rank 4": Case(
        lambda: _dense(True, (2, 4, 3)), arrays((2, 4, 3), (2, 4, 2))
    ),
    "convolution": Case(_convolutional, arrays((6, 6, 2), (2,))),
    "convolution of many channels": Case(_many_channels, arrays((6, 5, 4), (2,))),
    "embedding with duplicate ids": Case(
        lambda: _embedding(False), token_ids(6, (2,)), is_float_input=False
    ),
    "embedding with a mask": Case(
        lambda: _embedding(True), token_ids(6, (2,)), is_float_input=False
    ),
    "loss under a mask": Case(
        _masked_sequence, token_ids(6, (6, 2)), is_float_input=False
    ),
    "layer normalization": Case(
        lambda: _normalized(layers.LayerNormalization), arrays((3, 4), (3, 2))
    ),
    "group normalization": Case(
        lambda: _normalized(lambda: layers.GroupNormalization(2)),
        arrays((3, 4), (3, 2)),
    ),
    "shared layer": Case(_shared, arrays((4,), (2,))),
    "lstm": Case(_recurrent, arrays((5, 3), (2,))),
    "attention": Case(_attention, arrays((4, 6), (4, 2))),
    "rematerialization": Case(_recomputed, _dense_rows),
    "several outputs": Case(_several_outputs, _several_rows, _several_losses),
    "sample weights": Case(lambda: _dense(True), weighted(_dense_rows)),
    "weights of a sequence": Case(
        lambda: _dense(True, (4, 3)), weighted(arrays((4, 3), (4, 2)), (4,))
    ),
    "custom loss": Case(
        lambda: _dense(True), weighted(_dense_rows), lambda: {"loss": quartic}
    ),
    "loss without reduction": Case(
        lambda: _dense(True), weighted(_dense_rows), _reduced(None)
    ),
    "loss reduced to a sum": Case(
        lambda: _dense(True, (4, 3)), arrays((4, 3), (4, 2)), _reduced("sum")
    ),
    "loss reduced to a mean": Case(
        lambda: _dense(True, (4, 3)),
        arrays((4, 3), (4, 2)),
        _reduced("sum_over_batch_size"),
    ),
    "probabilities of classes": Case(
        lambda: _probabilities("softmax"),
        _classes,
        lambda: {"loss": "categorical_crossentropy"},
    ),
    "probabilities of each output": Case(
        lambda: _probabilities("sigmoid"),
        _classes,
        lambda: {"loss": "binary_crossentropy"},
    ),
    "regularizers": Case(_regularized, _dense_rows),
    "activity regularizer": Case(_activity_regularized, _dense_rows),
}
