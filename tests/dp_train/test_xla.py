"""jit_compile=True: the clipped sum of a chunk is one XLA program, the step is not."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import compiled, data

import dp_train
from dp_train.gradients.compiled import fixed_rows
from tests.batteries import gradient, reference, training

CASES = (
    "dense",
    "convolution",
    "embedding with duplicate ids",
    "lstm",
    "attention",
    "layer normalization",
    "several outputs",
    "sample weights",
    "loss under a mask",
)


@pytest.mark.parametrize("name", CASES)
def test_compiled_clipped_sum_equals_the_naive_loop(name):
    policy = "float64"
    with gradient.precision(policy):
        expected = gradient.Expected(name, policy)
        model = expected.model(jit_compile=True)
        for count in (gradient.EXAMPLES, 1, 0):
            rows = reference.picked(expected.rows, slice(0, count))
            clipped = dp_train.clipped_gradients(
                model, *rows, l2_norm_clip=expected.l2_norm_clip
            )
            gradient.assert_close(
                clipped.gradients,
                expected.clipped_sum(range(count)),
                gradient.TOLERANCE[policy],
                f"{name}, {count} rows",
            )
    assert "compiled by XLA" in str(model.privacy_plan())


def test_training_moves_the_weights_by_the_clipped_sum_of_any_draw():
    name = "dense"
    with training.without_noise():
        expected = gradient.Expected(name, "float32")
        model = expected.model(learning_rate=training.LEARNING_RATE, jit_compile=True)
        # 5 rows fit into a program for B = 2; 7 take two runs of it.
        assert fixed_rows(None, 2) == 5
        for drawn in (range(5), range(7), [5], []):
            released = training.released_sum(model, expected.rows, list(drawn), 2)
            gradient.assert_close(
                released, expected.clipped_sum(list(drawn)), 1e-5, f"{drawn}"
            )
        assert model._privacy.plan.program.rows == 5
        assert model._privacy.traces == 1


def test_no_step_compiles_anew():
    x, y = data()
    model = compiled(
        jit_compile=True,
        optimizer=dp_train.DPAdam(0.1, l2_norm_clip=1.0, noise_multiplier=1.0),
    )
    start = time.perf_counter()
    model.fit(x, y, batch_size=10, epochs=1, verbose=0)
    first, traces = time.perf_counter() - start, model._privacy.traces
    start = time.perf_counter()
    model.fit(x, y, batch_size=10, epochs=3, verbose=0)  # 18 draws of other sizes
    rest = time.perf_counter() - start
    assert model._privacy.traces == traces
    # The program alone takes half a second to compile, a step milliseconds.
    assert rest < first / 2, f"18 steps took {rest:.2f} s, the first fit {first:.2f} s."


def test_metrics_do_not_count_rows_that_fill_up():
    x, y = data()
    histories = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(3)
        model = compiled(jit_compile=jit_compile, metrics=["accuracy"])
        with training.drawing(np.arange(11)):
            fitted = model.fit(x, y, batch_size=10, steps_per_epoch=1, verbose=0)
        histories.append(fitted.history)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(*(h[name] for h in histories), rtol=1e-6)


def test_an_empty_batch_is_a_noised_step():
    model = compiled(jit_compile=True)
    with training.drawing([]):
        model.fit(*data(), batch_size=10, steps_per_epoch=1, verbose=0)
    before = model.get_weights()
    with training.drawing([]):
        model.fit(*data(), batch_size=10, steps_per_epoch=1, verbose=0)
    assert all(np.all(a != b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.privacy_ledger.total == 2


def test_random_layers_draw_per_example_and_step():
    with training.without_noise():
        gradient.assert_random_layers_draw_per_example_and_step(
            "bookkeeping", jit_compile=True
        )


def test_another_batch_size_keeps_the_program_unless_it_is_far_off():
    x, y = data()
    model = compiled(jit_compile=True)
    rows = []
    for batch_size in (10, 20, 10, 60):
        model.fit(x, y, batch_size=batch_size, steps_per_epoch=1, verbose=0)
        rows.append(model._privacy.plan.program.rows)
    assert rows == [17, 17, 17, 76]


def test_the_smallest_microbatch_is_compiled_too():
    model = compiled(jit_compile=True, microbatch_size=1)
    model.fit(*data(), batch_size=10, steps_per_epoch=1, verbose=0)
    assert model._privacy.plan.program.rows == 3


class Length(layers.Layer):
    """A TensorFlow op that XLA cannot compile."""

    def call(self, x):
        return x / (1 + tf.math.reduce_euclidean_norm(x, -1, keepdims=True))


def test_what_xla_cannot_compile_runs_without_it_and_says_so():
    def model():
        keras.utils.set_random_seed(1)
        return keras.Sequential([keras.Input((4,)), Length(), layers.Dense(3)])

    x, y = data()
    with pytest.warns(UserWarning, match=r"not used.*EuclideanNorm.*Leave jit"):
        refused = compiled(model(), jit_compile=True)
        sums = dp_train.clipped_gradients(refused, x, y, l2_norm_clip=0.1).gradients
    assert "not compiled by XLA: " in str(refused.privacy_plan())
    expected = dp_train.clipped_gradients(compiled(model()), x, y, l2_norm_clip=0.1)
    gradient.assert_close(sums, [np.asarray(g) for g in expected.gradients], 0, "sums")
    refused.fit(x, y, batch_size=10, verbose=0)  # the warning came once


def test_evaluate_and_predict_use_xla_where_keras_would():
    x, y = data()
    model = compiled(jit_compile=True)
    model.fit(x, y, batch_size=20, verbose=0)
    assert model.jit_compile
    plain = model.evaluate(x, y, verbose=0)
    assert model.test_function is not None
    np.testing.assert_allclose(
        plain, keras.ops.mean(model.loss(y, model.predict(x, verbose=0))), rtol=1e-5
    )
    assert not compiled().jit_compile
