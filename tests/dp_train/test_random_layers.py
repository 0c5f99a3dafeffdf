"""What random layers draw: secret keys, one for each example, whatever the batch."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import compiled, data

import dp_train
from tests.batteries import random_layers

ENGINES = ("bookkeeping", "vectorized", "loop")
CHUNKS = ("auto", 3)


@pytest.mark.parametrize("engine", ENGINES)
def test_set_random_seed_reproduces_no_mask(engine):
    random_layers.assert_no_seed_decides_a_mask(engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_more_moves_no_mask_of_others(engine):
    random_layers.assert_a_row_more_moves_no_mask_of_others(engine)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("engine", ["bookkeeping", "vectorized"])
def test_a_row_more_changes_no_law_of_others(engine, chunk):
    random_layers.assert_a_row_more_changes_no_law_of_others(
        engine, microbatch_size=chunk
    )


def test_the_law_is_told_from_another(monkeypatch):
    counts = random_layers.kept_counts
    monkeypatch.setattr(
        random_layers, "kept_counts", lambda *a, **k: np.minimum(counts(*a, **k) + 1, 8)
    )
    with pytest.raises(AssertionError, match="the counts are"):
        random_layers.assert_a_row_more_changes_no_law_of_others("bookkeeping")


def plain_sums(seed):
    """Changes of a weight of 64 ones behind Dropout in two fits of a plain model."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        ]
    )
    with pytest.warns(dp_train.PrivacyWarning, match="noise_multiplier=0"):
        model.compile(
            dp_train.DPSGD(
                1.0, l2_norm_clip=1e6, noise_multiplier=0.0, expected_batch_size=1.0
            ),
            loss=lambda y_true, y_pred: keras.ops.sum(y_pred, -1),
        )
        rows = np.ones((8, 64), np.float32), np.zeros((8, 1))
        batches = tf.data.Dataset.from_tensor_slices(rows).batch(8)
        model.fit(batches, verbose=0, shuffle=False)
    first = model.get_weights()[0]
    state = np.asarray(model.layers[0].seed_generator.state)
    model.fit(batches, verbose=0, shuffle=False)
    return first, model.get_weights()[0] - first, state


def test_plain_fit_draws_masks_that_no_seed_decides_and_keeps_no_key():
    one, other = plain_sums(0), plain_sums(0)
    assert np.any(one[0] != other[0])
    assert np.any(one[0] != one[1])
    # For each feature twice the number of examples that kept it.
    assert np.all(one[0] % 2 == 0) and -16 < one[0].min() < one[0].max() < 0
    np.testing.assert_array_equal(one[2], other[2])


class Draws(keras.layers.Layer):
    """Noise of TensorFlow's own generator in training."""

    def call(self, x, training=None):
        return x + tf.random.normal(tf.shape(x)) if training else x


@pytest.mark.parametrize("gradients", ["auto", "vectorized", "loop"])
def test_draws_of_tf_random_are_refused(gradients):
    model = compiled(
        keras.Sequential([keras.Input((4,)), Draws(), keras.layers.Dense(3)]),
        gradients=gradients,
    )
    with pytest.raises(
        dp_train.NotPrivateError, match=r"(?s)'draws.*tf.random.*SeedGenerator"
    ):
        model.fit(*data(), batch_size=20, verbose=0)


class Noisy(keras.layers.Layer):
    """An op that no rule reads, behind a mask: it must run one example at a time."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 1), initializer="ones")
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x, training=None):
        kept = self.dropout(x, training=training)
        return tf.linalg.matmul(kept[:, None], tf.math.softplus(self.kernel))[:, 0]


def test_a_layer_that_runs_alone_draws_for_each_example():
    model = dp_train.make_private(
        keras.Sequential([keras.Input((64,)), Fft(), Noisy()]), gradients="bookkeeping"
    )
    model.compile(loss=lambda y_true, y_pred: keras.ops.sum(y_pred, -1))
    x, y = np.ones((8, 64), np.float32), np.zeros((8, 1), np.float32)
    sums = [
        dp_train.clipped_gradients(model, x, y, l2_norm_clip=1e6).gradients[0].numpy()
        for _ in range(2)
    ]
    assert model.privacy_plan().alone
    assert len(np.unique(np.round(sums[0], 3))) > 2
    assert np.any(sums[0] != sums[1])


class Fft(keras.layers.Layer):
    """Dropout and an op that no rule knows."""

    def build(self, shape):
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x, training=None):
        kept = self.dropout(x, training=training)
        return tf.math.real(tf.signal.fft(tf.cast(kept, tf.complex64)))


class Chooses(keras.layers.Layer):
    """Scales by a number that NumPy draws while the layer is traced."""

    def call(self, x):
        return x * float(np.random.choice([1.0, 2.0]))


@pytest.mark.parametrize("engine", ["auto", "vectorized", "loop", "custom loop"])
@pytest.mark.parametrize(
    "layer",
    [lambda: keras.layers.AugMix(name="chosen"), lambda: Chooses(name="chosen")],
)
def test_layer_that_is_another_at_every_trace_is_refused_with_a_way_out(layer, engine):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layer(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    gradients = "auto" if engine == "custom loop" else engine
    model = compiled(model, gradients=gradients)
    x, y = np.ones((6, 8, 8, 3), "float32"), np.zeros(6, "int32")
    with pytest.raises(dp_train.NotPrivateError, match="'chosen' .*fit.augment="):
        if engine == "custom loop":
            dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
        else:
            model.fit(x, y, batch_size=3, verbose=0)
    assert model.privacy_ledger.total == 0
