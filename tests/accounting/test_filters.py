"""The filter admits what fits at one order, and never more than an accountant would."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from accounting.budget import BudgetSpentError, RenyiFilter, RenyiOdometer
from accounting.budget.calibrate import MOST_STEPS
from accounting.events import (
    FixedSizeSampledEvent,
    GaussianEvent,
    NeighboringRelation,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
)
from accounting.rdp import RdpAccountant
from tests.accounting.battery import sampled

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE


@pytest.mark.parametrize("relation", list(NeighboringRelation), ids=lambda r: r.value)
@pytest.mark.parametrize("event", [GaussianEvent(9.0), sampled(0.01, 1.1)], ids=str)
def test_what_is_admitted_is_within_the_target(relation, event) -> None:
    budget = RenyiFilter(3.0, 1e-6, relation=relation)
    count = budget.remaining(event)
    assert count > 0
    budget.spend(event, count)
    accountant = RdpAccountant(relation).compose(event, count)
    # An accountant may choose its order afterwards and is never above.
    assert accountant.epsilon(1e-6).upper <= 3.0
    assert 0 < budget.share_spent <= 1
    with pytest.raises(BudgetSpentError, match="Add noise, or stop"):
        budget.spend(event)


def test_default_order_admits_nearly_what_gaussians_cost_in_hindsight() -> None:
    event = GaussianEvent(20.0)
    admitted = RenyiFilter(2.0, 1e-6).remaining(event)
    accountant = RdpAccountant().compose(event, round(1.02 * admitted) + 1)
    assert accountant.epsilon(1e-6).upper > 2.0


def test_sum_at_the_order_is_the_closed_form_of_gaussians() -> None:
    budget = RenyiFilter(2.0, 1e-6, order=12.0)
    t = budget.order
    slack = t * math.log(t) - (1 + t) * math.log(1 + t)
    allowed = t * 2.0 + math.log(1e-6) - slack
    cost = t * (1 + t) / (2 * 20.0**2)
    assert budget.remaining(GaussianEvent(20.0)) == math.floor(allowed / cost)


def test_changing_noise_spends_the_sum() -> None:
    budget = RenyiFilter(3.0, 1e-6)
    before = 0.0
    for noise in (4.0, 6.0, 8.0, 12.0):
        budget.spend(GaussianEvent(noise))
        assert budget.share_spent > before
        before = budget.share_spent
    fresh = RenyiFilter(3.0, 1e-6)
    for noise in (12.0, 8.0, 6.0, 4.0):
        fresh.spend(GaussianEvent(noise))
    assert fresh.share_spent == pytest.approx(before, rel=1e-11)


def test_refused_release_costs_nothing_and_a_smaller_one_may_fit() -> None:
    budget = RenyiFilter(1.0, 1e-6)
    budget.spend(GaussianEvent(8.0))
    before = budget.share_spent
    for event in (GaussianEvent(1.0), GaussianEvent(0.0), sampled(0.5, 0.0)):
        with pytest.raises(BudgetSpentError):
            budget.spend(event)
        assert budget.remaining(event) == 0
    assert budget.share_spent == before
    budget.spend(GaussianEvent(100.0))


def test_release_about_nobody_is_free() -> None:
    budget = RenyiFilter(1.0, 1e-6)
    budget.spend(sampled(0.0, 1.0), 10**6)
    assert budget.share_spent == 0
    assert budget.remaining(sampled(0.0, 1.0)) == MOST_STEPS


def test_event_without_a_bound_is_refused() -> None:
    with pytest.raises(UnsupportedEventError, match="Pass arrays to fit"):
        RenyiFilter(1.0, 1e-6).spend(UnverifiedSamplingEvent(GaussianEvent(1.0)))
    replace = RenyiFilter(1.0, 1e-6, relation=NeighboringRelation.REPLACE_ONE)
    with pytest.raises(UnsupportedEventError, match="Use Poisson sampling"):
        replace.spend(FixedSizeSampledEvent(10, 1, GaussianEvent(1.0)))


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((0.0, 1e-6), r"Pass for example 3\.0"),
        ((math.inf, 1e-6), r"Pass for example 3\.0"),
        ((1.0, 0.0), "Pass for example 1e-6"),
        ((1.0, 1.0), "Pass for example 1e-6"),
        ((1.0, 1e-6, -1.0), "Leave it out for a good one"),
        ((1.0, 1e-6, 0.5), "Pass a larger order"),
    ],
)
def test_argument_out_of_range_is_refused(arguments, advice) -> None:
    order = arguments[2] if len(arguments) > 2 else None
    with pytest.raises(ValueError, match=advice):
        RenyiFilter(*arguments[:2], order=order)


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_count_that_is_not_a_whole_number_is_refused(count) -> None:
    with pytest.raises(ValueError, match="Pass the number of releases"):
        RenyiFilter(1.0, 1e-6).spend(GaussianEvent(9.0), count)


def test_order_beyond_the_quadrature_is_bounded_by_convexity() -> None:
    """At order 501 and q = 1e-4 nothing of noise 1 fits, and much of noise 30."""
    budget = RenyiFilter(8.0, 1e-6, order=500.0)
    assert budget.remaining(sampled(1e-4, 1.0)) == 0
    assert budget.remaining(sampled(1e-4, 30.0)) > 10**6


def adaptive_losses(seed: int, runs: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise multipliers and summed losses [runs, steps] of an adversary who adapts.

    After a step that revealed much the next one has less noise, after another more; the
    noise takes three values, so that only adaptive bounds apply.
    """
    generator = np.random.default_rng(seed)
    noise = np.full(runs, 8.0)
    total = np.zeros(runs)
    noises, totals = [], []
    for _ in range(steps):
        distance = 1 / noise
        output = distance + generator.standard_normal(runs)
        total = total + distance * output - distance**2 / 2
        noises.append(noise)
        totals.append(total)
        noise = np.where(output > 1.0, 4.0, np.where(output < -0.5, 16.0, 8.0))
    return np.stack(noises, axis=1), np.stack(totals, axis=1)


