"""fit stays Keras's fit, and every step of it is one accounted release."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import BUILDERS, CLASSES, EXAMPLES, FEATURES, compiled, data

import dp_train
from accounting import (
    GaussianEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    UnverifiedSamplingEvent,
)
from dp_train.gradients import choose


@pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)
def test_every_kind_of_model_trains_and_charges_every_step(builder):
    model = compiled(builder(), metrics=["accuracy"])
    x, y = data()
    history = model.fit(x, y, batch_size=7, epochs=2, verbose=0)
    assert set(history.history) == {"loss", "accuracy"}
    (release,) = model.privacy_ledger.releases
    assert release.count == 2 * 9  # ceil(60 / 7) = 9 steps an epoch
    assert release.event == PoissonSampledEvent(7 / EXAMPLES, GaussianEvent(1.0))
    assert release.noise_source == "aes256-ctr"


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_no_drawn_size_makes_a_new_trace(steps_per_execution):
    model = compiled(BUILDERS["unbuilt"](), steps_per_execution=steps_per_execution)
    x, y = data()
    model.fit(x, y, batch_size=1, epochs=2, verbose=0)  # a third of batches is empty
    first = model._privacy.traces
    assert first <= 2
    model.fit(x, y, batch_size=30, epochs=1, verbose=0)
    model.fit(x, y, batch_size=2, epochs=1, verbose=0)
    assert model._privacy.traces == first


def test_second_fit_divides_by_its_own_batch_size(monkeypatch):
    everyone = np.arange(EXAMPLES)
    monkeypatch.setattr(
        dp_train.loader.PoissonSampling, "indices", lambda self: everyone
    )
    x, y = data()
    changes = []
    for batch_size in (10, 30):
        model = compiled(
            keras.Sequential(
                [
                    keras.Input((FEATURES,)),
                    keras.layers.Dense(CLASSES, kernel_initializer="zeros"),
                ]
            ),
            dp_train.DPSGD(0.0, l2_norm_clip=1.0, noise_multiplier=1e-9),
        )
        model.fit(x, y, batch_size=20, epochs=1, verbose=0)
        model.optimizer.learning_rate = 1.0
        model.fit(x, y, batch_size=batch_size, steps_per_epoch=1, verbose=0)
        changes.append(model.get_weights()[0])
    np.testing.assert_allclose(changes[0], 3 * changes[1], rtol=1e-5)


def test_batch_size_defaults_to_32_as_in_keras():
    model = compiled()
    model.fit(*data(), verbose=0)
    (release,) = model.privacy_ledger.releases
    assert release.event.sampling_probability == 32 / EXAMPLES


def test_validation_split_is_not_trained_on():
    model = compiled()
    with pytest.warns(dp_train.PrivacyWarning, match="holds back rows"):
        model.fit(*data(), batch_size=6, validation_split=0.5, verbose=0)
    (release,) = model.privacy_ledger.releases
    assert release.event.sampling_probability == 6 / 30
    assert model._privacy.population == 30


def test_steps_per_epoch_is_what_runs():
    model = compiled()
    model.fit(*data(), batch_size=6, steps_per_epoch=3, epochs=2, verbose=0)
    assert model.privacy_ledger.total == 6


def test_initial_epoch_skips_epochs():
    model = compiled()
    model.fit(*data(), batch_size=6, initial_epoch=2, epochs=3, verbose=0)
    assert model.privacy_ledger.total == 10


def test_class_weight_weights_the_loss_before_clipping():
    x, y = data()
    model = compiled(
        optimizer=dp_train.DPSGD(1.0, l2_norm_clip=1.0, noise_multiplier=1e-9)
    )
    before = model.get_weights()
    model.fit(x, y, class_weight=dict.fromkeys(range(CLASSES), 0.0), verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


def test_dicts_several_outputs_and_their_losses_work():
    a, b = keras.Input((FEATURES,), name="a"), keras.Input((2,), name="b")
    merged = keras.layers.Concatenate()([a, b])
    model = keras.Model(
        {"a": a, "b": b},
        {
            "one": keras.layers.Dense(CLASSES, name="one")(merged),
            "two": keras.layers.Dense(1, name="two")(merged),
        },
    )
    x, y = data()
    model = compiled(
        model,
        loss={
            "one": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "two": "mse",
        },
        loss_weights={"one": 1.0, "two": 0.5},
        metrics={"one": ["accuracy"]},
    )
    history = model.fit(
        {"a": x, "b": x[:, :2]}, {"one": y, "two": x[:, :1]}, batch_size=20, verbose=0
    )
    shown = history.history
    assert set(shown) == {"loss", "one_loss", "two_loss", "one_accuracy"}
    assert shown["two_loss"][0] > 0


def test_empty_batches_leave_the_losses_of_several_outputs_finite():
    inputs = keras.Input((FEATURES,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")}
    model = compiled(keras.Model(inputs, outputs), loss={"a": "mse", "b": "mse"})
    x, _ = data()
    labels = {"a": x[:, :1], "b": x[:, 1:2]}
    history = model.fit(x, labels, batch_size=1, epochs=1, verbose=0)
    assert all(np.isfinite(values).all() for values in history.history.values())


def test_sequences_of_one_length_train_from_an_unbuilt_model():
    def batches():
        for _ in range(3):
            yield np.zeros((2, 5, FEATURES), "float32"), np.zeros(2, "int64")

    dataset = tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec((None, 5, FEATURES), tf.float32),
            tf.TensorSpec((None,), tf.int64),
        ),
    ).apply(tf.data.experimental.assert_cardinality(3))
    model = compiled(
        keras.Sequential([keras.layers.LSTM(2), keras.layers.Dense(CLASSES)])
    )
    model.fit(dataset, verbose=0)
    assert model.privacy_ledger.total == 3


def test_shown_loss_and_metrics_are_those_of_evaluate():
    x, y = data()
    model = compiled(
        optimizer=dp_train.DPSGD(0.0, l2_norm_clip=1.0, noise_multiplier=1.0),
        metrics=["accuracy"],
    )
    shown = model.fit(x, y, batch_size=EXAMPLES, verbose=0).history
    loss, accuracy = model.evaluate(x, y, verbose=0)
    assert shown["loss"][0] == pytest.approx(loss, rel=1e-5)
    assert shown["accuracy"][0] == pytest.approx(accuracy, rel=1e-5)


def test_microbatches_show_the_same_metrics():
    x, y = data()
    model = compiled(
        optimizer=dp_train.DPSGD(0.0, l2_norm_clip=1.0, noise_multiplier=1.0),
        metrics=["accuracy"],
        microbatch_size=7,
    )
    shown = model.fit(x, y, batch_size=EXAMPLES, verbose=0).history
    loss, accuracy = model.evaluate(x, y, verbose=0)
    assert shown["loss"][0] == pytest.approx(loss, rel=1e-5)
    assert shown["accuracy"][0] == pytest.approx(accuracy, rel=1e-5)


@pytest.mark.parametrize("gradients", ["bookkeeping", "vectorized", "loop"])
def test_run_eagerly_trains_too(gradients):
    model = compiled(gradients=gradients, run_eagerly=True)
    model.fit(*data(), batch_size=20, verbose=0)
    assert model.privacy_ledger.total == 3


def test_bfloat16_policy_trains():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = compiled(BUILDERS["sequential"]())
        model.fit(*data(), batch_size=20, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_custom_compute_loss_and_add_loss_train():
    class Custom(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2, activity_regularizer="l2")

        def call(self, x):
            return self.dense(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return keras.ops.mean((y_pred - x[:, :2]) ** 2) + sum(self.losses)

    model = compiled(Custom(), loss=None)
    history = model.fit(data()[0], batch_size=20, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert model.privacy_ledger.total == 3


def test_learning_rate_schedules_and_callbacks_of_keras_work():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    optimizer = dp_train.DPAdamW(
        schedule, weight_decay=0.01, use_ema=True, l2_norm_clip=1.0, noise_multiplier=1
    )
    model = compiled(optimizer=optimizer)
    model.fit(*data(), batch_size=20, epochs=2, verbose=0)
    assert float(optimizer.learning_rate) == pytest.approx(0.1 * 0.9**0.6)
    model = compiled()
    model.fit(
        *data(),
        batch_size=20,
        verbose=0,
        callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.5)],
    )
    assert float(model.optimizer.learning_rate) == 0.5


# ----------------------------------------------------------------- unverified sampling


class Ready(keras.utils.PyDataset):
    """Ready-made batches of 20."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        x, y = data()
        return x[20 * index :][:20], y[20 * index :][:20]


