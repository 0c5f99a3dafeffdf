"""Compositions of unlike mechanisms against sums in full, and dp-accounting."""

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant as TheirPldAccountant

from accounting.events import (
    ApproximateEvent,
    DiscreteGaussianEvent,
    DiscreteLaplaceEvent,
    FixedSizeSampledEvent,
    GaussianEvent,
    LaplaceEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    PureEvent,
    RandomAllocationEvent,
    RandomizedResponseEvent,
    TruncatedPoissonSampledEvent,
    UnsupportedEventError,
    ZeroConcentratedEvent,
    user_level,
)
from accounting.pld import PldAccountant
from accounting.rdp import RdpAccountant
from tests.accounting.battery import gaussian_delta

ADD, REPLACE, ZERO = NeighboringRelation


@pytest.mark.parametrize(
    ("ours", "theirs", "count"),
    [
        (LaplaceEvent(2.0), dp_accounting.dp_event.LaplaceDpEvent(2.0), 8),
        (
            PoissonSampledEvent(0.1, LaplaceEvent(1.0)),
            dp_accounting.PoissonSampledDpEvent(
                0.1, dp_accounting.dp_event.LaplaceDpEvent(1.0)
            ),
            60,
        ),
        (
            DiscreteLaplaceEvent(2.0, 3),
            dp_accounting.dp_event.DiscreteLaplaceDpEvent(1 / 6, 3),
            12,
        ),
        (
            user_level(0.02, 1.0, 3),
            dp_accounting.dp_event.MixtureOfGaussiansDpEvent(
                1.0, range(4), user_level(0.02, 1.0, 3).probabilities
            ),
            50,
        ),
    ],
    ids=str,
)
def test_bracket_agrees_with_dp_accounting_where_that_is_right(
    ours, theirs, count
) -> None:
    """Theirs is from above, on a grid of 1e-4, for which a thousandth is allowed."""
    bounds = PldAccountant().compose(ours, count).epsilon(1e-5)
    other = TheirPldAccountant().compose(theirs, count).get_epsilon(1e-5)
    assert bounds.converged
    assert bounds.lower <= other * (1 + 1e-6)
    assert other <= bounds.upper * (1 + 1e-3)


def test_truncated_poisson_is_below_dp_accounting_and_above_poisson() -> None:
    """Their pair for a batch that was cut is that of replacing, which is looser."""
    event = TruncatedPoissonSampledEvent(0.01, GaussianEvent(1.0), 10_000, 130)
    bounds = PldAccountant().compose(event, 200).epsilon(1e-5)
    theirs = TheirPldAccountant().compose(
        dp_accounting.dp_event.TruncatedSubsampledGaussianDpEvent(
            10_000, 0.01, 130, 1.0
        ),
        200,
    )
    assert bounds.upper <= theirs.get_epsilon(1e-5) * (1 + 1e-4)
    poisson = PldAccountant().compose(
        PoissonSampledEvent(0.01, GaussianEvent(1.0)), 200
    )
    assert bounds.upper >= poisson.epsilon(1e-5).lower
    assert bounds.lower <= poisson.epsilon(1e-5).upper


def test_batch_that_is_never_cut_is_poisson() -> None:
    whole = PoissonSampledEvent(0.01, GaussianEvent(1.0))
    for size in (10_000, 5_000):
        event = TruncatedPoissonSampledEvent(0.01, GaussianEvent(1.0), 10_000, size)
        ours = PldAccountant().compose(event, 200).epsilon(1e-5)
        expected = PldAccountant().compose(whole, 200).epsilon(1e-5)
        assert ours.upper == pytest.approx(expected.upper, rel=1e-9)
        assert ours.lower == pytest.approx(expected.lower, rel=1e-9)


def test_batch_that_is_always_cut_is_a_batch_of_fixed_size() -> None:
    event = TruncatedPoissonSampledEvent(1.0, GaussianEvent(2.0), 100, 10)
    fixed = FixedSizeSampledEvent(100, 10, GaussianEvent(2.0))
    ours = PldAccountant(REPLACE).compose(event, 20).epsilon(1e-5)
    expected = PldAccountant(REPLACE).compose(fixed, 20).epsilon(1e-5)
    assert ours.upper == pytest.approx(expected.upper, rel=1e-3)


def test_count_of_randomized_response_is_not_lost() -> None:
    """dp-accounting 0.6.0 gives 1.0987 for a hundred of them at delta 1e-6."""
    event = RandomizedResponseEvent(0.5, 2)
    bounds = PldAccountant(REPLACE).compose(event, 100).epsilon(1e-6)
    assert bounds.lower <= 94.28986789 <= bounds.upper
    assert bounds.upper - bounds.lower <= 1e-3 * bounds.upper
    theirs = TheirPldAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE).compose(
        dp_accounting.dp_event.RandomizedResponseDpEvent(0.5, 2), 100
    )
    assert theirs.get_epsilon(1e-6) < 0.02 * bounds.lower


def test_replacing_has_twice_the_sensitivity_in_both_accountants() -> None:
    for event in (GaussianEvent(2.0), LaplaceEvent(2.0), DiscreteGaussianEvent(2.0, 2)):
        for make in (PldAccountant, RdpAccountant):
            replaced = make(REPLACE).compose(event, 5).epsilon(1e-5)
            half = type(event)(1.0, *([2] if hasattr(event, "sensitivity") else []))
            expected = make(ADD).compose(half, 5).epsilon(1e-5)
            # Twice a discrete sensitivity is another law, nearly the same.
            assert replaced.upper == pytest.approx(expected.upper, rel=2e-3)


def losses_of_atoms(pairs):
    """(mass, loss) of all combinations of independent atoms."""
    for chosen in itertools.product(*pairs):
        yield math.prod(p for p, _ in chosen), math.fsum(loss for _, loss in chosen)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.5])
