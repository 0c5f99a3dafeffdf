"""Random allocation: the laws of an epoch against simulation and other definitions."""

import math

import mpmath
import numpy as np
import pytest

from accounting.events import GaussianEvent, NeighboringRelation, RandomAllocationEvent
from accounting.pld import PldAccountant
from accounting.privacy_loss.lognormal_sums import (
    _hull,
    lowered_dots,
    spread_up,
    step_of,
)
from accounting.privacy_loss.random_allocation import allocation_losses


def allocated(bins: int, noise: float) -> RandomAllocationEvent:
    return RandomAllocationEvent(bins, GaussianEvent(noise))


def delta_of(loss, epsilon: float) -> float:
    points = loss.points
    gain = -np.expm1(np.minimum(epsilon - points.loss, 0.0))
    return float(points.weight @ gain) + loss.infinite


def test_two_bins_are_the_double_integral() -> None:
    """E(Z - e^eps)+ and E(1 - e^eps Z)+ with Z the mean of two log-normals."""
    noise = 1.5
    removed, added = allocation_losses(2, noise, 1e-12, 1 << 15)
    mp = mpmath.mp

    def w(y):
        return mp.exp(y / noise - 1 / (2 * mp.mpf(noise) ** 2))

    def root(value):
        """y with w(y) = value."""
        if value <= 0:
            return mp.mpf(-12)
        return noise * (mp.log(value) + 1 / (2 * mp.mpf(noise) ** 2))

    for epsilon in (-0.3, 0.2, 1.0):
        x = mp.exp(epsilon)

        def remove(y, x=x):
            # The inner integral over the other W is that of a call option.
            level = 2 * x - w(y)
            if level <= 0:
                return mp.npdf(y) * (w(y) + 1 - 2 * x) / 2
            cut = root(level)
            inner = mp.ncdf(-(cut - 1 / mp.mpf(noise))) - level * mp.ncdf(-cut)
            return mp.npdf(y) * inner / 2

        def add(y, x=x):
            level = 2 / x - w(y)
            if level <= 0:
                return mp.mpf(0)
            cut = root(level)
            inner = level * mp.ncdf(cut) - mp.ncdf(cut - 1 / mp.mpf(noise))
            return mp.npdf(y) * inner * x / 2

        ends = [-12, -4, -1, 1, root(2 * x), 5, 13]
        expected = float(mp.quad(remove, sorted(ends)))
        assert delta_of(removed.attained, epsilon) <= expected * (1 + 1e-9)
        assert expected * (1 - 1e-9) <= delta_of(removed, epsilon)
        assert delta_of(removed, epsilon) <= 1.001 * expected
        assert delta_of(removed.attained, epsilon) >= 0.998 * expected
        ends = [-12, -4, -1, 1, root(2 / x), 5, 13]
        expected = float(mp.quad(add, sorted(ends)))
        assert expected * (1 - 1e-9) <= delta_of(added, epsilon) <= 1.01 * expected