def generator():
    x, y = data()
    for _ in itertools.count():
        yield x[:20], y[:20]


SOURCES = {
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices(data()).batch(20),
    "PyDataset": Ready,
    "generator": generator,
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_ready_made_batches_are_unverified_and_earn_no_amplification(source):
    model = compiled(BUILDERS["unbuilt"]())
    model.fit(source(), steps_per_epoch=3, verbose=0)
    (release,) = model.privacy_ledger.releases
    assert release.count == 3
    assert release.event == UnverifiedSamplingEvent(GaussianEvent(1.0))
    report = model.privacy_report(1e-5)
    assert report.relation is NeighboringRelation.ZERO_OUT
    assert "unverified_sampling" in {caveat.id for caveat in report.caveats}
    assert float(model._privacy.expected_batch_size) == 20


def test_train_on_batch_is_one_unverified_release():
    model = compiled()
    x, y = data()
    model.train_on_batch(x[:8], y[:8])
    (release,) = model.privacy_ledger.releases
    assert (release.count, release.event) == (
        1,
        UnverifiedSamplingEvent(GaussianEvent(1.0)),
    )


def test_expected_batch_size_of_the_optimizer_is_the_divisor_of_ready_made_batches():
    model = compiled(
        optimizer=dp_train.DPSGD(
            0.1, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=64
        )
    )
    model.fit(SOURCES["tf.data"](), verbose=0)
    assert float(model._privacy.expected_batch_size) == 64


# -------------------------------------------------------------------- budget and ledger


def test_target_epsilon_is_met_by_what_was_executed():
    model = compiled(
        optimizer=dp_train.DPAdam(
            0.01, l2_norm_clip=1.0, target_epsilon=3.0, target_delta=1e-5
        )
    )
    model.fit(*data(), batch_size=6, epochs=3, verbose=0)
    spent = model.privacy_report(1e-5).epsilon.upper
    assert 3.0 * (1 - 1e-3) <= spent <= 3.0


def test_second_fit_goes_on_from_what_was_spent_whatever_was_recompiled():
    x, y = data()
    model = compiled()
    model.fit(x, y, batch_size=6, epochs=1, verbose=0)
    spent = model.privacy_report(1e-5).epsilon.upper
    target = spent + 1.0
    optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, target_epsilon=target, target_delta=1e-5
    )
    model.compile(optimizer, loss=model.loss)
    model.fit(x, y, batch_size=6, epochs=2, verbose=0)
    assert model.privacy_ledger.total == 30
    assert optimizer.noise_multiplier > 1.0
    assert target * (1 - 1e-3) <= model.privacy_report(1e-5).epsilon.upper <= target
    with pytest.raises(dp_train.BudgetSpentError, match="Raise target_epsilon"):
        model.fit(x, y, batch_size=6, epochs=2, verbose=0)
    assert model.privacy_ledger.total == 30


