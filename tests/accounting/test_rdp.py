"""The Renyi accountant against closed forms, mpmath and dp-accounting."""

import itertools
import math

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant as TheirRdpAccountant

from accounting.events import GaussianEvent, NeighboringRelation, PoissonSampledEvent
from accounting.rdp import RdpAccountant, gaussian_moments
from tests.accounting.battery import AccountantBattery, assert_rises, sampled
from tests.accounting.settings import SETTINGS


class TestRdpAccountant(AccountantBattery):
    make = RdpAccountant

    def test_lower_bound_is_zero_and_estimate_is_upper(self) -> None:
        bounds = RdpAccountant().compose(GaussianEvent(1.0)).epsilon(1e-5)
        assert bounds.lower == 0
        assert bounds.estimate == bounds.upper
        assert bounds.converged


def test_assert_rises_fails_where_values_do_not_rise() -> None:
    with pytest.raises(AssertionError):
        assert_rises([1.0, 2.0, 2.0])


def true_log_moment(direction: str, q: float, noise: float, t: float):
    """K(t) by mpmath from the definition of the pair, 30 digits."""
    mp = mpmath.mp
    q, s, t = mp.mpf(q), mp.mpf(noise), mp.mpf(t)

    def normal(x, mean):
        return mp.exp(-((x - mean) ** 2) / (2 * s * s)) / (s * mp.sqrt(2 * mp.pi))

    def mixture(x, mean):
        return (1 - q) * normal(x, 0) + q * normal(x, mean)

    first, second, low, high = {
        "remove": (lambda x: mixture(x, 1), lambda x: normal(x, 0), 0, t + 1),
        "add": (lambda x: normal(x, 0), lambda x: mixture(x, 1), -t, 1),
        "replace": (lambda x: mixture(x, 1), lambda x: mixture(x, -1), -1, 2 * t + 1),
    }[direction]

    def integrand(x):
        p = first(x)
        return p * (p / second(x)) ** t

    low, high = low - 13 * s, high + 13 * s
    points = mp.linspace(low, high, int((high - low) / (3 * s)) + 2)
    return mp.log(mp.quad(integrand, points))


DIRECTIONS = {
    "remove": gaussian_moments._REMOVE,
    "add": gaussian_moments._ADD,
    "replace": gaussian_moments._REPLACE,
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("q", "noise", "t"),
    [
        (1e-5, 1.0, 1.0),
        (1e-5, 1.0, 30.0),
        (0.01, 0.2, 0.05),
        (0.01, 0.2, 4.0),
        (0.01, 1.0, 0.5),
        (0.5, 0.8, 3.3),
        (0.5, 20.0, 60.0),
        (0.3, 1000.0, 2000.0),
        (0.9, 100.0, 1500.0),
        (0.999, 0.7, 2.0),
    ],
)
def test_log_moment_is_the_integral_from_above(direction, q, noise, t) -> None:
    with mpmath.workdps(30):
        truth = true_log_moment(direction, q, noise, t)
        ours = gaussian_moments._log_moments(
            DIRECTIONS[direction], q, noise, np.array([t])
        )[0]
        error = float(mpmath.mpf(float(ours)) / truth - 1)
    assert 0 <= error <= 2e-11


@pytest.mark.parametrize(("q", "noise"), [(1e-4, 0.5), (0.01, 1.0), (0.2, 4.0)])
@pytest.mark.parametrize("order", [2, 3, 10, 32])
def test_log_moment_is_the_binomial_sum_at_integer_orders(q, noise, order) -> None:
    """Mironov, Talwar and Zhang 2019, Section 3.3; remove is the larger direction."""
    with mpmath.workdps(40):
        truth = float(
            mpmath.log1p(
                mpmath.fsum(
                    mpmath.binomial(order, k)
                    * mpmath.mpf(q) ** k
                    * (1 - mpmath.mpf(q)) ** (order - k)
                    * mpmath.expm1(mpmath.mpf(k * k - k) / (2 * noise * noise))
                    for k in range(order + 1)
                )
            )
        )
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    ours = gaussian_moments.log_moments(q, noise, relation, np.array([order - 1.0]))[0]
    assert truth * (1 - 1e-14) <= ours <= truth * (1 + 2e-11)


