"""The accountant by the law of the loss: brackets that hold and are narrow."""

import itertools
import math

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant as TheirPldAccountant

from accounting.events import (
    DiscreteGaussianEvent,
    GaussianEvent,
    LaplaceEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    PureEvent,
)
from accounting.events.normal_form import SampledGaussian
from accounting.pld import PldAccountant, closed_form, contour_integral
from accounting.pld.bound_search import RELATIVE_WIDTH, DeltaAt, EpsilonAt, bracket
from accounting.privacy_loss.base import SampledGaussianLoss, losses_of
from accounting.rdp import RdpAccountant
from tests.accounting import truth
from tests.accounting.battery import AccountantBattery, sampled
from tests.accounting.settings import SETTINGS

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE
# The truth of the settings is known to seven digits.
SEVEN_DIGITS = 5e-7


class TestPldAccountant(AccountantBattery):
    make = PldAccountant
    tolerance = RELATIVE_WIDTH
    # theta x epsilon x tolerance at delta = 1e-12, and the width of a delta.
    log_delta_tolerance = 0.1

    def test_estimate_of_delta_inverts_estimate_of_epsilon(self, relation) -> None:
        accountant = PldAccountant(relation).compose(sampled(0.01, 1.0), 1000)
        for delta in (1e-3, 1e-6, 1e-12, 1e-20):
            epsilon = accountant.epsilon(delta).estimate
            back = accountant.delta(epsilon).estimate
            assert back == pytest.approx(delta, rel=1e-8)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
def test_bracket_is_narrow_and_holds_the_truth(setting) -> None:
    _, q, noise, steps, delta, true_epsilon = setting
    accountant = PldAccountant().compose(sampled(q, noise), steps)
    bounds = accountant.epsilon(delta)
    assert bounds.lower <= true_epsilon * (1 + SEVEN_DIGITS)
    assert bounds.upper >= true_epsilon * (1 - SEVEN_DIGITS)
    assert bounds.upper - bounds.lower <= 1e-3 * bounds.upper
    assert bounds.converged == (bounds.upper - bounds.lower <= 1e-4 * bounds.upper)
    deltas = accountant.delta(true_epsilon)
    # What an error of the seventh digit of epsilon makes of delta.
    slack = math.exp(1e-3 + SEVEN_DIGITS * true_epsilon * 600)
    assert deltas.lower <= delta * slack
    assert deltas.upper >= delta / slack


def random_settings(count: int, seed: int) -> list[tuple[float, float, int, float]]:
    """(q, noise, steps, delta), logarithms uniform over the range of the sweep."""
    generator = np.random.default_rng(seed)
    ranges = [(1e-5, 0.5), (0.35, 50), (5, 1e6), (1e-12, 1e-5)]
    draws = [
        np.exp(generator.uniform(math.log(low), math.log(high), count))
        for low, high in ranges
    ]
    return [
        (float(q), float(s), int(t), float(d))
        for q, s, t, d in zip(*draws, strict=True)
    ]


@pytest.mark.parametrize("relation", [ADD, NeighboringRelation.REPLACE_ONE])
def test_bracket_holds_the_spectral_value_in_a_random_sweep(relation) -> None:
    converged = wide = 0
    for q, noise, steps, delta in random_settings(60, seed=20):
        bounds = (
            PldAccountant(relation).compose(sampled(q, noise), steps).epsilon(delta)
        )
        if bounds.converged:
            assert bounds.upper - bounds.lower <= 1e-3 * max(bounds.upper, 1e-3)
        else:
            wide += 1
            assert bounds.upper - bounds.lower <= 1e-2 * bounds.upper
        classic = RdpAccountant(relation).compose(sampled(q, noise), steps)
        assert bounds.lower <= classic.epsilon(delta).upper * (1 + 1e-9)
        mechanism = SampledGaussian(q, noise)
        points = [
            contour_integral.epsilon_at([(loss, steps)], delta)
            for loss in losses_of(mechanism, relation)
        ]
        for point in points:
            if point.converged:
                assert point.value <= bounds.upper * (1 + 1e-9) + 1e-12
        if all(point.converged for point in points):
            converged += 1
            assert max(p.value for p in points) >= bounds.lower * (1 - 1e-9) - 1e-12
    assert converged >= 30
    assert wide <= 1


