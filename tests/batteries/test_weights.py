"""The ledger goes with the weights; refusals of what no ledger could cover."""

import pytest

from tests.batteries import refused, weights


@pytest.mark.parametrize("way", weights.WAYS)
def test_the_ledger_follows_the_weights(way, tmp_path):
    weights.assert_the_ledger_follows_the_weights(way, tmp_path)


@pytest.mark.parametrize("kind", ["layer", "private model", "frozen layer"])
def test_models_that_share_a_weight_have_one_ledger(kind):
    weights.assert_models_that_share_a_weight_have_one_ledger(kind)


@pytest.mark.parametrize("change", weights.CHANGES)
def test_changes_elsewhere_are_in_the_report(change):
    weights.assert_changes_elsewhere_are_in_the_report(change)


@pytest.mark.parametrize("way", weights.NO_CHANGES)
def test_no_change_is_reported(way, tmp_path):
    weights.assert_no_change_is_reported(way, tmp_path)


def test_an_assigned_optimizer_adds_its_own_noise():
    weights.assert_an_assigned_optimizer_adds_its_own_noise()


@pytest.mark.parametrize("part", refused.PARTS)
def test_no_weight_is_trained_beside_the_dp_optimizer(part):
    refused.assert_no_weight_is_trained_beside_the_dp_optimizer(part)


@pytest.mark.parametrize("path", refused.PATHS)
def test_complex_weights_are_refused(path):
    refused.assert_complex_weights_are_refused(path)
