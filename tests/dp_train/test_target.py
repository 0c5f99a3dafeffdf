"""A target may cover a number of steps that several fits share."""

import keras
import pytest
from models import compiled, data

import dp_train


def aimed(target_steps=None):
    return dp_train.DPSGD(
        0.1,
        l2_norm_clip=1.0,
        target_epsilon=3.0,
        target_delta=1e-5,
        target_steps=target_steps,
    )


def fit(model, steps):
    model.fit(*data(), batch_size=6, steps_per_epoch=steps, verbose=0)


def test_fits_that_share_a_target_add_the_noise_of_one_fit():
    whole, shared = compiled(optimizer=aimed()), compiled(optimizer=aimed(20))
    fit(whole, 20)
    for steps in (1, 12, 7):
        fit(shared, steps)
    assert shared.privacy_ledger.releases == whole.privacy_ledger.releases
    assert 2.99 < shared.privacy_report(1e-5).epsilon.upper <= 3


def test_more_steps_than_are_left_are_refused_before_the_first():
    model = compiled(optimizer=aimed(20))
    fit(model, 15)
    with pytest.raises(ValueError, match=r"plans 6 steps.*target_steps=20.*5 left"):
        fit(model, 6)
    assert model.privacy_ledger.total == 15
    fit(model, 5)
    with pytest.raises(dp_train.BudgetSpentError, match="All of target_steps=20"):
        fit(model, 1)


def test_other_batches_halfway_still_keep_the_target():
    model = compiled(optimizer=aimed(20))
    fit(model, 10)
    model.fit(*data(), batch_size=30, steps_per_epoch=10, verbose=0)
    assert 2.9 < model.privacy_report(1e-5).epsilon.upper <= 3


def test_a_saved_model_goes_on_with_what_is_left(tmp_path):
    model = compiled(optimizer=aimed(20))
    fit(model, 15)
    model.save(tmp_path / "model.keras")
    loaded = dp_train.make_private(keras.models.load_model(tmp_path / "model.keras"))
    assert loaded.optimizer.target_steps == 20
    fit(loaded, 5)
    assert len(loaded.privacy_ledger) == 1
    with pytest.raises(dp_train.BudgetSpentError):
        fit(loaded, 1)


def test_a_spent_target_names_target_steps():
    model = compiled(optimizer=aimed())
    fit(model, 10)
    with pytest.raises(dp_train.BudgetSpentError, match="begin with target_steps"):
        fit(model, 10)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "10"])
def test_target_steps_is_a_whole_number_of_at_least_one(steps):
    with pytest.raises(ValueError, match="steps per epoch times epochs"):
        aimed(steps)


def test_target_steps_needs_a_target():
    with pytest.raises(ValueError, match="without target_epsilon"):
        dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0, target_steps=5)