@pytest.mark.parametrize("direction", ["remove", "add"])
@pytest.mark.parametrize(
    ("q", "noise", "epsilon"),
    [
        (0.01, 1.0, 0.2),
        (0.02, 1.0, 2.8),
        (0.5, 0.8, 0.3),
        (0.9, 5.0, 0.05),
        (1e-4, 0.4, 8.0),
        (0.3, 100.0, 0.001),
    ],
)
def test_single_release_is_its_closed_form(direction, q, noise, epsilon) -> None:
    with mpmath.workdps(40):
        expected = truth.one_release(direction, q, noise, epsilon)
    release = closed_form.SingleRelease(q, noise)
    value, error = getattr(release, direction)(epsilon)
    if expected == 0:
        assert value == -math.inf
    else:
        assert abs(value - math.log(expected)) <= error + 1e-15
        assert error < 1e-9


@pytest.mark.parametrize("mu", [1e-3, 0.5, 3.0, 40.0])
@pytest.mark.parametrize("delta", [0.01, 1e-6, 1e-20])
def test_gaussian_is_its_closed_form(mu, delta) -> None:
    bounds = closed_form.epsilon_bounds(closed_form.Gaussian(mu), delta)
    with mpmath.workdps(60):

        def true_delta(epsilon):
            epsilon = mpmath.mpf(epsilon)
            return mpmath.ncdf(mu / 2 - epsilon / mu) - mpmath.exp(
                epsilon
            ) * mpmath.ncdf(-mpmath.mpf(mu) / 2 - epsilon / mu)

        if bounds.upper == 0:
            assert true_delta(0) <= delta
        else:
            assert true_delta(bounds.upper) <= delta <= true_delta(bounds.lower)
            assert bounds.upper - bounds.lower <= 1e-8 * bounds.upper


@pytest.mark.parametrize("direction", ["remove", "add", "replace"])
@pytest.mark.parametrize(
    ("q", "noise", "delta"),
    [(0.01, 1.0, 1e-5), (0.3, 0.6, 1e-9), (1.0, 2.0, 1e-6), (1e-3, 0.4, 1e-7)],
)
def test_grid_holds_one_release(direction, q, noise, delta) -> None:
    """The grid is not used for one release under add-or-remove; it must hold there."""
    if direction == "add" and q == 1:
        direction = "remove"
    terms = [(SampledGaussianLoss(q, noise, direction), 1)]
    bounds = bracket(EpsilonAt(delta), [terms], math.inf)
    assert bounds.converged
    with mpmath.workdps(40):
        if bounds.lower > 0:
            below = truth.one_release(direction, q, noise, bounds.lower)
            assert below >= delta * (1 - 1e-12)
        above = truth.one_release(direction, q, noise, bounds.upper)
    assert above <= delta * (1 + 1e-12)


@pytest.mark.parametrize(
    ("direction", "q", "noise", "count", "epsilon", "theta"),
    [
        ("remove", 0.02, 1.0, 50, 0.5, 5.0),
        ("add", 0.2, 2.0, 20, 0.9, 12.0),
        ("replace", 0.1, 3.0, 100, 2.0, 8.0),
    ],
)
def test_composition_is_the_integral_in_many_digits(
    direction, q, noise, count, epsilon, theta
) -> None:
    terms = [(SampledGaussianLoss(q, noise, direction), count)]
    with mpmath.workdps(25):
        expected = truth.composed(direction, q, noise, count, epsilon, theta)
    point = contour_integral.delta_at(terms, epsilon)
    assert point.converged
    assert point.value == pytest.approx(expected, rel=1e-9)
    bounds = bracket(DeltaAt(epsilon), [terms], 1.0)
    assert bounds.lower <= expected <= bounds.upper
    assert bounds.upper <= 1.02 * bounds.lower


def test_unlike_releases_cost_between_the_cheapest_and_the_dearest() -> None:
    mixed = PldAccountant()
    for k in range(5):
        mixed.compose(sampled(0.01, 1.0 + 0.02 * k), 200)
    bounds = mixed.epsilon(1e-5)
    assert bounds.converged
    most = PldAccountant().compose(sampled(0.01, 1.0), 1000).epsilon(1e-5)
    least = PldAccountant().compose(sampled(0.01, 1.08), 1000).epsilon(1e-5)
    assert least.upper < bounds.lower
    assert bounds.upper < most.lower


