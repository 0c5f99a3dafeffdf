"""Epsilon while training, and a stop that is exact."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import compiled, data, sequential

import dp_train
from accounting import (
    DefaultAccountant,
    GaussianEvent,
    Ledger,
    PoissonSampledEvent,
    compute_dp_sgd_privacy,
)
from dp_train.callbacks import _Reading


def epsilon_after(steps, sampling_probability=0.1, delta=1e-5):
    event = PoissonSampledEvent(sampling_probability, GaussianEvent(1.0))
    return DefaultAccountant().compose(event, steps).epsilon(delta).upper


@pytest.fixture
def patient(monkeypatch):
    """Every step is read, however long it takes."""
    monkeypatch.setattr(_Reading, "AT_ONCE", np.inf)


class Recorder(keras.callbacks.Callback):
    """What later callbacks see."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(logs.get("epsilon"))


def test_every_later_callback_sees_the_epsilon_of_what_was_executed(patient):
    recorder, model = Recorder(), compiled()
    history = model.fit(
        *data(),
        batch_size=6,
        epochs=2,
        verbose=0,
        callbacks=[recorder, dp_train.EpsilonLogger(1e-5)],
    )
    expected = [epsilon_after(i + 1) for i in range(20)]
    assert recorder.batches == pytest.approx(expected, rel=1e-2)
    assert history.history["epsilon"] == pytest.approx(
        [expected[9], expected[19]], rel=1e-3
    )


def test_epsilon_is_a_column_of_the_progress_bar(capsys):
    compiled().fit(
        *data(), batch_size=6, verbose=2, callbacks=[dp_train.EpsilonLogger(1e-5)]
    )
    printed = re.search(r"epsilon: ([0-9.]+)", capsys.readouterr().out)
    assert float(printed[1]) == pytest.approx(epsilon_after(10), rel=1e-3)


def scalars(directory):
    """{step: value} of privacy/epsilon in the event files under a directory."""
    found = {}
    for path in directory.glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                assert value.tag == "privacy/epsilon"
                assert value.metadata.plugin_data.plugin_name == "scalars"
                found[event.step] = float(tf.make_ndarray(value.tensor))
    return found


@pytest.mark.parametrize(
    ("update_freq", "steps"), [("epoch", [10, 20]), (4, [4, 8, 10, 14, 18, 20])]
)
def test_event_files_hold_epsilon_against_releases(
    tmp_path, update_freq, steps, patient
):
    logger = dp_train.EpsilonLogger(1e-5, log_dir=tmp_path, update_freq=update_freq)
    compiled().fit(*data(), batch_size=6, epochs=2, verbose=0, callbacks=[logger])
    expected = {step: epsilon_after(step) for step in steps}
    assert scalars(tmp_path) == pytest.approx(expected, rel=1e-2)


