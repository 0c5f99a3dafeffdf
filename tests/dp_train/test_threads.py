"""Several threads: each model trains once at a time, and models do not meet."""

from __future__ import annotations

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import compiled, data

import dp_train
from accounting import UnverifiedSamplingEvent
from dp_train import host
from tests.batteries.threads import assert_one_model_trains_once_at_a_time


def grouped():
    return keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            keras.layers.Conv2D(4, 3, groups=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    ), (6, 6, 4)


def attending():
    inputs = keras.Input((4, 8))
    hidden = keras.layers.MultiHeadAttention(2, 4)(inputs, inputs)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(inputs, keras.layers.Dense(3)(pooled)), (4, 8)


def in_threads(*functions):
    """Runs functions at once; returns what they raised."""
    raised = []

    def run(function):
        try:
            function()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_models_that_are_traced_at_once_do_not_meet():
    models = [compiled(), *(compiled(make()[0]) for make in (grouped, attending) * 2)]
    shapes = [(4,), *(make()[1] for make in (grouped, attending) * 2)]

    def training(model, shape):
        x = np.random.default_rng(0).standard_normal((20, *shape)).astype("float32")
        y = np.zeros(20, int)
        return lambda: model.fit(x, y, batch_size=10, epochs=2, verbose=0)

    pairs = zip(models, shapes, strict=True)
    assert in_threads(*(training(m, s) for m, s in pairs)) == []
    for model in models:
        assert model.privacy_ledger.total == 4
        assert model.privacy_plan().engine == "bookkeeping"


def test_another_thread_keeps_the_converters_of_tensorflow():
    inside, done, errors = threading.Event(), threading.Event(), []

    def waiting(elements):
        inside.set()
        assert done.wait(60)
        return elements[0]

    def other():
        inside.wait(60)
        try:
            assert not host._mapping.is_ours
            x = tf.ones([3, 2, 2])
            product = tf.vectorized_map(lambda t: tf.matmul(t, t), x)
            np.testing.assert_array_equal(product, 2 * np.ones([3, 2, 2]))
        finally:
            done.set()

    def ours():
        tf.function(
            lambda: host.vectorized_map(waiting, [tf.ones([2, 2])]), autograph=False
        ).get_concrete_function()

    errors = in_threads(ours, other)
    assert errors == []


def test_one_model_trains_once_at_a_time():
    assert_one_model_trains_once_at_a_time()


class TrainsOnBatch(keras.callbacks.Callback):
    """One more step in the middle of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            self.model.train_on_batch(*data())


def test_train_on_batch_in_a_callback_is_charged_as_it_is_and_fit_goes_on():
    model = compiled()
    model.fit(*data(), batch_size=20, verbose=0, callbacks=[TrainsOnBatch()])
    counts = {type(r.event): r.count for r in model.privacy_ledger.releases}
    assert counts[UnverifiedSamplingEvent] == 1
    assert sum(counts.values()) == 4
    assert model._privacy.account.sampling is None


def test_train_on_batch_in_a_fit_with_a_budget_is_refused():
    model = compiled(
        optimizer=dp_train.DPSGD(
            0.1, l2_norm_clip=1.0, target_epsilon=3.0, target_delta=1e-3
        )
    )
    with pytest.raises(dp_train.NotPrivateError, match="keeps to a budget"):
        model.fit(*data(), batch_size=20, verbose=0, callbacks=[TrainsOnBatch()])
    assert model.privacy_report(1e-3).epsilon.upper <= 3.0


@pytest.mark.filterwarnings("error::dp_train.PrivacyWarning")
def test_a_warning_that_became_an_error_leaves_no_sampling_behind():
    model = compiled(
        optimizer=dp_train.DPSGD(
            0.1, l2_norm_clip=1.0, target_epsilon=3.0, target_delta=0.5
        )
    )
    with pytest.raises(dp_train.PrivacyWarning, match="not below"):
        model.fit(*data(), batch_size=20, verbose=0)
    assert model._privacy.account.sampling is None