@pytest.mark.parametrize("relation", list(NeighboringRelation), ids=lambda r: r.value)
def test_gaussian_among_samples_equals_its_parts(relation) -> None:
    """q so near 1 that the grid carries what the closed form would say."""
    noise, count = 4.0, 30
    whole = PldAccountant(relation).compose(GaussianEvent(noise), count)
    parts = PldAccountant(relation).compose(GaussianEvent(noise), count - 1)
    parts.compose(sampled(1 - 1e-9, noise))
    exact, composed = whole.epsilon(1e-6), parts.epsilon(1e-6)
    assert composed.lower <= exact.upper
    assert composed.upper >= exact.lower * (1 - 1e-8)
    assert composed.estimate == pytest.approx(exact.estimate, rel=1e-7)


def test_epsilon_is_exactly_zero_where_delta_allows_it() -> None:
    accountant = PldAccountant().compose(sampled(1e-3, 2.0), 3)
    at_zero = accountant.delta(0.0)
    assert accountant.epsilon(at_zero.upper * 1.02).upper == 0
    barely = accountant.epsilon(at_zero.lower * 0.98)
    assert 0 < barely.upper < 1e-2
    assert PldAccountant().compose(sampled(1e-5, 16.0), 27).epsilon(4e-6).upper == 0


def test_adding_never_costs_more_than_its_largest_losses() -> None:
    """e^L <= 1 / (1 - q) when an example is added."""
    terms = [(SampledGaussianLoss(1e-3, 0.3, "add"), 1000)]
    bounds = bracket(EpsilonAt(1e-12), [terms], math.inf)
    assert bounds.upper <= -1000 * math.log1p(-1e-3) * (1 + 1e-3)


def test_whole_range_is_answered() -> None:
    grid = itertools.product(
        (ADD, NeighboringRelation.REPLACE_ONE),
        (1e-9, 1e-4, 0.3, 0.999),
        (0.2, 1.0, 1000.0),
        (2, 10**7),
        (0.5, 1e-20),
    )
    for relation, q, noise, count, delta in grid:
        accountant = PldAccountant(relation).compose(sampled(q, noise), count)
        bounds = accountant.epsilon(delta)
        assert 0 <= bounds.lower <= bounds.estimate <= bounds.upper < math.inf
        classic = RdpAccountant(relation).compose(sampled(q, noise), count)
        assert bounds.upper <= classic.epsilon(delta).upper * (1 + 1e-9)


@pytest.mark.parametrize("noise", [1e-200, 1e-3, 0.049, 1e9, 1e300])
def test_noise_beyond_reason_is_answered_by_the_renyi_bound(noise) -> None:
    for event in (GaussianEvent(noise), sampled(0.1, noise)):
        for count in (1, 10):
            bounds = PldAccountant().compose(event, count).epsilon(1e-6)
            assert 0 <= bounds.lower <= bounds.upper
            classic = RdpAccountant().compose(event, count).epsilon(1e-6)
            assert bounds.upper <= classic.upper * (1 + 1e-9)


def test_count_beyond_the_digits_is_answered_by_the_renyi_bound() -> None:
    accountant = PldAccountant().compose(sampled(1e-4, 20.0), 10**12)
    bounds = accountant.epsilon(1e-6)
    assert not bounds.converged
    assert (
        bounds.upper
        <= RdpAccountant().compose(sampled(1e-4, 20.0), 10**12).epsilon(1e-6).upper
    )


def test_spectral_value_says_that_it_is_not_to_be_trusted() -> None:
    """Rare losses that decide: the integrand has no end, or delta no saddle point."""
    for name, q, noise, steps, delta, true_epsilon in SETTINGS:
        terms = [(SampledGaussianLoss(q, noise, "remove"), steps)]
        point = contour_integral.epsilon_at(terms, delta)
        if point.converged:
            assert point.value == pytest.approx(true_epsilon, rel=SEVEN_DIGITS), name
        assert point.chernoff >= true_epsilon
        if name == "S08":
            assert not point.converged


@pytest.mark.parametrize(
    ("index", "is_below"), [(10, True), (14, False)], ids=["S11", "S15"]
)
def test_fault_of_dp_accounting_is_not_shared(index, is_below) -> None:
    """Its untilted FFT falls below the truth at delta = 1e-10; its step of 1e-4 is too
    coarse for a small epsilon of many steps."""
    name, q, noise, steps, delta, _ = SETTINGS[index]
    theirs = TheirPldAccountant().compose(
        dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise)),
        steps,
    )
    ours = PldAccountant().compose(sampled(q, noise), steps).epsilon(delta)
    if is_below:
        assert theirs.get_epsilon(delta) < ours.lower, name
    else:
        assert theirs.get_epsilon(delta) > 1.5 * ours.upper, name


