"""What an engine or the library cannot compute is left to another, or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import compiled

import dp_train
from tests.batteries import training


def transcriber():
    inputs = keras.Input((10, 4))
    return keras.Model(inputs, layers.Dense(5, "softmax")(inputs))


def transcripts():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((8, 10, 4)).astype("float32")
    return x, generator.integers(1, 5, (8, 3))


def test_loss_that_has_no_map_over_examples_is_trained_by_the_loop():
    model = compiled(transcriber(), loss=keras.losses.CTC())
    model.fit(*transcripts(), batch_size=4, verbose=0)
    plan = model.privacy_plan()
    assert plan.engine == "loop"
    reasons = dict(plan.refused)
    assert "the loss cannot be mapped" in reasons["bookkeeping"]
    assert "no map over examples" in reasons["vectorized"]


def test_loss_that_has_no_map_over_examples_is_refused_in_plain_fit():
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    model = transcriber()
    model.compile(optimizer, loss=keras.losses.CTC())
    loader = dp_train.PoissonLoader(*transcripts(), batch_size=4)
    with pytest.raises(dp_train.NotPrivateError, match="cannot be mapped.*make_priv"):
        model.fit(loader.dataset_for(optimizer), shuffle=False, verbose=0)
    assert optimizer.ledger.total == 0


def test_error_of_the_users_own_in_a_loss_is_told_as_it_is():
    def broken(y, y_pred):
        return y.no_such_method()

    model = compiled(transcriber(), loss=broken)
    with pytest.raises(AttributeError, match="no_such_method"):
        model.fit(*transcripts(), batch_size=4, verbose=0)


class FailsWhileDrawing(layers.Layer):
    """A shape that no map can stack, and only where random layers are on."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x, training=None):
        if not training:
            return x
        noise = keras.random.uniform(keras.ops.shape(x), seed=self.seed_generator)
        # As many numbers as the draw says: another count for each example.
        chosen = tf.boolean_mask(noise, noise > 0.5)
        return x + tf.reduce_sum(chosen)


def test_engine_is_tried_with_random_layers_on_before_anything_is_charged():
    model = keras.Sequential([keras.Input((6,)), FailsWhileDrawing(), layers.Dense(2)])
    model = compiled(model, loss="mse")
    x, y = np.ones((8, 6), "float32"), np.ones((8, 2), "float32")
    model.fit(x, y, batch_size=4, verbose=0)
    assert model.privacy_ledger.total == 2
    reasons = dict(model.privacy_plan().refused)
    assert reasons["bookkeeping"].endswith("draws random numbers")
    assert "where layers draw (PartialTensorShape" in reasons["vectorized"]


KINDS = {
    "ragged": (
        lambda: keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(5, 4),
                layers.GlobalAveragePooling1D(),
                layers.Dense(3),
            ]
        ),
        lambda: tf.ragged.constant([[1, 2, 3], [4]] * 4),
        "to_tensor",
    ),
    "sparse": (
        lambda: keras.Sequential([keras.Input((4,), sparse=True), layers.Dense(3)]),
        lambda: tf.sparse.from_dense(np.eye(4, dtype="float32")[[0, 1, 2, 0] * 2]),
        "to_dense",
    ),
}


@pytest.mark.parametrize("how", ["stream", "arrays", "batch", "plain"])
@pytest.mark.parametrize(("build", "rows", "way"), KINDS.values(), ids=KINDS)
def test_ragged_and_sparse_data_are_refused_with_the_way_to_dense(
    build, rows, way, how
):
    optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=4
    )
    x, y = rows(), np.array([0, 1] * 4)
    model = build()
    if how != "plain":
        model = dp_train.make_private(model)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
    stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    with training.without_noise(), pytest.raises(ValueError, match=way):
        if how == "arrays":
            model.fit(x, y, batch_size=4, verbose=0)
        elif how == "batch":
            model.train_on_batch(x, y)
        else:
            model.fit(stream, shuffle=False, verbose=0)
    assert optimizer.ledger.total == 0
