"""Batches of a fixed size: a pair that holds for whatever example stands in."""

import math

import mpmath
import numpy as np
import pytest

from accounting.accountant import Bounds
from accounting.events import (
    FixedSizeSampledEvent,
    GaussianEvent,
    Ledger,
    NeighboringRelation,
    UnsupportedEventError,
    event_from_dict,
)
from accounting.pld import PldAccountant, discretization
from accounting.privacy_loss.fixed_size import FixedSizeLoss
from accounting.rdp import RdpAccountant
from accounting.report import privacy_report
from tests.accounting import truth
from tests.accounting.battery import assert_rises, sampled
from tests.accounting.test_grid import delta_of

REPLACE = NeighboringRelation.REPLACE_ONE


def fixed(population: int, size: int, noise: float) -> FixedSizeSampledEvent:
    return FixedSizeSampledEvent(population, size, GaussianEvent(noise))


def epsilon(event, count: int, delta: float) -> Bounds:
    return PldAccountant(REPLACE).compose(event, count).epsilon(delta)


def true_delta(q: float, noise: float, epsilon: float) -> float:
    """The larger of the two pairs at distance two."""
    direction = "remove" if epsilon >= 0 else "add"
    return truth.one_release(direction, q, noise / 2, epsilon)


@pytest.mark.parametrize(("q", "noise"), [(0.01, 1.0), (0.3, 3.0), (0.5, 20.0)])
@pytest.mark.parametrize("step", [0.05, 1e-3])
def test_laws_enclose_the_larger_curve_at_every_epsilon(q, noise, step) -> None:
    loss = FixedSizeLoss(q, noise)
    high = loss.largest(1e-12)
    lower, upper = discretization.laws(
        loss, discretization.place(loss, step, -high, high)
    )
    trials = np.random.default_rng(0).uniform(-min(high, 2), min(high, 4), 25)
    with mpmath.workdps(30):
        for epsilon in trials:
            expected = true_delta(q, noise, epsilon)
            slack = 1e-14 * abs(math.expm1(min(epsilon, 0))) + 1e-300
            assert delta_of(lower, epsilon) <= expected * (1 + 1e-13) + slack
            assert delta_of(upper, epsilon) >= expected * (1 - 1e-13) - slack


def test_nodes_and_cells_hold_all_mass_of_both_measures() -> None:
    loss = FixedSizeLoss(0.2, 1.5)
    nodes = loss.nodes(1e-15, 0.0, 0.0)
    assert nodes.weight.sum() == pytest.approx(1, abs=1e-12)
    assert nodes.weight @ np.exp(-nodes.loss) == pytest.approx(1, abs=1e-12)
    boundaries = np.linspace(-12.05, 12.0, 3001)
    cells = loss.cells(boundaries)
    assert cells.mass.sum() == pytest.approx(1, abs=1e-9)
    q_mass = (cells.mass - cells.excess) * np.exp(-boundaries[:-1])
    assert q_mass.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("population", "size", "noise", "count", "delta", "lower", "upper"),
    [
        (100, 1, 1.0, 1000, 1e-5, 13.361, 14.821),
        (100, 1, 2.0, 1000, 1e-5, 1.828, 2.199),
        (1000, 4, 1.0, 10_000, 1e-6, 18.862, 22.320),
        (10, 1, 5.0, 1000, 1e-6, 6.852, 7.663),
        (2, 1, 20.0, 1000, 1e-6, 8.347, 8.504),
    ],
)
def test_bracket_is_that_of_an_independent_prototype(
    population, size, noise, count, delta, lower, upper
) -> None:
    bounds = epsilon(fixed(population, size, noise), count, delta)
    assert lower * (1 - 1.2e-3) <= bounds.lower <= lower * (1 + 3e-4)
    assert upper * (1 - 3e-4) <= bounds.upper <= upper * (1 + 1.2e-3)
    # The two ends belong to different pairs, which is said.
    assert not bounds.converged


def test_poisson_pair_would_understate() -> None:
    """delta 7.19e-4 is attained where the pair of Poisson sampling gives 2.46e-7."""
    attained = PldAccountant(REPLACE).compose(fixed(100, 1, 1.0)).delta(0.5)
    poisson = PldAccountant(REPLACE).compose(sampled(0.01, 1.0)).delta(0.5)
    assert attained.lower == pytest.approx(7.19e-4, rel=5e-3)
    assert poisson.upper == pytest.approx(2.46e-7, rel=5e-2)


def test_whole_population_is_no_sampling() -> None:
    assert epsilon(fixed(10, 10, 2.0), 5, 1e-6) == epsilon(GaussianEvent(2.0), 5, 1e-6)


def test_epsilon_rises_with_batch_size_and_steps_and_falls_with_noise() -> None:
    sizes = [1, 10, 50, 99]
    assert_rises([epsilon(fixed(100, b, 5.0), 50, 1e-6).upper for b in sizes])
    assert_rises([epsilon(fixed(100, 1, 2.0), n, 1e-6).upper for n in (2, 20, 200)])
    assert_rises([epsilon(fixed(100, 5, s), 20, 1e-6).upper for s in (9, 3, 1, 0.5)])


def test_count_equals_entries_and_composes_with_other_events() -> None:
    event = fixed(100, 2, 2.0)
    once = PldAccountant(REPLACE).compose(event, 3).compose(GaussianEvent(9.0))
    many = PldAccountant(REPLACE).compose(GaussianEvent(9.0))
    for _ in range(3):
        many.compose(event)
    assert once.epsilon(1e-6) == many.epsilon(1e-6)
    assert once.epsilon(1e-6).lower > epsilon(event, 3, 1e-6).upper


@pytest.mark.parametrize(
    "relation",
    [NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.ZERO_OUT],
)
def test_other_relations_are_refused(relation) -> None:
    with pytest.raises(UnsupportedEventError, match="under replace_one"):
        PldAccountant(relation).compose(fixed(100, 1, 1.0))


def test_renyi_accountant_refuses_it() -> None:
    with pytest.raises(UnsupportedEventError, match="Use PldAccountant"):
        RdpAccountant(REPLACE).compose(fixed(100, 1, 1.0))


def test_event_survives_json_and_describes_itself() -> None:
    event = fixed(60_000, 256, 1.1)
    assert event_from_dict(event.to_dict()) == event
    assert "256 of 60000 examples without replacement" in event.describe()


@pytest.mark.parametrize(("population", "size"), [(0, 1), (10, 0), (10, 1.5), (5, 6)])
def test_sizes_out_of_range_are_refused(population, size) -> None:
    with pytest.raises(ValueError, match="Pass that number|number of examples drawn"):
        fixed(population, size, 1.0)


def test_report_states_the_sampling_and_its_relation() -> None:
    ledger = Ledger()
    ledger.charge(fixed(100, 1, 2.0), l2_norm_clip=1.0, noise_source="secure", count=10)
    assert ledger.supported_relation() is REPLACE
    report = privacy_report(ledger, 1e-6, accountant=PldAccountant)
    assert report.relation is REPLACE
    assert "fixed size, 1 of 100 without replacement per step" in str(report)
