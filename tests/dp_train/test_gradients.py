"""Every engine gives the clipped sum of the obviously correct loop."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import dp_train
from dp_train.gradients import choose
from tests.batteries import gradient, training
from tests.batteries.cases import CASES

ENGINES = tuple(choose.ENGINES)
MAY_REFUSE = {
    # Its rules read the traced graph; what they do not know, "auto" gives to the next.
    "bookkeeping": ("activity regularizer",),
    # TensorFlow cannot vectorize a recurrent layer under a mask.
    "vectorized": ("embedding with a mask",),
    "loop": (),
}
"""What an engine may refuse by name; everything else it must get right."""
IN_CHUNKS = (
    "dense",
    "convolution",
    "embedding with duplicate ids",
    "several outputs",
    "sample weights",
)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_clipped_sum_equals_the_naive_loop(case, engine):
    if case in MAY_REFUSE[engine]:
        gradient.assert_right_or_refused(case, engine)
    else:
        gradient.assert_clipped_sum_equals_the_loop(case, engine)


@pytest.mark.parametrize("engine", ("auto", "loop"))
@pytest.mark.parametrize("case", CASES)
def test_training_moves_the_weights_by_the_clipped_sum(case, engine):
    gradient.assert_training_applies_the_clipped_sum(case, engine)


@pytest.mark.parametrize("case", IN_CHUNKS)
def test_result_does_not_depend_on_microbatch_size(case):
    gradient.assert_result_does_not_depend_on_microbatch_size(case, "vectorized")


def test_result_of_a_recurrent_layer_does_not_depend_on_microbatch_size():
    # Each trace of an LSTM takes seconds, so only the padded chunks are tried.
    gradient.assert_clipped_sum_equals_the_loop("lstm", "vectorized", 3, subsets=(7,))


def test_result_of_the_loop_does_not_depend_on_microbatch_size():
    gradient.assert_result_does_not_depend_on_microbatch_size("sample weights", "loop")


@pytest.mark.parametrize("engine", ENGINES)
def test_float32_is_accurate_to_five_digits(engine):
    gradient.assert_clipped_sum_equals_the_loop("dense", engine, policy="float32")


@pytest.mark.parametrize("engine", ENGINES)
def test_random_layers_draw_per_example_and_step(engine):
    gradient.assert_random_layers_draw_per_example_and_step(engine)


class ReadsFromOutside(keras.layers.Layer):
    """A gradient of its own for the inputs, and one for a weight that is no input."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones", name="w")

    def call(self, x):
        @tf.custom_gradient
        def scaled(x):
            def gradient(g, variables=()):
                return g * self.w, [tf.reduce_sum(g * x, 0) for _ in variables]

            return x * self.w, gradient

        return scaled(x)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_weight_that_keras_would_train_and_we_would_not_is_refused_by_name(engine):
    own = ReadsFromOutside(name="own")
    model = keras.Sequential([keras.Input((4,)), own, keras.layers.Dense(2)])
    private = training.private(model, engine=engine, loss="mse")
    x, y = np.ones((4, 4), "float32"), np.ones((4, 2), "float32")
    with pytest.raises(dp_train.NotPrivateError, match="own/w.*as arguments"):
        private.fit(x, y, batch_size=2, verbose=0)
    assert private.privacy_ledger.total == 0


def with_a_stop(**options):
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3, name="used")(inputs)
    unused = keras.layers.Dense(3, name="unused", **options)(inputs)
    return keras.Model(inputs, hidden + keras.ops.stop_gradient(unused))


@pytest.mark.parametrize("engine", ["plain fit", "custom loop", *ENGINES])
@pytest.mark.parametrize("rate", [0.5, 0.0], ids=["with decay", "without decay"])
def test_weight_that_no_loss_reaches_moves_by_its_regularizer_only(engine, rate):
    # Momentum and weight decay would carry noise on, or shrink what nobody trains.
    inner = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1)
    optimizer = dp_train.DPOptimizer(
        inner, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=2
    )
    penalty = keras.regularizers.L2(rate) if rate else None
    model = with_a_stop(kernel_regularizer=penalty)
    x, y = np.ones((2, 4), "float32"), np.ones((2, 3), "float32")
    if engine in ENGINES:
        model = dp_train.make_private(model, gradients=engine)
    elif engine == "custom loop":
        model = dp_train.make_private(model)
    model.compile(optimizer, loss="mse")
    before = {v.path: v.numpy() for v in model.trainable_variables}
    if engine == "custom loop":
        clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
        optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    else:
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
        model.fit(batches, shuffle=False, verbose=0)
    after = {v.path: v.numpy() for v in model.trainable_variables}
    assert np.all(after["used/kernel"] != before["used/kernel"])
    np.testing.assert_array_equal(after["unused/bias"], before["unused/bias"])
    kernel = before["unused/kernel"]
    kept = kernel * (1 - 0.1 * 2 * rate) * (1 - 0.1 * 0.1 * (rate > 0))
    np.testing.assert_allclose(after["unused/kernel"], kept, rtol=1e-2 if rate else 0)


def test_loss_that_reaches_no_weight_is_refused():
    inputs = keras.Input((4,))
    stopped = keras.ops.stop_gradient(keras.layers.Dense(3)(inputs))
    model = training.private(keras.Model(inputs, stopped), loss="mse")
    with pytest.raises(dp_train.NotPrivateError, match="reaches none of the 2 train"):
        model.train_on_batch(np.ones((4, 4)), np.ones((4, 3)))
    assert model.privacy_ledger.total == 0


def test_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'vectorized'.*'ghost'.*Use 'auto'"):
        dp_train.make_private(keras.Sequential(), gradients="ghost")


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "all", None])
def test_microbatch_size_that_is_no_count_is_refused(size):
    with pytest.raises(ValueError, match="microbatch_size must be 'auto' or a"):
        dp_train.make_private(keras.Sequential(), microbatch_size=size)


def test_result_does_not_depend_on_the_memory_budget(monkeypatch):
    # Not even one row fits, so each is a chunk of its own.
    monkeypatch.setattr(choose, "MEMORY_BUDGET", 1)
    gradient.assert_clipped_sum_equals_the_loop("sample weights", "vectorized")


def test_another_batch_size_in_a_second_fit_is_right():
    name = "dense"
    with training.without_noise():
        expected = gradient.Expected(name, "float32")
        model = expected.model(learning_rate=training.LEARNING_RATE)
        for drawn, batch_size in ((range(6), 3), (range(2), 6), (range(7), 1)):
            released = training.released_sum(
                model, expected.rows, list(drawn), batch_size
            )
            gradient.assert_close(
                released, expected.clipped_sum(drawn), 1e-5, f"batch size {batch_size}"
            )


def test_battery_of_gradients_sees_an_error_of_its_tolerance():
    expected = [np.array([1.0, -2.0]), np.array([[0.5]])]
    gradient.assert_close(expected, expected, 1e-10, "equal")
    off = [expected[0], expected[1] + 3e-10]
    with pytest.raises(AssertionError, match="off by 1.5e-10"):
        gradient.assert_close(off, expected, 1e-10, "planted")
    with pytest.raises(AssertionError, match="shapes differ"):
        gradient.assert_close(expected[:1], expected, 1e-10, "planted")
    with pytest.raises(AssertionError, match="off by nan"):
        gradient.assert_close([off[0] * np.nan, off[1]], expected, 1e-10, "planted")
