"""What an engine or the library cannot compute is left to another, or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import compiled
from tensorflow.python.framework import function

import dp_train
from dp_train import host
from tests.batteries import training


def transcriber():
    inputs = keras.Input((10, 4))
    return keras.Model(inputs, layers.Dense(5, "softmax")(inputs))


def transcripts():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((8, 10, 4)).astype("float32")
    return x, generator.integers(1, 5, (8, 3))


def of_each_alone(model, rows, l2_norm_clip):
    """Sum of the gradients of Keras's own CTC, each clipped, eagerly."""
    total = 0.0
    for x, y in zip(*rows, strict=True):
        with tf.GradientTape() as tape:
            loss = keras.losses.CTC()(y[None], model(x[None]))
        gradients = tape.gradient(loss, model.trainable_variables)
        flat = np.concatenate([np.ravel(g) for g in gradients])
        total += flat * min(1.0, l2_norm_clip / np.linalg.norm(flat))
    return total


@pytest.mark.parametrize(
    "path", ["auto", "bookkeeping", "vectorized", "loop", "custom loop", "plain"]
)
def test_connectionist_temporal_classification_gives_the_gradient_of_each(path):
    rows, clip = transcripts(), 2.0
    model = transcriber()
    expected = of_each_alone(model, rows, clip)
    optimizer = dp_train.DPSGD(
        1.0, l2_norm_clip=clip, noise_multiplier=0.0, expected_batch_size=8
    )
    if path != "plain":
        engine = "auto" if path == "custom loop" else path
        model = dp_train.make_private(model, gradients=engine)
    model.compile(optimizer, loss=keras.losses.CTC())
    batch = tf.data.Dataset.from_tensors(rows)
    before = model.get_weights()
    with training.without_noise():
        if path == "custom loop":
            clipped = dp_train.clipped_gradients(model, *rows, l2_norm_clip=clip)
            optimizer.apply_clipped_sum(clipped, model.trainable_variables)
        else:
            model.fit(batch, shuffle=False, verbose=0)
    moved = [b - a for a, b in zip(model.get_weights(), before, strict=True)]
    actual = 8 * np.concatenate([np.ravel(m) for m in moved])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * clip)
    if path == "auto":
        assert model.privacy_plan().engine == "bookkeeping"


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("is_each_its_own", [False, True])
def test_padding_is_mapped_with_its_value(value, is_each_its_own):
    rows = tf.reshape(tf.range(6.0), (3, 2))

    def padded(row):
        fill = row[0] if is_each_its_own else value
        return tf.pad(row, [[1, 2]], constant_values=fill)

    mapped = host.vectorized_map(lambda parts: padded(parts[0]), [rows])
    np.testing.assert_array_equal(mapped, [padded(row) for row in rows])


def test_what_tensorflow_has_no_map_for_is_told_as_that():
    defined = function.Defun(tf.float32)(lambda x: x)

    def branch(elements):
        (x,) = elements
        return tf.raw_ops.If(
            cond=True,
            input=[x],
            Tout=[x.dtype],
            then_branch=defined,
            else_branch=defined,
        )

    @tf.function(autograph=False)
    def mapped():
        return host.vectorized_map(branch, [tf.ones(3)])

    with pytest.raises(NotImplementedError, match="no map over examples"):
        mapped()


def test_error_of_the_users_own_in_a_loss_is_told_as_it_is():
    def broken(y, y_pred):
        return y.no_such_method()

    model = compiled(transcriber(), loss=broken)
    with pytest.raises(AttributeError, match="no_such_method"):
        model.fit(*transcripts(), batch_size=4, verbose=0)


class FailsWhileDrawing(layers.Layer):
    """Shapes that no map can stack, and only where random layers are on."""

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
    assert "Where may have another number of results" in reasons["vectorized"]
    assert model.privacy_plan().engine == "loop"


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


class DeepSoftmax(layers.Layer):
    """A softmax of five axes, in a layer whose weight no rule knows."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), name="w")

    def call(self, x):
        x = keras.ops.reshape(keras.ops.maximum(x, self.w), (-1, 2, 1, 2, 3))
        return keras.ops.reshape(self.function(x), (-1, 12))


@pytest.mark.parametrize("function", [tf.nn.softmax, tf.nn.log_softmax])
@pytest.mark.parametrize("engine", ["bookkeeping", "vectorized"])
def test_softmax_of_five_axes_is_mapped_over_examples(function, engine):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((5, 12)).astype("float32")
    y = generator.standard_normal((5, 2)).astype("float32")
    sums = []
    for gradients in (engine, "loop"):
        keras.utils.set_random_seed(0)
        stack = [keras.Input((12,)), DeepSoftmax(function), layers.Dense(2)]
        model = compiled(keras.Sequential(stack), gradients=gradients, loss="mse")
        clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=0.5)
        sums.append(np.concatenate([np.ravel(g) for g in clipped.gradients]))
    np.testing.assert_allclose(*sums, rtol=0, atol=1e-5 * np.abs(sums[1]).max())