def odometer_epsilons(noises: np.ndarray, delta: float) -> np.ndarray:
    """What an odometer shows along each run; epsilon depends on counts only."""
    known: dict[tuple[int, ...], float] = {}
    counts = np.stack([np.cumsum(noises == v, axis=1) for v in (4.0, 8.0, 16.0)], -1)
    shown = np.empty(noises.shape)
    for place in np.ndindex(noises.shape):
        key = tuple(int(c) for c in counts[place])
        if key not in known:
            odometer = RenyiOdometer(delta)
            for noise, count in zip((4.0, 8.0, 16.0), key, strict=True):
                if count:
                    odometer.record(GaussianEvent(noise), count)
            known[key] = odometer.epsilon
        shown[place] = known[key]
    return shown


def test_loss_never_passes_the_odometer_though_events_and_stop_are_adaptive() -> None:
    """False alarm 1e-6; a bound for each single step alone is caught by the same test.

    4,000 runs of 20 steps at delta 0.05: at most 200 expected to pass at any step.
    """
    runs, delta = 4000, 0.05
    noises, losses = adaptive_losses(5, runs, 20)
    allowed = binom.isf(1e-6, runs, delta)
    passed = (losses > odometer_epsilons(noises, delta)).any(axis=1).sum()
    assert passed <= allowed
    # The quantile of each step's loss, as if nobody looked before: passed too often.
    mu = np.sqrt(np.cumsum(noises**-2.0, axis=1))
    single = mu**2 / 2 + mu * norm.isf(delta)
    assert (losses > single).any(axis=1).sum() > allowed


def test_odometer_is_above_an_accountant_and_not_far() -> None:
    for event, count in ((GaussianEvent(10.0), 30), (sampled(0.01, 1.0), 1000)):
        odometer = RenyiOdometer(1e-6)
        before = 0.0
        for _ in range(10):
            odometer.record(event, count // 10)
            assert odometer.epsilon > before
            before = odometer.epsilon
        known = RdpAccountant().compose(event, count).epsilon(1e-6).upper
        assert known < odometer.epsilon < 1.6 * known


def test_odometer_counts_equal_releases_alike_and_stays_at_zero_for_free_ones() -> None:
    one, other = RenyiOdometer(1e-6), RenyiOdometer(1e-6)
    assert one.epsilon == 0
    one.record(sampled(0.0, 1.0), 10)
    assert one.epsilon == 0
    for noise in (5.0, 9.0):
        one.record(GaussianEvent(noise), 3)
        for _ in range(3):
            other.record(GaussianEvent(noise))
    assert one.epsilon == pytest.approx(other.epsilon, rel=1e-10)
    one.record(GaussianEvent(0.0))
    assert one.epsilon == math.inf


def test_odometer_refuses_what_it_cannot_bound() -> None:
    with pytest.raises(ValueError, match="Pass for example 1e-6"):
        RenyiOdometer(0.0)
    odometer = RenyiOdometer(1e-6, relation=NeighboringRelation.REPLACE_ONE)
    with pytest.raises(UnsupportedEventError, match="Use Poisson sampling"):
        odometer.record(FixedSizeSampledEvent(10, 1, GaussianEvent(1.0)))
    with pytest.raises(ValueError, match="Pass the number of releases"):
        odometer.record(GaussianEvent(1.0), 0)
    assert odometer.epsilon == 0
