"""Laws of other mechanisms than one Gaussian: against definitions in many digits."""

import math

import mpmath
import numpy as np
import pytest

from accounting.events import ApproximateEvent, GaussianEvent
from accounting.pld import PldAccountant, discretization
from accounting.privacy_loss import discrete
from accounting.privacy_loss.base import SampledGaussianLoss
from accounting.privacy_loss.dominating_pairs import truncation
from accounting.privacy_loss.laplace import LaplaceLoss
from accounting.privacy_loss.mixtures import GaussianMixtureLoss, WeightedLoss
from accounting.privacy_loss.poisson_sampled import SampledLoss
from accounting.rdp import RdpAccountant
from tests.accounting import truth
from tests.accounting.test_grid import delta_of

SHIFTS, CHANCES = (0.25, 0.5, 1.0), (0.05, 0.02, 0.001)


def laplace(q: float, scale: float, is_add: bool, epsilon: float):
    """delta by the best threshold: the loss is constant outside of [0, 1]."""
    mp = mpmath.mp
    b, q = mp.mpf(scale), mp.mpf(q)

    def law(x, mean):
        z = (x - mean) / b
        return mp.exp(z) / 2 if z < 0 else 1 - mp.exp(-z) / 2

    def gap(x):
        # Mass beyond x of the mixture and of the law around 0.
        base, moved = 1 - law(x, 0), 1 - law(x, 1)
        mixed = (1 - q) * base + q * moved
        if is_add:
            return (1 - base) - mp.exp(epsilon) * (1 - mixed)
        return mixed - mp.exp(epsilon) * base

    low, high = mp.mpf(0), mp.mpf(1)
    for _ in range(200):
        third = (high - low) / 3
        if gap(low + third) < gap(high - third):
            low += third
        else:
            high -= third
    return max(gap(low), 0, 1 - mp.exp(epsilon))


def mixture(noise: float, is_add: bool, epsilon: float):
    mp = mpmath.mp
    s = mp.mpf(noise)
    parts = [(1 - sum(map(mp.mpf, CHANCES)), 0), *zip(CHANCES, SHIFTS, strict=True)]
    sign = -1 if is_add else 1

    def log_w(x):
        return mp.log(sum(p * mp.exp(c * (2 * x - c) / (2 * s * s)) for p, c in parts))

    low, high = mp.mpf(-80) * s, mp.mpf(80) * s
    if sign * log_w(sign * high) <= epsilon:
        return mp.mpf(0)
    if sign * log_w(sign * low) > epsilon:
        return 1 - mp.exp(epsilon)
    for _ in range(200):
        x = (low + high) / 2
        low, high = (low, x) if sign * log_w(sign * x) > epsilon else (x, high)
    x = sign * high
    base = mp.ncdf(-sign * x / s)
    mixed = sum(p * mp.ncdf(sign * (c - x) / s) for p, c in parts)
    first, second = (base, mixed) if is_add else (mixed, base)
    return first - mp.exp(epsilon) * second


def points(mass, distance: int, epsilon: float):
    """delta of integer noise of the given masses at a distance, point by point."""
    mp = mpmath.mp
    total = mp.fsum(mass.values())
    return (
        mp.fsum(
            max(p - mp.exp(epsilon) * mass.get(x - distance, mp.mpf(0)), 0)
            for x, p in mass.items()
        )
        / total
    )


def gaussian_masses(deviation: float, most: int):
    return {
        x: mpmath.exp(-mpmath.mpf(x * x) / (2 * mpmath.mpf(deviation) ** 2))
        for x in range(-most, most + 1)
    }


def laplace_masses(scale: float, most: int):
    return {x: mpmath.exp(-abs(x) / mpmath.mpf(scale)) for x in range(-most, most + 1)}


def answers(noise: float, buckets: int, epsilon: float):
    n = mpmath.mpf(noise)
    told, other = 1 - n + n / buckets, n / buckets
    pairs = [(told, other), (other, told), *[(other, other)] * (buckets - 2)]
    return sum(max(p - mpmath.exp(epsilon) * q, 0) for p, q in pairs)