def test_whole_population_is_exactly_the_gaussian() -> None:
    t = np.array([0.5, 1.0, 7.0])
    for relation in NeighboringRelation:
        scale = relation.sensitivity(1.0) / 3.0
        expected = t * (1 + t) * (0.5 * scale * scale)
        assert np.array_equal(
            gaussian_moments.log_moments(1.0, 3.0, relation, t), expected
        )


def test_bound_at_tiny_noise_is_above_the_quadrature() -> None:
    t = np.array([0.01, 0.3, 1.0, 3.0])
    for relation, q in itertools.product(NeighboringRelation, (1e-3, 0.1, 0.9)):
        above = gaussian_moments.log_moments(q, 0.0999, relation, t)
        exact = gaussian_moments.log_moments(q, 0.1, relation, t)
        assert np.all(above >= exact)


@pytest.mark.parametrize(
    ("q", "noise", "steps", "delta", "truth"),
    [setting[1:] for setting in SETTINGS],
    ids=[setting[0] for setting in SETTINGS],
)
def test_epsilon_lies_between_truth_and_dp_accounting(
    q, noise, steps, delta, truth, monkeypatch
) -> None:
    ours = RdpAccountant().compose(sampled(q, noise), steps).epsilon(delta)
    # It warns about orders that it drops; the oracle may, our code may not.
    monkeypatch.setattr("absl.logging.warning", lambda *_: None)
    theirs = TheirRdpAccountant().compose(
        dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise)),
        steps,
    )
    # The truth is known to seven digits.
    assert truth * (1 - 5e-7) <= ours.upper <= theirs.get_epsilon(delta) * (1 + 1e-6)
    assert ours.converged


def test_epsilon_of_a_gaussian_is_the_minimum_over_all_orders() -> None:
    noise, count, delta = 5.0, 25, 1e-5
    rho = count / (2 * noise * noise)

    def bound(t: float) -> float:
        return (1 + t) * rho + math.log(t / (1 + t)) - math.log(delta * (1 + t)) / t

    # The valley is smooth: a scan of step 1e-5 finds its floor to 1e-10.
    best = min(bound(4.0 + 1e-4 * k) for k in range(40_000))
    ours = RdpAccountant().compose(GaussianEvent(noise), count).epsilon(delta).upper
    assert best * (1 - 1e-9) <= ours <= best * (1 + 1e-6)


def test_whole_range_is_answered_without_overflow() -> None:
    grid = itertools.product(
        NeighboringRelation,
        (1e-9, 1e-4, 0.3, 0.999, 1.0),
        (0.2, 1.0, 1000.0),
        (1, 10**7),
        (0.5, 1e-20),
    )
    for relation, q, noise, count, delta in grid:
        accountant = RdpAccountant(relation).compose(sampled(q, noise), count)
        bounds = accountant.epsilon(delta)
        assert 0 <= bounds.upper < math.inf
        assert 0 < accountant.delta(bounds.upper).upper <= max(delta * 1.0001, 1e-300)


@pytest.mark.parametrize("noise", [1e-200, 1e-3, 0.05, 1e9, 1e300])
def test_noise_beyond_reason_is_answered(noise) -> None:
    for event in (GaussianEvent(noise), PoissonSampledEvent(0.1, GaussianEvent(noise))):
        bounds = RdpAccountant().compose(event, 10).epsilon(1e-6)
        assert bounds.upper >= 0


def test_delta_that_underflows_stays_above_zero() -> None:
    accountant = RdpAccountant().compose(GaussianEvent(100.0))
    assert accountant.delta(1000.0).upper > 0


def test_order_at_the_end_of_the_range_is_flagged() -> None:
    accountant = RdpAccountant().compose(sampled(1e-9, 1000.0))
    bounds = accountant.epsilon(1e-20)
    assert not bounds.converged
    assert bounds.upper > 0


def test_noise_that_changes_every_step_costs_the_sum() -> None:
    accountant = RdpAccountant()
    for k in range(20):
        accountant.compose(sampled(0.01, 1.0 + 0.01 * k))
    between = accountant.epsilon(1e-5).upper
    most = RdpAccountant().compose(sampled(0.01, 1.0), 20).epsilon(1e-5).upper
    least = RdpAccountant().compose(sampled(0.01, 1.19), 20).epsilon(1e-5).upper
    assert least < between < most