@pytest.mark.parametrize(("bins", "noise"), [(100, 1.0), (20, 0.7), (1000, 2.0)])
def test_laws_enclose_a_simulation(bins, noise) -> None:
    """40,000 draws or more; a miss by 5.5 standard errors has probability 4e-8 each."""
    generator = np.random.default_rng(0)
    z = np.concatenate(
        [
            np.exp(
                generator.standard_normal((2_000, bins)) / noise - 0.5 / noise**2
            ).mean(axis=1)
            for _ in range(max(1, 20_000 // bins))
        ]
    )
    removed, added = allocation_losses(bins, noise, 1e-10, 1 << 15)
    for epsilon in (-z.std(), 0.0, z.std()):
        x = math.exp(epsilon)
        for values, loss in (
            (np.maximum(z - x, 0), removed),
            (np.maximum(1 - x * z, 0), added),
        ):
            mean = values.mean()
            error = 5.5 * values.std() / math.sqrt(len(z))
            assert delta_of(loss, epsilon) >= mean - error
            if loss.attained is not None:
                assert delta_of(loss.attained, epsilon) <= mean + error
            # The smallest mistake that this would find.
            assert error < 0.1 * mean


@pytest.mark.parametrize(
    ("noise", "epochs", "low", "high"),
    [(1.0, 1, 0.857882, 0.858002), (1.5, 20, 1.46006, 1.46213)],
)
def test_bracket_is_narrow_and_meets_that_of_a_prototype(
    noise, epochs, low, high
) -> None:
    """The best published brackets are [0.8437, 0.8745] and [1.4310, 1.4935]."""
    bounds = (
        PldAccountant(relative_width=1e-3)
        .compose(allocated(100, noise), epochs)
        .epsilon(1e-6)
    )
    assert bounds.converged
    assert bounds.upper - bounds.lower <= 2e-3 * bounds.upper
    assert bounds.lower <= high
    assert bounds.upper >= low


@pytest.mark.parametrize("noise", [0.05, 0.25, 0.4, 0.5, 0.8])
def test_little_noise_is_answered_and_never_above_no_amplification(noise) -> None:
    bounds = (
        PldAccountant(relative_width=1e-3).compose(allocated(100, noise)).epsilon(1e-6)
    )
    whole = PldAccountant().compose(GaussianEvent(noise)).epsilon(1e-6)
    assert 0 <= bounds.lower <= bounds.upper <= whole.upper
    assert bounds.converged or bounds.upper > 1.001 * bounds.lower


def test_more_bins_cost_less_and_one_is_no_allocation() -> None:
    uppers = [
        PldAccountant().compose(allocated(bins, 1.0), 2).epsilon(1e-6).upper
        for bins in (1000, 100, 10, 2, 1)
    ]
    assert uppers == sorted(uppers)
    whole = PldAccountant().compose(GaussianEvent(1.0), 2).epsilon(1e-6)
    assert uppers[-1] == whole.upper


def test_tiny_delta_is_answered() -> None:
    accountant = PldAccountant().compose(allocated(100, 1.0))
    uppers = [accountant.epsilon(delta).upper for delta in (1e-6, 1e-9, 1e-15)]
    assert uppers == sorted(uppers)
    assert uppers[-1] < math.inf


@pytest.mark.parametrize(("noise", "h"), [(1.0, 0.05), (2.0, 0.01), (0.5, 3.0)])
def test_one_term_is_enclosed_at_every_point(noise, h) -> None:
    """E(W - x)+ is the price of a call option, on the grid and between its points."""
    step = step_of(noise, h, 400)
    top = float(step.points[-1])
    upper, lower = spread_up(step), lowered_dots(step)
    assert lower.any()
    with mpmath.workdps(30):

        def beyond(x):
            """E(W - x)+, W at most the last point."""
            ends = [
                noise * mpmath.log(v) + 1 / (2 * mpmath.mpf(noise)) for v in (x, top)
            ]
            mass = mpmath.ncdf(ends[1]) - mpmath.ncdf(ends[0])
            shift = 1 / mpmath.mpf(noise)
            mean = mpmath.ncdf(ends[1] - shift) - mpmath.ncdf(ends[0] - shift)
            return float(mean - x * mass)

        for x in np.random.default_rng(4).uniform(0.01, 0.3, 40) * top:
            expected = beyond(x)
            values = [
                float(law @ np.maximum(step.points[: len(law)] - x, 0.0))
                for law in (lower, upper)
            ]
            assert values[0] <= expected * (1 + 1e-9) + 1e-15
            assert values[1] >= expected * (1 - 1e-9) - 1e-15


def test_hull_keeps_mass_and_mean_and_stays_below() -> None:
    masses = np.array([0.3, 0.2, -0.05, 0.25, 0.3])
    hull = _hull(masses)
    assert np.all(hull >= 0)
    assert hull.sum() == pytest.approx(masses.sum(), rel=1e-14)
    assert hull @ np.arange(5) == pytest.approx(masses @ np.arange(5), rel=1e-14)
    assert not _hull(np.array([0.5, -0.6, -0.1])).any()


def test_zeroing_is_removing() -> None:
    bounds = [
        PldAccountant(relation).compose(allocated(50, 1.0)).epsilon(1e-5)
        for relation in (
            NeighboringRelation.ADD_OR_REMOVE_ONE,
            NeighboringRelation.ZERO_OUT,
        )
    ]
    assert bounds[0] == bounds[1]