def test_event_files_are_written_without_tensorboard_installed(tmp_path):
    script = f"""
import sys
for name in ("tensorboard", "tensorboard.plugins", "tensorboard.summary"):
    sys.modules[name] = None
import keras, numpy as np, dp_train
model = dp_train.make_private(keras.Sequential([keras.layers.Dense(1)]))
model.compile(dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0), loss="mse")
model.fit(np.zeros((10, 2)), np.zeros((10, 1)), batch_size=5, verbose=0,
          callbacks=[dp_train.EpsilonLogger(1e-5, log_dir={json.dumps(str(tmp_path))})])
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert list(scalars(tmp_path)) == [2]


def test_update_freq_is_checked():
    with pytest.raises(ValueError, match="Use 'epoch'"):
        dp_train.EpsilonLogger(1e-5, update_freq=0)


def test_callbacks_refuse_a_plain_model():
    for callback in (dp_train.EpsilonLogger(1e-5), dp_train.BudgetStop(1.0, 1e-5)):
        model = sequential()
        model.compile("sgd", loss="mse")
        with pytest.raises(dp_train.NotPrivateError, match="make_private"):
            model.fit(data()[0], np.zeros((60, 3)), callbacks=[callback], verbose=0)


@pytest.mark.parametrize("steps_per_execution", [1, 4, 16])
@pytest.mark.parametrize("limit", [1, 6, 13])
def test_budget_stop_makes_exactly_the_steps_that_fit(steps_per_execution, limit):
    model = compiled(steps_per_execution=steps_per_execution)
    budget = (epsilon_after(limit) + epsilon_after(limit + 1)) / 2
    model.fit(
        *data(),
        batch_size=6,
        epochs=4,
        verbose=0,
        callbacks=[dp_train.BudgetStop(budget, 1e-5)],
    )
    assert model.privacy_ledger.total == limit
    assert int(model.optimizer.iterations) == limit
    assert model.privacy_report(1e-5).epsilon.upper <= budget


def test_budget_stop_counts_what_was_spent_before():
    model = compiled()
    stop = dp_train.BudgetStop(epsilon_after(25) * (1 + 1e-9), 1e-5)
    model.fit(*data(), batch_size=6, epochs=2, verbose=0, callbacks=[stop])
    model.fit(*data(), batch_size=6, epochs=2, verbose=0, callbacks=[stop])
    assert model.privacy_ledger.total == 25
    with pytest.raises(dp_train.BudgetSpentError, match="Raise the budget"):
        model.fit(*data(), batch_size=6, verbose=0, callbacks=[stop])
    assert model.privacy_ledger.total == 25


def test_fit_after_budget_stop_is_not_limited_by_it():
    model = compiled()
    stop = dp_train.BudgetStop(epsilon_after(3) * (1 + 1e-9), 1e-5)
    model.fit(*data(), batch_size=6, verbose=0, callbacks=[stop])
    model.fit(*data(), batch_size=6, verbose=0)
    assert model.privacy_ledger.total == 13


class NoiseSchedule(keras.callbacks.Callback):
    """Sets the noise of each batch."""

    def __init__(self, noise_multipliers):
        super().__init__()
        self.noise_multipliers = noise_multipliers

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.noise_multiplier = self.noise_multipliers[batch]


def test_noise_that_a_callback_sets_is_added_and_charged():
    model = compiled()
    schedule = NoiseSchedule([1.0, 1.0, 2.0, 0.5])
    with pytest.warns(dp_train.PrivacyWarning, match="planned before the first"):
        model.fit(
            *data(), batch_size=6, steps_per_epoch=4, verbose=0, callbacks=[schedule]
        )
    releases = model.privacy_ledger.releases
    charged = {r.event.event.noise_multiplier: r.count for r in releases}
    assert charged == {1.0: 2, 2.0: 1, 0.5: 1}


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_budget_stop_refuses_less_noise_than_it_counts_on(steps_per_execution):
    model = compiled(steps_per_execution=steps_per_execution)
    noise = np.where(np.arange(12) == 6, 0.3, 1.0)
    callbacks = [dp_train.BudgetStop(epsilon_after(9), 1e-5), NoiseSchedule(noise)]
    with (
        pytest.warns(dp_train.PrivacyWarning, match="planned before the first"),
        pytest.raises(dp_train.NotPrivateError, match="counts on at least 1 "),
    ):
        model.fit(
            *data(), batch_size=6, steps_per_epoch=12, verbose=0, callbacks=callbacks
        )
    assert model.privacy_ledger.total == 6
    model.optimizer.noise_multiplier = 0.3
    model.fit(*data(), batch_size=6, steps_per_epoch=2, verbose=0)
    assert model.privacy_ledger.total == 8


def test_metrics_at_the_stop_are_those_of_executed_steps():
    model = compiled(
        optimizer=dp_train.DPSGD(0.0, l2_norm_clip=1.0, noise_multiplier=1.0),
        steps_per_execution=16,
    )
    stop = dp_train.BudgetStop(epsilon_after(2, 1.0) * (1 + 1e-9), 1e-5)
    history = model.fit(
        *data(), batch_size=60, steps_per_epoch=9, verbose=0, callbacks=[stop]
    )
    assert model.privacy_ledger.total == 2
    loss = model.evaluate(*data(), verbose=0)
    assert history.history["loss"][0] == pytest.approx(loss, rel=1e-5)


def test_ledger_file_gives_the_epsilon_of_callback_and_report(tmp_path, capsys):
    logger, model = dp_train.EpsilonLogger(1e-5), compiled()
    history = model.fit(*data(), batch_size=6, verbose=0, callbacks=[logger])
    path = tmp_path / "ledger.json"
    path.write_text(model.privacy_ledger.to_json(), encoding="utf-8")
    capsys.readouterr()

    arguments = [f"--ledger={path}", "--delta=1e-5", "--json"]
    assert compute_dp_sgd_privacy.main(arguments) == 0

    epsilon = json.loads(capsys.readouterr().out)["epsilon"]
    assert epsilon == model.privacy_report(1e-5).epsilon.to_dict()
    assert epsilon["upper"] == logger.epsilon()
    assert epsilon["estimate"] == pytest.approx(history.history["epsilon"][0], rel=1e-3)


class Clock:
    """Time that passes by a given amount with every look."""

    def __init__(self):
        self.now, self.tick = 0.0, 0.0

    def __call__(self):
        self.now += self.tick
        return self.now


def test_slow_reading_is_continued_upward_and_takes_a_small_share_of_time():
    clock, ledger = Clock(), Ledger()
    event = PoissonSampledEvent(0.01, GaussianEvent(1.0))
    reading = _Reading(1e-5, clock)
    for count in range(1, 1001):
        ledger.charge(event, l2_norm_clip=1.0, noise_source="secure")
        clock.tick = 0.02  # a reading takes 0.02 s, a step of training 0.2 s
        epsilon = reading.cheap(ledger)
        clock.tick = 0.0
        clock.now += 0.2
        if count % 50 == 1:
            truth = epsilon_after(count, 0.01)
            assert truth * 0.998 <= epsilon
            if count > 400:
                assert epsilon <= truth * 1.02
    assert 0.25 < reading._taken < 0.01 * clock.now
    assert reading.exact(ledger) == pytest.approx(epsilon_after(1000, 0.01), rel=1e-3)


def test_reading_without_time_left_errs_upward():
    clock, ledger = Clock(), Ledger()
    event = PoissonSampledEvent(0.01, GaussianEvent(1.0))
    reading = _Reading(1e-5, clock)
    clock.tick = 0.1
    for _ in range(300):
        ledger.charge(event, l2_norm_clip=1.0, noise_source="secure")
        epsilon = reading.cheap(ledger)
    assert epsilon > epsilon_after(300, 0.01)


def test_epsilon_after_an_epoch_is_the_certified_bound_of_the_report(tmp_path):
    """Of releases of several kinds too: ready-made batches, then sampled ones."""
    logger, model = dp_train.EpsilonLogger(1e-5, log_dir=tmp_path), compiled()
    history = model.fit(*data(), batch_size=6, verbose=0, callbacks=[logger])
    assert history.history["epsilon"] == [model.privacy_report(1e-5).epsilon.upper]
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(6, True).take(3)
    history = model.fit(batches, verbose=0, callbacks=[logger])
    report = model.privacy_report(1e-5)
    assert history.history["epsilon"] == [report.epsilon.upper] == [logger.epsilon()]


@pytest.mark.parametrize("target", [0.7, 3.0])
def test_epsilon_at_the_end_of_a_fit_is_never_above_its_target(target):
    logger = dp_train.EpsilonLogger(1e-5)
    optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, target_epsilon=target, target_delta=1e-5
    )
    model = compiled(optimizer=optimizer)
    history = model.fit(*data(), batch_size=6, epochs=2, verbose=0, callbacks=[logger])
    assert 0.99 * target < history.history["epsilon"][-1] <= target

    stop = dp_train.BudgetStop(target, 1e-5)
    model = compiled(
        optimizer=dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=2)
    )
    history = model.fit(
        *data(), batch_size=6, epochs=4, verbose=0, callbacks=[logger, stop]
    )
    assert all(value <= target for value in history.history["epsilon"])


def test_report_names_deltas_that_are_not_its_own():
    model = compiled()
    model.fit(
        *data(),
        batch_size=6,
        verbose=0,
        callbacks=[dp_train.EpsilonLogger(1e-5), dp_train.BudgetStop(50.0, 1e-4)],
    )
    caveats = {c.id: c.text for c in model.privacy_report(1e-5).caveats}
    assert "Here: BudgetStop at delta 0.0001." in caveats["several_deltas"]
    assert "EpsilonLogger" not in caveats["several_deltas"]


def test_reading_notices_a_new_kind_of_release_at_once():
    clock, ledger = Clock(), Ledger()
    reading = _Reading(1e-5, clock)
    quiet = PoissonSampledEvent(0.01, GaussianEvent(1.0))
    ledger.charge(quiet, l2_norm_clip=1.0, noise_source="secure", count=10_000)
    reading.cheap(ledger)
    ledger.charge(GaussianEvent(1.0), l2_norm_clip=1.0, noise_source="secure")
    expected = DefaultAccountant().compose_ledger(ledger).epsilon(1e-5).upper
    assert reading.cheap(ledger) == pytest.approx(expected, rel=1e-3)
