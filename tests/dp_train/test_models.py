"""Architectures that nothing was tuned for: the fast engine runs them, and is right."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import dp_train
from tests.batteries.cases import precision
from tests.batteries.gradient import assert_close
from tests.batteries.training import private

ROWS = 4


def _images(generator, size=16, channels=3):
    return generator.standard_normal((ROWS, size, size, channels))


def mobile_net(generator):
    """Inverted residuals, with GroupNormalization for BatchNormalization."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(inputs)
    for strides in (1, 2):
        y = layers.Conv2D(12, 1, use_bias=False)(x)
        y = layers.ReLU(6)(layers.GroupNormalization(4)(y))
        y = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y)
        y = layers.ReLU(6)(layers.GroupNormalization(4)(y))
        y = layers.GroupNormalization(2)(layers.Conv2D(4, 1, use_bias=False)(y))
        x = layers.Add()([x, y]) if strides == 1 else y
    x = layers.GlobalAveragePooling2D()(x)
    return (
        keras.Model(inputs, layers.Dense(3, activation="softmax")(x)),
        _images(generator),
        generator.integers(0, 3, ROWS),
    )


def residual_net(generator):
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    for width, strides in ((8, 1), (16, 2)):
        y = layers.Activation("relu")(layers.GroupNormalization(4)(x))
        short = layers.Conv2D(width, 1, strides=strides, use_bias=False)(y)
        y = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False)(y)
        y = layers.Activation("relu")(layers.GroupNormalization(4)(y))
        y = layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
        x = layers.Add()([short, y])
    x = layers.GlobalMaxPooling2D()(x)
    return (
        keras.Model(inputs, layers.Dense(3, activation="softmax")(x)),
        _images(generator),
        generator.integers(0, 3, ROWS),
    )


class LayerScale(layers.Layer):
    """One factor a channel, as ConvNeXt has."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gamma


def conv_next(generator):
    inputs = keras.Input((16, 16, 3))
    x = layers.LayerNormalization()(layers.Conv2D(8, 4, strides=4)(inputs))
    y = layers.DepthwiseConv2D(7, padding="same")(x)
    y = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(y))
    x = layers.Add()([x, LayerScale()(layers.Dense(8)(y))])
    x = layers.LayerNormalization()(layers.GlobalAveragePooling2D()(x))
    return (
        keras.Model(inputs, layers.Dense(3, activation="softmax")(x)),
        _images(generator),
        generator.integers(0, 3, ROWS),
    )


def u_net(generator):
    """A label for each pixel."""
    inputs = keras.Input((16, 16, 3))
    down = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D()(down)
    x = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2)(x)
    x = layers.Concatenate()([down, layers.UpSampling2D()(layers.MaxPooling2D()(x))])
    outputs = layers.Conv2D(2, 1, activation="softmax")(x)
    return (
        keras.Model(inputs, outputs),
        _images(generator),
        generator.integers(0, 2, (ROWS, 16, 16)),
    )


class FactorizationMachine(layers.Layer):
    """sum over pairs of fields of the inner product of their vectors."""

    def call(self, x):
        return 0.5 * ops.sum(
            ops.square(ops.sum(x, 1)) - ops.sum(ops.square(x), 1), -1, keepdims=True
        )


def deep_fm(generator):
    ids = keras.Input((5,), dtype="int32", name="ids")
    numbers = keras.Input((3,), name="numbers")
    vectors = layers.Embedding(20, 4)(ids)
    linear = layers.Embedding(20, 1)(ids)
    deep = layers.Concatenate()([layers.Flatten()(vectors), numbers])
    for _ in range(2):
        deep = layers.Dense(8, activation="relu")(deep)
    parts = [
        layers.Flatten()(layers.GlobalAveragePooling1D()(linear)),
        FactorizationMachine()(vectors),
        layers.Dense(1)(deep),
    ]
    outputs = layers.Activation("sigmoid")(layers.Add()(parts))
    x = {
        "ids": generator.integers(0, 20, (ROWS, 5)),
        "numbers": generator.standard_normal((ROWS, 3)),
    }
    model = keras.Model({"ids": ids, "numbers": numbers}, outputs)
    return model, x, generator.integers(0, 2, (ROWS, 1)), "binary_crossentropy"


class Experts(layers.Layer):
    """Every expert answers; a softmax of the input weighs the answers."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3, 6), name="kernel")
        self.gate = layers.Dense(3, activation="softmax")
        self.gate.build(shape)

    def call(self, x):
        answers = ops.relu(ops.einsum("bi,ieo->beo", x, self.kernel))
        return ops.sum(answers * self.gate(x)[:, :, None], axis=1)


def mixture_of_experts(generator):
    inputs = keras.Input((5,))
    x = Experts()(layers.Dense(6, activation="tanh")(inputs))
    return (
        keras.Model(inputs, layers.Dense(3, activation="softmax")(x)),
        generator.standard_normal((ROWS, 5)),
        generator.integers(0, 3, ROWS),
    )


