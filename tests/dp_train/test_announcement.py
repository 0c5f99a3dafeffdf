"""A fit says beforehand what it will do, and what ready-made batches cost a target."""

import logging
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import compiled, data

import accounting
import dp_train
from dp_train.announcement import delta_of


def aimed(**arguments):
    return dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, target_epsilon=3.0, target_delta=1e-5, **arguments
    )


def lines(text):
    return [line for line in text.splitlines() if line.startswith("dp_train: ")]


def test_a_fit_says_sampling_noise_and_budget(capsys):
    model = compiled()
    model.fit(*data(), batch_size=6, epochs=2, verbose=2)
    (line,) = lines(capsys.readouterr().out)
    assert "20 steps of Gaussian noise, multiplier 1, Poisson-sampled with" in line
    assert "probability 0.1, clip norm 1; of epsilon at delta 0.01 nothing" in line
    announced = float(re.search(r"about ([0-9.]+) will be at the end", line)[1])
    accountant = accounting.PldAccountant().compose_ledger(model.privacy_ledger)
    epsilon = accountant.epsilon(0.01)
    assert epsilon.lower * 0.998 <= announced <= epsilon.upper * 1.002
    model.fit(*data(), batch_size=6, verbose=2)
    assert f"about {announced:g} is spent" in lines(capsys.readouterr().out)[0]


def test_a_silent_fit_logs_the_line_only(capsys, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        compiled(optimizer=aimed()).fit(*data(), batch_size=6, verbose=0)
    assert lines(capsys.readouterr().out) == []
    (line,) = lines("\n".join(caplog.messages))
    assert line.endswith("of a target of 3.")


@pytest.mark.parametrize("target", [0.7, 2.99996, 3.0])
def test_with_a_target_the_line_says_what_is_promised(capsys, target):
    optimizer = dp_train.DPSGD(
        0.1,
        l2_norm_clip=1.0,
        target_epsilon=target,
        target_delta=1e-5,
        target_steps=20,
    )
    model = compiled(optimizer=optimizer)
    model.fit(*data(), batch_size=6, verbose=2)
    model.fit(*data(), batch_size=6, verbose=2)
    first, second = lines(capsys.readouterr().out)
    assert "nothing is spent" in first
    (half,) = re.findall(r"at most ([0-9.]+) will be at the end", first)
    assert f"at most {half} is spent" in second
    (announced,) = re.findall(r"at most ([0-9.]+) will be at the end", second)
    promised = model.privacy_report(1e-5).epsilon.upper
    assert float(half) < float(announced) <= target
    assert float(announced) == pytest.approx(promised, rel=1e-5)


def test_the_fit_of_a_plain_model_says_it_too(capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss)
    dataset = dp_train.PoissonLoader(*data(), batch_size=6).dataset_for(optimizer)
    model.fit(dataset, epochs=3, shuffle=False, verbose=2)
    (line,) = lines(capsys.readouterr().out)
    assert "30 steps of Gaussian noise, multiplier 1, Poisson-sampled" in line
    assert optimizer.ledger.total == 30


def test_a_target_on_ready_made_batches_warns_with_both_figures():
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(2)
    model = compiled(optimizer=aimed())
    with pytest.warns(dp_train.PrivacyWarning, match="Pass arrays") as told:
        model.fit(batches, verbose=0)
    figures = re.findall(r"[0-9]+\.[0-9]+", str(told[0].message))
    taken, enough = map(float, figures)
    assert taken == pytest.approx(model.optimizer.noise_multiplier, rel=1e-3)
    drawn = compiled(optimizer=aimed())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn.fit(*data(), batch_size=2, verbose=0)
    assert enough == pytest.approx(drawn.optimizer.noise_multiplier, rel=1e-3)
    assert taken > 5 * enough


def test_delta_is_that_of_whoever_has_one_else_below_one_over_examples():
    logger = dp_train.EpsilonLogger(3e-6)
    assert delta_of([aimed(), logger], 100) == 1e-5
    assert delta_of([object(), logger], 100) == 3e-6
    for population in (1, 9, 10, 60_000):
        assert delta_of([], population) < 1 / population
    assert delta_of([], None) == 1e-5
    assert np.isclose(delta_of([], 60_000), 1e-5)