def test_gaussian_among_atoms_is_the_sum_over_atoms(epsilon) -> None:
    """delta(eps) = E delta_gaussian(eps - loss of the atoms), at any real epsilon."""
    told = math.log((1 - 0.4 + 0.1) / 0.1)
    atoms = [
        [(1 / (1 + math.exp(-0.5)), 0.5), (1 / (1 + math.exp(0.5)), -0.5)],
        [(0.7, told), (0.1, -told), (0.2, 0.0)],
    ]
    distance = 2 * math.sqrt(3) / 4.0

    def gaussian(level: float) -> float:
        return gaussian_delta(distance, level)

    expected = sum(p * gaussian(epsilon - loss) for p, loss in losses_of_atoms(atoms))
    accountant = PldAccountant(REPLACE).compose(GaussianEvent(4.0), 3)
    accountant.compose(PureEvent(0.5)).compose(RandomizedResponseEvent(0.4, 4))
    bounds = accountant.delta(epsilon)
    assert bounds.lower <= expected * (1 + 1e-9)
    assert bounds.upper >= expected * (1 - 1e-9)
    assert bounds.upper <= 1.02 * bounds.lower
    # A release that may fail altogether adds its chance, and what it does not fail.
    accountant.compose(ApproximateEvent(0.0, 1e-3), 2)
    failing = accountant.delta(epsilon)
    chance = 1 - (1 - 1e-3) ** 2
    total = chance + (1 - chance) * expected
    assert failing.lower <= total * (1 + 1e-9)
    assert failing.upper >= total * (1 - 1e-9)
    assert accountant.epsilon(1e-3).upper == math.inf
    assert accountant.epsilon(0.1).upper < math.inf


def test_pure_releases_compose_as_the_optimal_theorem_says() -> None:
    """Kairouz, Oh and Viswanath 2015, Theorem 3.3: epsilon (k - 2 i) at delta_i."""
    cost, count = 0.3, 20
    bounds = PldAccountant().compose(PureEvent(cost), count)
    for index in range(count // 2):
        delta = (
            sum(
                math.comb(count, j)
                * (
                    math.exp((count - j) * cost)
                    - math.exp((count - 2 * index + j) * cost)
                )
                for j in range(index)
            )
            / (1 + math.exp(cost)) ** count
        )
        if delta < 1e-12:
            continue
        found = bounds.epsilon(delta)
        expected = (count - 2 * index) * cost
        assert found.lower <= expected * (1 + 1e-9)
        assert found.upper >= expected * (1 - 1e-9)
        assert found.upper - found.lower <= 1e-3 * expected


def test_renyi_bound_is_above_the_bracket_for_all_of_them_together() -> None:
    events = [
        (GaussianEvent(5.0), 3),
        (LaplaceEvent(4.0), 2),
        (PoissonSampledEvent(0.1, LaplaceEvent(2.0)), 10),
        (PoissonSampledEvent(0.1, DiscreteGaussianEvent(3.0)), 10),
        (DiscreteLaplaceEvent(5.0, 2), 2),
        (user_level(0.01, 2.0, 3), 50),
        (PureEvent(0.1), 2),
        (ApproximateEvent(0.1, 1e-8), 2),
    ]
    tight, classic = PldAccountant(), RdpAccountant()
    for event, count in events:
        tight.compose(event, count)
        classic.compose(event, count)
    bounds = tight.epsilon(1e-6)
    assert bounds.converged
    assert bounds.lower <= classic.epsilon(1e-6).upper
    assert bounds.upper <= classic.epsilon(1e-6).upper * (1 + 1e-9)


@pytest.mark.parametrize("t", [0.3, 1.0, 4.0, 50.0, 3000.0])
def test_moments_of_laplace_are_the_closed_form(t) -> None:
    """Mironov 2017 (arXiv:1702.07476), Table II, for a scale of 2."""
    from accounting.rdp import moments_of

    order, scale = 1 + t, 2.0
    expected = np.logaddexp(
        math.log(order / (2 * order - 1)) + t / scale,
        math.log(t / (2 * order - 1)) - order / scale,
    )
    ours = moments_of(LaplaceEvent(scale), ADD).log_moments(np.array([t]))[0]
    assert expected * (1 - 1e-10) <= ours <= expected * (1 + 1e-9)


@pytest.mark.parametrize(
    ("make", "relation", "event", "advice"),
    [
        (PldAccountant, ADD, ZeroConcentratedEvent(0.1), "Use RdpAccountant"),
        (
            PldAccountant,
            REPLACE,
            RandomAllocationEvent(9, GaussianEvent(1)),
            "zero_out",
        ),
        (
            RdpAccountant,
            ADD,
            RandomAllocationEvent(9, GaussianEvent(1)),
            "PldAccountant",
        ),
        (PldAccountant, ADD, RandomizedResponseEvent(0.5, 2), "under replace_one"),
        (PldAccountant, ZERO, RandomizedResponseEvent(0.5, 2), "under replace_one"),
        (PldAccountant, REPLACE, user_level(0.1, 1.0, 2), "add_or_remove_one or zero"),
        (
            PldAccountant,
            REPLACE,
            PoissonSampledEvent(0.1, LaplaceEvent(1.0)),
            "without amplification",
        ),
        (
            RdpAccountant,
            ZERO,
            TruncatedPoissonSampledEvent(0.1, GaussianEvent(1.0), 100, 15),
            "Use PldAccountant",
        ),
    ],
)
def test_what_has_no_bound_is_refused_with_a_way_out(
    make, relation, event, advice
) -> None:
    with pytest.raises(UnsupportedEventError, match=advice):
        make(relation).compose(event)