class ClassToken(layers.Layer):
    """A learned first token and learned positions."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")
        self.positions = self.add_weight(shape=(1, shape[1] + 1, shape[-1]))

    def call(self, x):
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([token, x], axis=1) + self.positions


def vision_transformer(generator):
    inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 8))(layers.Conv2D(8, 4, strides=4)(inputs))
    x = ClassToken()(x)
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 4)(y, y)
    y = layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x))
    x = x + layers.Dense(8)(y)
    outputs = layers.Dense(3, activation="softmax")(x[:, 0])
    return (
        keras.Model(inputs, outputs),
        _images(generator),
        generator.integers(0, 3, ROWS),
    )


def text_classifier(generator):
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            layers.Embedding(12, 4),
            layers.Bidirectional(layers.GRU(3, return_sequences=True)),
            layers.GlobalMaxPooling1D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    return model, generator.integers(0, 12, (ROWS, 3)), generator.integers(0, 2, ROWS)


def two_heads(generator):
    """A reconstruction, and a class from a code that is regularised by the loss."""
    inputs = keras.Input((6,))
    hidden = layers.Dense(8, activation="silu")(inputs)
    mean, spread = layers.Dense(2)(hidden), layers.Dense(2)(hidden)
    code = layers.Concatenate(name="code")([mean, spread])
    decoded = layers.Dense(6, name="decoded")(mean + 0.1 * ops.exp(0.5 * spread))

    def divergence(y_true, y_pred):
        mean, spread = ops.split(y_pred, 2, axis=-1)
        terms = ops.square(mean) + ops.exp(spread) - spread - 1
        return 0.5 * ops.sum(terms, axis=-1)

    x = generator.standard_normal((ROWS, 6))
    y = {"decoded": x, "code": np.zeros((ROWS, 4))}
    model = keras.Model(inputs, {"decoded": decoded, "code": code})
    return model, x, y, {"decoded": "mse", "code": divergence}


def adapted(generator):
    """LoRA on a frozen table and a frozen layer, and a new head."""
    table, dense = layers.Embedding(12, 6), layers.Dense(6, activation="relu")
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            table,
            dense,
            layers.GlobalAveragePooling1D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    table.enable_lora(2)
    dense.enable_lora(2)
    return model, generator.integers(0, 12, (ROWS, 5)), generator.integers(0, 2, ROWS)


def language_model(generator):
    """Causal attention; the table of the tokens is that of the answers too."""
    inputs = keras.Input((6,), dtype="int32")
    table = layers.ReversibleEmbedding(12, 8)
    x = table(inputs)
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 4)(y, y, use_causal_mask=True)
    y = layers.Dense(16, activation="gelu")(layers.RMSNormalization()(x))
    x = layers.LayerNormalization()(x + layers.Dense(8)(y))
    outputs = layers.Softmax()(table(x, reverse=True))
    ids = generator.integers(0, 12, (ROWS, 7))
    return keras.Model(inputs, outputs), ids[:, :-1], ids[:, 1:]


def film(generator):
    """ConvLSTM2D over two small pictures."""
    model = keras.Sequential(
        [
            keras.Input((2, 4, 4, 1)),
            layers.ConvLSTM2D(2, 3, padding="same"),
            layers.Flatten(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    x = generator.standard_normal((ROWS, 2, 4, 4, 1))
    return model, x, generator.integers(0, 2, ROWS)


def series(generator):
    """Dilated causal convolutions over time, as WaveNet has."""
    inputs = keras.Input((12, 2))
    x = layers.Conv1D(4, 1)(inputs)
    for dilation in (1, 2, 4):
        y = layers.Conv1D(4, 2, padding="causal", dilation_rate=dilation)(x)
        x = x + layers.Activation("tanh")(y)
    outputs = layers.Dense(1)(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    x = generator.standard_normal((ROWS, 12, 2))
    return model, x, generator.standard_normal((ROWS, 1)), "mse"


MODELS = (
    mobile_net,
    residual_net,
    conv_next,
    u_net,
    deep_fm,
    mixture_of_experts,
    vision_transformer,
    text_classifier,
    two_heads,
    adapted,
    language_model,
    film,
    series,
)


def _norm_of_mean_gradient(model, x, y):
    """By plain autodiff of the batch."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    squares = [
        tf.reduce_sum(tf.cast(tf.convert_to_tensor(g), "float64") ** 2)
        for g in gradients
    ]
    return float(tf.sqrt(tf.add_n(squares)))


@pytest.mark.parametrize("architecture", MODELS)
def test_architecture_is_trained_by_bookkeeping_and_agrees_with_the_loop(architecture):
    with precision("float64"):
        keras.utils.set_random_seed(2)
        generator = np.random.default_rng(3)
        model, x, y, *loss = architecture(generator)
        # Shaken, so that no bias and no low-rank factor is zero.
        shaken = [
            w + 0.05 * generator.standard_normal(w.shape) for w in model.get_weights()
        ]
        model.set_weights(shaken)
        loss = loss[0] if loss else "sparse_categorical_crossentropy"
        model = private(model, noise_multiplier=1.0, loss=loss)

        def clipped(engine, clip):
            dp_train.make_private(model, gradients=engine)
            found = dp_train.clipped_gradients(model, x, y, l2_norm_clip=clip)
            return [np.asarray(g) for g in found.gradients]

        # A mean gradient is shorter than most: about half of the rows are clipped.
        clip = _norm_of_mean_gradient(model, x, y)
        expected = clipped("loop", clip)
        # Keras keeps the factors of LoRA in float32.
        tolerance = 1e-6 if architecture is adapted else 1e-9
        name = architecture.__name__
        assert_close(clipped("auto", clip), expected, tolerance, name)
        plan = model.privacy_plan()
        assert plan.engine == "bookkeeping", plan
        assert not plan.alone, plan
        model.fit(x, y, batch_size=2, steps_per_epoch=1, verbose=0)
        assert model.privacy_ledger.total == 1
