"""The white list of what a traced step may do besides computing."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import compiled, data

import dp_train
from dp_train import effects, host
from dp_train.errors import NotPrivateError
from tests.batteries.effects import (
    KEEPERS,
    PATHS,
    READERS,
    WAYS,
    assert_metrics_steer_nothing,
    assert_no_state_is_kept_on_the_side,
    assert_rows_steer_nothing_behind_the_clip,
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", ["fit", "custom loop", "plain fit"])
def test_no_state_is_kept_on_the_side(path, way):
    assert_no_state_is_kept_on_the_side(path, way)


@pytest.mark.parametrize("path", ["eager fit", "vectorized", "loop"])
def test_no_path_lets_python_keep_a_state(path):
    assert_no_state_is_kept_on_the_side(path, "py_function")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", PATHS)
def test_metrics_steer_nothing(path, reader):
    assert_metrics_steer_nothing(path, reader)


@pytest.mark.parametrize("reader", KEEPERS)
@pytest.mark.parametrize("path", ["fit", "plain fit"])
def test_rows_steer_nothing_behind_the_clip(path, reader):
    assert_rows_steer_nothing_behind_the_clip(path, reader)


def test_rows_steer_no_penalty_of_a_custom_loop():
    assert_rows_steer_nothing_behind_the_clip("custom loop", "regularizer")


class Hoards(keras.metrics.Metric):
    """Writes the mean of the labels into a weight of the model itself."""

    def __init__(self, weight, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.weight.assign(keras.ops.mean(keras.ops.cast(y_true, "float32")))

    def result(self):
        return keras.ops.convert_to_tensor(self.weight)


def test_a_metric_writes_into_no_weight_of_the_model_itself():
    class Owner(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)
            self.kept = self.add_weight(shape=(), trainable=False, name="kept")

        def call(self, x):
            return self.dense(x)

    built = Owner()
    model, before = compiled(built, metrics=[Hoards(built.kept)]), float(built.kept)
    with pytest.raises(NotPrivateError, match="kept"):
        model.fit(*data(), batch_size=30, verbose=0)
    assert float(built.kept) == before


def test_files_are_neither_written_nor_read_in_a_step(tmp_path):
    def printed(x):
        tf.print(tf.reduce_mean(x), output_stream=f"file://{tmp_path}/kept")
        return x

    def read(x):
        text = tf.io.read_file(f"{tmp_path}/kept")
        return x * tf.strings.to_number(text)

    with pytest.raises(NotPrivateError, match="PrintV2 to a file"):
        check(of(printed, ROWS))
    with pytest.raises(NotPrivateError, match="ReadFile"):
        check(of(read, ROWS))


def of(function, *specs):
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    return graph.get_operations()


def check(operations, **arguments):
    effects.check(operations, what=lambda effect: "The step", **arguments)


ROWS = tf.TensorSpec([None, 2])


def test_effects_are_found_in_functions_that_functions_call():
    variable = tf.Variable(0.0)

    @tf.function(autograph=False)
    def inner(x):
        return tf.while_loop(
            lambda i: i < 3.0, lambda i: [i + variable.assign_add(1.0)], [x]
        )[0]

    def outer(x):
        total = tf.reduce_sum(x)
        return tf.cond(total > 0.0, lambda: inner(total), lambda: total)

    operations = of(outer, ROWS)
    (write, *_) = [e for e in host.effects(operations) if "Assign" in e.type]
    assert write.op.type == "If"
    assert write.handles == (id(variable.handle),)
    check(operations, may_write=[variable])
    with pytest.raises(NotPrivateError, match="writes to a variable .AssignAdd"):
        check(operations, may_write=[tf.Variable(0.0)])


def test_prints_assertions_and_look_ups_are_let_through():
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer([1, 2], [3, 4]), 0
    )

    def step(x):
        tf.print(tf.shape(x))
        tf.debugging.assert_positive(tf.shape(x)[0])
        return table.lookup(tf.cast(x, tf.int32))

    check(of(step, ROWS))


def test_own_host_calls_are_known_and_others_are_not():
    def own(x):
        return host.host_call(lambda: np.float32(1.0), [], tf.float32) + x

    def other(x):
        return tf.numpy_function(lambda: np.float32(1.0), [], tf.float32) + x

    check(of(own, ROWS))
    with pytest.raises(NotPrivateError, match="runs Python code .PyFunc"):
        check(of(other, ROWS))


def test_an_op_that_is_not_known_is_refused():
    def step(x):
        tf.raw_ops.Timestamp()
        return x

    with pytest.raises(NotPrivateError, match="not only compute .Timestamp"):
        check(of(step, ROWS))


def test_what_a_custom_loop_depends_on_must_be_a_weight_or_the_optimizers():
    rate = tf.Variable(0.1)
    model = compiled(
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]),
        dp_train.DPOptimizer(
            keras.optimizers.SGD(lambda: rate), l2_norm_clip=1.0, noise_multiplier=1.0
        ),
    )
    clipped = dp_train.clipped_gradients(model, *data(), l2_norm_clip=1.0)
    before = model.get_weights()
    with pytest.raises(NotPrivateError, match=r"(?s)neither a weight.*learning_rate"):
        model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    assert model.privacy_ledger.total == 0
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_a_variable_that_only_callbacks_set_may_be_read_in_fit():
    annealed = tf.Variable(0.5)
    model = compiled(
        loss=lambda y_true, y_pred: annealed * keras.ops.mean(y_pred, axis=-1)
    )
    model.fit(*data(), batch_size=30, verbose=0)
    assert model.privacy_ledger.total == 2
