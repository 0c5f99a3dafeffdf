"""The filter admits what fits at one order, and never more than an accountant would."""

import math

import pytest

from accounting.calibrate import MOST_STEPS, BudgetSpentError
from accounting.events import (
    FixedSizeSampledEvent,
    GaussianEvent,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
)
from accounting.filters import RenyiFilter
from accounting.rdp import RdpAccountant
from accounting.relations import NeighboringRelation
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
