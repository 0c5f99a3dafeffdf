"""Losses that compare examples are refused where an example alone has no gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import compiled

import dp_train


def likelihood_of_order(y, y_pred):
    """Cox's partial likelihood of the first example, among those of the batch."""
    return tf.reduce_logsumexp(y_pred) - y_pred[0, 0] + 0.0 * y


def correlation(y, y_pred):
    y, y_pred = (t - tf.reduce_mean(t) for t in (y, y_pred))
    return 1.0 - tf.reduce_sum(y * y_pred) / (tf.norm(y) * tf.norm(y_pred))


def contrast(y, y_pred):
    """Each example against all others of the batch."""
    unit = tf.math.l2_normalize(y_pred, -1)
    logits = 3.0 * tf.matmul(unit, unit, transpose_b=True)
    places = tf.range(tf.shape(y_pred)[0])
    return keras.ops.sparse_categorical_crossentropy(places, logits, from_logits=True)


def half_a_contrast(y, y_pred):
    return contrast(y, y_pred) + tf.reduce_mean(tf.square(y_pred - y), -1)


class Balanced(layers.Layer):
    """Penalises the square of a mean over the batch, as experts are balanced."""

    def build(self, shape):
        self.dense = layers.Dense(3)
        self.dense.build(shape)

    def call(self, x):
        y = self.dense(x)
        self.add_loss(keras.ops.sum(keras.ops.mean(y, axis=0) ** 2))
        return y


OF_PAIRS = {
    "order": (likelihood_of_order, 1),
    "correlation": (correlation, 1),
    "contrast": (contrast, 3),
    "circle": (keras.losses.Circle(), 3),
}


def stack(*more, width=3):
    return keras.Sequential([keras.Input((4,)), layers.Dense(width), *more])


def rows(loss, width):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((8, 4)).astype("float32")
    if isinstance(loss, keras.losses.Circle):
        return x, generator.integers(0, 2, 8)
    return x, generator.standard_normal((8, width)).astype("float32")


@pytest.mark.parametrize(("loss", "width"), OF_PAIRS.values(), ids=OF_PAIRS)
@pytest.mark.parametrize("is_plain", [False, True], ids=["private", "plain"])
def test_loss_without_a_gradient_on_one_example_is_refused(loss, width, is_plain):
    model = stack(width=width)
    optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=8
    )
    if is_plain:
        model.compile(optimizer, loss)
    else:
        model = compiled(model, optimizer, loss=loss)
    data = tf.data.Dataset.from_tensor_slices(rows(loss, width)).batch(8)
    with pytest.raises(dp_train.NotPrivateError, match="pairs, or all rows of a user"):
        model.fit(data, shuffle=False, verbose=0)
    assert optimizer.ledger.total == 0


COUPLED = {
    "a part of the loss": (stack, half_a_contrast),
    "a loss of a layer": (lambda: stack(Balanced()), "mse"),
    "a quotient of sums": (stack, keras.losses.Dice()),
}


@pytest.mark.parametrize(("build", "loss"), COUPLED.values(), ids=COUPLED)
def test_loss_that_compares_examples_in_part_is_named(build, loss):
    model = compiled(build(), loss=loss)
    x, y = rows(loss, 3)
    with pytest.warns(UserWarning, match="Part of the loss compares examples"):
        model.train_on_batch(x, y)


UNCOUPLED = {
    "mean": (stack, "mse"),
    "sum": (stack, keras.losses.MeanSquaredError(reduction="sum")),
    "of a layer": (
        lambda: stack(layers.Dense(3, activity_regularizer="l2")),
        "mse",
    ),
    "random layer": (lambda: stack(layers.Dropout(0.5), layers.Dense(3)), "mse"),
    "weights only": (
        lambda: stack(layers.Dense(3, kernel_regularizer="l2")),
        "mse",
    ),
}


@pytest.mark.parametrize(("build", "loss"), UNCOUPLED.values(), ids=UNCOUPLED)
def test_sums_and_means_over_examples_are_trained_without_a_word(build, loss):
    model = compiled(build(), loss=loss)
    x, y = rows(loss, 3)
    model.train_on_batch(x, y, sample_weight=np.arange(8.0))


def test_mask_of_keras_is_no_comparison_of_examples():
    model = compiled(
        keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                layers.Embedding(3, 2, mask_zero=True),
                layers.Dense(2),
            ]
        ),
        loss="mse",
    )
    ids = np.random.default_rng(0).integers(0, 3, (6, 5))
    model.train_on_batch(ids, np.ones((6, 5, 2), "float32"))