def test_interrupted_training_keeps_what_was_spent():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                raise KeyboardInterrupt

    model = compiled()
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data(), batch_size=6, callbacks=[Interrupt()], verbose=0)
    assert model.privacy_ledger.total == 5
    model.fit(*data(), batch_size=6, verbose=0)
    assert model.privacy_ledger.total == 15


def test_chunks_are_used_only_where_a_batch_does_not_fit(monkeypatch):
    model = compiled(gradients="vectorized")
    model.fit(*data(), batch_size=6, verbose=0)
    assert model._privacy.microbatch is None
    row = 4 * sum(np.prod(v.shape) for v in model.trainable_variables)
    monkeypatch.setattr(choose, "MEMORY_BUDGET", int(9 * row))
    model.fit(*data(), batch_size=30, verbose=0)
    assert model._privacy.microbatch == 9
    traces = model._privacy.traces
    model.fit(*data(), batch_size=1, verbose=0)
    assert model._privacy.traces == traces


def test_insecure_noise_marks_ledger_and_report_and_can_be_repeated():
    x, y = data()
    weights = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        model = compiled()
        with dp_train.testing.insecure_noise(seed=7):
            model.train_on_batch(x, y)
        weights.append(model.get_weights()[0])
        assert not model.privacy_ledger.is_private
        assert "NOT PRIVATE" in str(model.privacy_report(1e-5))
    np.testing.assert_array_equal(*weights)