def test_bracket_agrees_with_dp_accounting_where_that_is_right() -> None:
    theirs = TheirPldAccountant().compose(
        dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(5.0)), 50
    )
    bounds = PldAccountant().compose(sampled(0.3, 5.0), 50).epsilon(1e-5)
    assert bounds.lower <= theirs.get_epsilon(1e-5) * (1 + 1e-4)
    assert bounds.upper >= theirs.get_epsilon(1e-5) * (1 - 1e-4)


@pytest.mark.parametrize("relation", [ADD, NeighboringRelation.REPLACE_ONE])
def test_running_epsilon_follows_the_bracket_step_by_step(relation) -> None:
    before = 0.0
    for count in (1, 2, 3, 10, 31, 100, 317, 1000, 1001, 2047, 2048, 5000):
        accountant = PldAccountant(relation).compose(GaussianEvent(8.0))
        accountant.compose(sampled(0.01, 1.0), count)
        value = accountant.running_epsilon(1e-5)
        bounds = accountant.epsilon(1e-5)
        # Between two counts of the ladder the line may leave the bracket slightly.
        assert bounds.lower * (1 - 1e-3) <= value <= bounds.upper * (1 + 1e-3)
        assert value >= before * (1 - 1e-3)
        before = value


def test_running_epsilon_of_nothing_and_of_one_is_exact() -> None:
    assert PldAccountant().running_epsilon(1e-5) == 0
    accountant = PldAccountant().compose(sampled(0.01, 1.0))
    assert accountant.running_epsilon(1e-5) == accountant.epsilon(1e-5).estimate
    with pytest.raises(ValueError, match="Pass for example 1e-6"):
        accountant.running_epsilon(0.0)


def test_bracket_is_as_narrow_as_asked_for() -> None:
    for width in (1e-2, 1e-4):
        accountant = PldAccountant(relative_width=width)
        bounds = accountant.compose(sampled(0.01, 1.0), 1000).epsilon(1e-5)
        assert bounds.converged
        assert bounds.upper - bounds.lower <= width * bounds.upper
        assert bounds.lower <= SETTINGS[0][5] * (1 + SEVEN_DIGITS)
        assert bounds.upper >= SETTINGS[0][5] * (1 - SEVEN_DIGITS)


@pytest.mark.parametrize("width", [0.0, -1.0, 1e-9, 0.5, math.nan])
def test_width_out_of_range_is_refused(width) -> None:
    with pytest.raises(ValueError, match="Pass for example 1e-4"):
        PldAccountant(relative_width=width)


def test_delta_so_near_one_that_no_grid_reaches_it_is_bounded_by_one():
    accountant = PldAccountant(ADD).compose(sampled(0.4643, 107.6), 9_448_681)
    bounds = accountant.delta(0.094)
    assert 0.99 < bounds.estimate <= bounds.upper == 1


def test_delta_of_unlike_terms_that_no_grid_reaches_is_bounded_by_one():
    accountant = PldAccountant(NeighboringRelation.ZERO_OUT)
    accountant.compose(sampled(0.95, 64.7), 2).compose(GaussianEvent(46.7), 10**7)
    assert accountant.delta(0.29).upper == 1


@pytest.mark.parametrize("event", [GaussianEvent(0.0), sampled(0.5, 0.0)])
def test_running_epsilon_without_noise_is_infinite(event) -> None:
    accountant = PldAccountant().compose(GaussianEvent(1.0), 3).compose(event, 2)
    assert accountant.running_epsilon(1e-5) == math.inf


def test_running_epsilon_of_unlike_releases_is_that_of_the_bracket() -> None:
    """One kind stands still while the other grows; laws of points have no tables."""
    integers = PoissonSampledEvent(0.05, DiscreteGaussianEvent(2.0))
    for others in ((LaplaceEvent(1.0), 1), (sampled(0.2, 0.6), 3), (integers, 7)):
        for event in (PureEvent(0.02), sampled(1e-4, 0.7)):
            for count in (1, 3, 40):
                accountant = PldAccountant().compose(*others).compose(event, count)
                bounds = accountant.epsilon(1e-6)
                value = accountant.running_epsilon(1e-6)
                assert bounds.lower * (1 - 2e-3) <= value <= bounds.upper * (1 + 2e-3)
