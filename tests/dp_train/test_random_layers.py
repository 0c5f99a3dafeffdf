"""What random layers draw: secret keys, one for each example, whatever the batch."""

from __future__ import annotations

import sys

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
        rows = np.ones((64, 64), np.float32), np.zeros((64, 1))
        batches = tf.data.Dataset.from_tensor_slices(rows).batch(64)
        model.fit(batches, verbose=0, shuffle=False)
    first = model.get_weights()[0]
    state = np.asarray(model.layers[0].seed_generator.state)
    model.fit(batches, verbose=0, shuffle=False)
    return first, model.get_weights()[0] - first, state


def test_plain_fit_draws_masks_that_no_seed_decides_and_keeps_no_key():
    one, other = plain_sums(0), plain_sums(0)
    assert np.any(one[0] != other[0])
    assert np.any(one[0] != one[1])
    # For each feature twice the number of examples that kept it: all or none of 64 with
    # probability 1e-17.
    assert np.all(one[0] % 2 == 0) and -128 < one[0].min() < one[0].max() < 0
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


class Printed(keras.layers.Layer):
    """Prints, and asserts, what was drawn before it."""

    def call(self, x):
        tf.debugging.assert_all_finite(x, "finite")
        tf.print(tf.size(x), output_stream=sys.stderr)
        return x


@pytest.mark.parametrize("kind", ["tokens", "printed"])
def test_what_is_done_to_a_drawn_mask_does_not_stop_plain_fit(kind, capfd):
    tokens = np.arange(24).reshape(8, 3) % 5
    layers = [
        keras.Input((3,), dtype="int32"),
        keras.layers.Embedding(5, 4),
        keras.layers.Dropout(0.1),
        *([Printed()] if kind == "printed" else []),
        keras.layers.Dense(5),
    ]
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    loader = dp_train.PoissonLoader(tokens, tokens, batch_size=4)
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss)
    batches = loader.dataset_for(optimizer)
    model.fit(batches, epochs=2, verbose=0, shuffle=False)
    assert optimizer.ledger.total == 4


class Keeps(keras.layers.Layer):
    """Keeps a sum of its inputs in the state of a seed generator."""

    def __init__(self, way):
        super().__init__()
        self.seed, self.way = keras.random.SeedGenerator(1), way

    def call(self, x):
        kept = tf.cast(tf.reduce_sum(tf.abs(x)) * 1000, self.seed.state.dtype)
        if self.way == "assign":
            self.seed.state.assign([kept, kept])
        else:
            self.keep(kept)
            x = x + tf.cast(self.seed.next()[0], x.dtype) * 0
        return x

    @tf.function
    def keep(self, kept):
        tf.raw_ops.AssignVariableOp(
            resource=self.seed.state.handle, value=tf.stack([kept, kept])
        )


@pytest.mark.parametrize("way", ["assign", "in a function"])
def test_plain_fit_refuses_what_is_kept_in_the_state_of_a_seed(way):
    x = np.ones((8, 3), "float32")
    optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=4
    )
    model = keras.Sequential([keras.Input((3,)), Keeps(way), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse")
    with pytest.raises(dp_train.NotPrivateError, match="state of a random layer"):
        model.fit(x, x[:, :1], batch_size=4, verbose=0)


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
