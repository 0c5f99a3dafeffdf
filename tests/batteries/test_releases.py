"""The ledger battery on the library as it is."""

from __future__ import annotations

import pytest

import dp_train
from tests.batteries import releases


@pytest.mark.parametrize("scenario", releases.SCENARIOS)
def test_every_noised_update_is_charged(scenario):
    releases.assert_every_noised_update_is_charged(scenario)


def test_events_say_how_batches_were_drawn():
    releases.assert_the_events_say_how_batches_were_drawn()


@pytest.mark.parametrize("steps_per_execution", [1, 4, 7])
def test_budget_holds(steps_per_execution):
    releases.assert_the_budget_holds(steps_per_execution)


def test_loading_an_older_checkpoint_keeps_what_was_spent(tmp_path):
    releases.assert_loading_an_older_checkpoint_keeps_what_was_spent(tmp_path)


def test_a_clipped_sum_pays_for_one_release():
    model = releases.small_model()
    x, y = releases.rows()
    clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
    model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    with pytest.raises(dp_train.NotPrivateError, match="already released"):
        model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    assert model.privacy_ledger.total == 1