def sampled_points(mass, distance: int, q: float, is_add: bool, epsilon: float):
    mp = mpmath.mp
    total, q = mp.fsum(mass.values()), mp.mpf(q)
    result = mp.mpf(0)
    for x in range(min(mass), max(mass) + distance + 1):
        base, moved = mass.get(x, mp.mpf(0)), mass.get(x - distance, mp.mpf(0))
        mixed = (1 - q) * base + q * moved
        first, second = (base, mixed) if is_add else (mixed, base)
        result += max(first - mp.exp(epsilon) * second, 0)
    return result / total


CASES = {
    "laplace": (LaplaceLoss(0.5), lambda e: laplace(1.0, 2.0, False, e)),
    "small laplace": (LaplaceLoss(10.0), lambda e: laplace(1.0, 0.1, False, e)),
    "sampled laplace, remove": (
        SampledLoss(LaplaceLoss(1.0), 0.1, False),
        lambda e: laplace(0.1, 1.0, False, e),
    ),
    "sampled laplace, add": (
        SampledLoss(LaplaceLoss(2.0), 0.3, True),
        lambda e: laplace(0.3, 0.5, True, e),
    ),
    "mixture, remove": (
        GaussianMixtureLoss(0.8, SHIFTS, CHANCES, False),
        lambda e: mixture(0.8, False, e),
    ),
    "mixture, add": (
        GaussianMixtureLoss(0.8, SHIFTS, CHANCES, True),
        lambda e: mixture(0.8, True, e),
    ),
    "discrete gaussian": (
        discrete.discrete_gaussian(2.5, 3),
        lambda e: points(gaussian_masses(2.5, 100), 3, e),
    ),
    "sampled discrete gaussian": (
        SampledLoss(discrete.discrete_gaussian(1.5, 2), 0.05, False),
        lambda e: sampled_points(gaussian_masses(1.5, 60), 2, 0.05, False, e),
    ),
    "sampled discrete gaussian, add": (
        SampledLoss(discrete.discrete_gaussian(1.5, 2), 0.05, True),
        lambda e: sampled_points(gaussian_masses(1.5, 60), 2, 0.05, True, e),
    ),
    "discrete laplace": (
        discrete.discrete_laplace(1.5, 3),
        lambda e: points(laplace_masses(1.5, 140), 3, e),
    ),
    "randomized response": (
        discrete.randomized_response(0.5, 4),
        lambda e: answers(0.5, 4, e),
    ),
    "pure": (
        discrete.pure(0.7),
        lambda e: answers(2 / (1 + math.exp(0.7)), 2, e),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step", [0.07, 3e-3])
def test_laws_enclose_delta_at_every_epsilon(name, step) -> None:
    loss, expected_at = CASES[name]
    high = loss.largest(1e-20)
    low = -max(high, 1.0)
    placed = discretization.place(loss, step, low, high)
    spaced = loss.lattice is not None and discretization.aligned(
        loss.lattice[1] / math.ceil(loss.lattice[1] / step), loss.lattice[0], low, high
    )
    trials = np.random.default_rng(5).uniform(-min(high, 2), min(high, 4), 20)
    for cells in filter(None, (placed, spaced)):
        lower, upper = discretization.laws(loss, cells)
        with mpmath.workdps(40):
            for epsilon in trials:
                expected = float(expected_at(epsilon))
                # Quantiles of 1e-20 are left out, and sums of 1 have their rounding.
                slack = 1e-14 * abs(math.expm1(min(epsilon, 0))) + 1e-15
                below, above = delta_of(lower, epsilon), delta_of(upper, epsilon)
                assert below <= expected * (1 + 1e-13) + slack
                assert above >= expected * (1 - 1e-13) - slack
                # A coarse lower law may claim nothing.
                assert step > 0.01 or above - below <= step


@pytest.mark.parametrize("name", CASES)
def test_nodes_are_the_law(name) -> None:
    """Total mass of both measures, and the excess over 0 that the cells give."""
    loss, expected_at = CASES[name]
    nodes = loss.nodes(1e-18, 0.0, 0.0)
    assert nodes.weight.sum() == pytest.approx(1, abs=1e-11)
    assert nodes.weight @ np.exp(-nodes.loss) == pytest.approx(1, abs=1e-9)
    with mpmath.workdps(30):
        expected = float(expected_at(0.0))
    assert expected <= loss.variation() <= expected * (1 + 1e-9)


def test_mixture_of_one_sensitivity_is_the_sampled_gaussian() -> None:
    boundaries = np.linspace(-0.2, 8, 300)
    for is_add in (False, True):
        ends = -boundaries[::-1] if is_add else boundaries
        one = GaussianMixtureLoss(0.7, (1.0,), (0.02,), is_add).cells(ends)
        known = SampledGaussianLoss(0.02, 0.7, "add" if is_add else "remove")
        other = known.cells(ends)
        assert np.allclose(one.mass, other.mass, rtol=1e-11, atol=1e-18)
        assert np.allclose(one.excess, other.excess, rtol=1e-9, atol=1e-17)


@pytest.mark.parametrize(
    ("q", "size", "most"), [(0.05, 60, 6), (0.3, 40, 12), (1e-3, 200, 2), (0.5, 9, 8)]
)
def test_truncation_is_the_binomial_sum(q, size, most) -> None:
    with mpmath.workdps(30):
        chances = [
            mpmath.binomial(size - 1, r)
            * mpmath.mpf(q) ** r
            * (1 - mpmath.mpf(q)) ** (size - 1 - r)
            for r in range(size)
        ]
        cut = mpmath.fsum(chances[most:])
        kept = mpmath.fsum(
            chance * q * most / (r + 1) for r, chance in enumerate(chances) if r >= most
        )
        expected = float(1 - cut), float(cut), float(kept / cut)
    assert truncation(q, size, most) == pytest.approx(expected, rel=1e-11)


def test_weighted_pair_is_the_mean_of_both() -> None:
    near = SampledGaussianLoss(0.1, 1.0, "remove")
    far = SampledGaussianLoss(0.05, 0.5, "remove")
    loss = WeightedLoss(((0.8, near), (0.2, far)), 1e-12, near)
    lower, upper = discretization.laws(
        loss, discretization.place(loss, 0.01, -0.2, loss.largest(1e-15))
    )
    with mpmath.workdps(30):
        for epsilon in (-0.05, 0.0, 0.3, 2.0):
            expected = 0.8 * truth.one_release("remove", 0.1, 1.0, epsilon)
            expected += 0.2 * truth.one_release("remove", 0.05, 0.5, epsilon)
            assert delta_of(lower, epsilon) <= expected <= delta_of(upper, epsilon)
            assert delta_of(upper, epsilon) <= expected * 1.01 + 1e-4


@pytest.mark.parametrize("make", [PldAccountant, RdpAccountant])
@pytest.mark.parametrize("failure", [0.5, 0.01])
def test_release_that_may_fail_adds_what_is_left_of_delta(make, failure) -> None:
    """D + (1 - D) delta: what failed already cannot fail again."""
    whole = make().compose(GaussianEvent(1.0))
    accountant = make().compose(GaussianEvent(1.0))
    accountant.compose(ApproximateEvent(0.0, failure), 2)
    told = 1 - (1 - failure) ** 2
    for epsilon in (0.0, 0.5, 3.0):
        alone, bounds = whole.delta(epsilon), accountant.delta(epsilon)
        expected = told + (1 - told) * alone.upper
        assert bounds.upper == pytest.approx(expected, rel=1e-12)
        assert bounds.lower <= bounds.estimate <= bounds.upper
        assert bounds.upper >= expected * (1 - 1e-15)