def test_device_noise_is_named_in_the_ledger():
    model = compiled(
        optimizer=dp_train.DPSGD(
            0.1, l2_norm_clip=1.0, noise_multiplier=1.0, noise_source="philox"
        )
    )
    model.fit(*data(), batch_size=20, verbose=0)
    (release,) = model.privacy_ledger.releases
    assert release.noise_source == "philox"


def test_report_is_text_that_names_relation_sampling_and_caveats():
    model = compiled()
    model.fit(*data(), batch_size=6, verbose=0)
    with pytest.warns(dp_train.PrivacyWarning, match="well below"):
        text = str(model.privacy_report(0.5))
    for part in ("add_or_remove_one", "Poisson", "delta_too_large", "aes256-ctr"):
        assert part in text


def test_recurrent_model_takes_sequences_of_other_lengths_later():
    inputs = keras.Input((None, FEATURES))
    model = compiled(
        keras.Model(inputs, keras.layers.Dense(CLASSES)(keras.layers.LSTM(2)(inputs)))
    )
    for length in (3, 5):
        x = np.zeros((4, length, FEATURES), "float32")
        model.fit(x, np.zeros(4, int), batch_size=4, verbose=0)
    assert model.privacy_ledger.total == 2


def test_functions_run_eagerly_after_compile():
    model = compiled()
    model.fit(*data(), batch_size=30, verbose=0)
    model.run_eagerly = True
    model.train_function = None
    model.fit(*data(), batch_size=30, verbose=0)
    assert model.privacy_plan().engine == "bookkeeping"
    assert model.privacy_ledger.total == 4


@pytest.mark.filterwarnings("ignore:Even though the .*eagerly:UserWarning")
def test_functions_that_are_run_eagerly_are_traced_all_the_same():
    tf.config.run_functions_eagerly(True)
    try:
        model = compiled()
        model.fit(*data(), batch_size=30, verbose=0)
    finally:
        tf.config.run_functions_eagerly(False)
    assert model.privacy_plan().engine == "bookkeeping"
    assert model.privacy_ledger.total == 2


def test_boolean_inputs_and_labels_train():
    model = compiled(
        keras.Sequential([keras.Input((FEATURES,), dtype="bool"), Cast()]),
        loss="binary_crossentropy",
    )
    x = data()[0] > 0
    model.fit(x, x[:, 0], batch_size=30, verbose=0)
    assert model.privacy_plan().engine == "bookkeeping"


class Cast(keras.layers.Layer):
    """Probability from booleans."""

    def build(self, shape):
        self.dense = keras.layers.Dense(1, activation="sigmoid")

    def call(self, x):
        return self.dense(keras.ops.cast(x, "float32"))


def test_a_loader_of_another_kind_is_not_taken_for_poisson():
    class Slices(dp_train.PoissonLoader):
        def __getitem__(self, index):
            return tuple(a[:20] for a in self.arrays if a is not None)

    model = compiled()
    model.fit(Slices(*data(), batch_size=20), verbose=0)
    (release,) = model.privacy_ledger.releases
    assert isinstance(release.event, UnverifiedSamplingEvent)


def test_fit_without_epochs_left_makes_no_step():
    model = compiled(
        optimizer=dp_train.DPAdam(
            0.01, l2_norm_clip=1.0, target_epsilon=1.0, target_delta=1e-5
        )
    )
    model.fit(*data(), initial_epoch=2, epochs=2, verbose=0)
    assert model.privacy_ledger.total == 0
