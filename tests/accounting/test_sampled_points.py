"""Poisson-sampled laws of points: brackets around sums in full, and tiny chances."""

import math

import numpy as np
import pytest

from accounting.events import (
    DiscreteGaussianEvent,
    DiscreteLaplaceEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    MixtureOfGaussiansEvent,
    NeighboringRelation,
    PoissonSampledEvent,
)
from accounting.pld import PldAccountant
from accounting.rdp import RdpAccountant

STEP = 1e-5
POINTS = 1 << 21


def integer_noise(event: Event) -> np.ndarray:
    """Probabilities of the noise at -60 .. 60."""
    x = np.abs(np.arange(-60, 61))
    scale = event.noise_multiplier * event.sensitivity
    power = (
        x / scale if isinstance(event, DiscreteLaplaceEvent) else (x / scale) ** 2 / 2
    )
    law = np.exp(-power)
    return law / law.sum()


def enclosed_delta(event: Event, q: float, count: int, epsilon: float):
    """Delta with all losses rounded down, and up, to a grid: the larger direction.

    On 2^21 points of 1e-5; sums of losses beyond +-10 do not occur here.
    """
    other = integer_noise(event)
    moved = np.roll(other, event.sensitivity)
    mixed = (1 - q) * other + q * moved
    results = []
    for up in (0, 1):
        deltas = []
        for p, without in ((mixed, other), (other, mixed)):
            kept = p > 1e-18
            loss = np.log(p[kept] / without[kept])
            index = np.floor(loss / STEP).astype(int) + up
            law = np.bincount(index % POINTS, p[kept], POINTS)
            total = np.fft.irfft(np.fft.rfft(law) ** count, POINTS)
            loss = STEP * ((np.arange(POINTS) + POINTS // 2) % POINTS - POINTS // 2)
            above = loss > epsilon
            deltas.append(float(total[above] @ -np.expm1(epsilon - loss[above])))
        results.append(max(deltas))
    return results


@pytest.mark.parametrize(
    ("event", "q", "count", "delta"),
    [
        (DiscreteGaussianEvent(1.0), 0.01, 100, 1e-6),
        (DiscreteGaussianEvent(1.0), 0.2, 3, 1e-5),
        (DiscreteGaussianEvent(2.0, 3), 0.05, 20, 1e-5),
        (DiscreteGaussianEvent(0.6), 0.01, 10, 1e-7),
        (DiscreteLaplaceEvent(1.5), 0.02, 50, 1e-6),
        (DiscreteLaplaceEvent(3.0, 2), 0.3, 4, 1e-4),
    ],
    ids=str,
)
def test_sampled_integer_noise_is_enclosed(event, q, count, delta) -> None:
    accountant = PldAccountant().compose(PoissonSampledEvent(q, event), count)
    bounds = accountant.epsilon(delta)
    assert bounds.lower <= bounds.estimate <= bounds.upper
    assert bounds.upper - bounds.lower <= 1e-3 * bounds.upper
    # An FFT without a tilt leaves errors of 1e-16 of the whole mass.
    assert enclosed_delta(event, q, count, bounds.upper)[0] <= delta + 1e-12
    assert enclosed_delta(event, q, count, bounds.lower)[1] >= delta - 1e-12
    found = accountant.delta(bounds.estimate)
    low, high = enclosed_delta(event, q, count, bounds.estimate)
    assert found.lower <= high + 1e-12
    assert found.upper >= low - 1e-12
    assert found.upper <= 1.03 * found.lower


def test_bracket_of_a_hundred_sampled_integer_sums() -> None:
    event = PoissonSampledEvent(0.01, DiscreteGaussianEvent(1.0))
    bounds = PldAccountant().compose(event, 100).epsilon(1e-6)
    assert 0.9432 <= bounds.lower <= bounds.estimate <= bounds.upper <= 0.9442


@pytest.mark.parametrize("q", [0.01, 0.2, 0.9])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_one_sampled_laplace_release_has_its_largest_loss(q, scale) -> None:
    """Half of the mass of P lies on it, so no small delta lies below."""
    largest = math.log1p(q * math.expm1(1 / scale))
    event = PoissonSampledEvent(q, LaplaceEvent(scale))
    bounds = PldAccountant().compose(event).epsilon(1e-12)
    assert bounds.lower <= largest * (1 + 1e-9)
    assert bounds.upper >= largest * (1 - 1e-9)
    assert bounds.upper - bounds.lower <= 1e-3 * bounds.upper


TINY = [1e-60, 3.48e-123, 1e-161, 1e-200, 1e-300, 5e-324]


@pytest.mark.parametrize("make", [PldAccountant, RdpAccountant])
@pytest.mark.parametrize("q", TINY)
@pytest.mark.parametrize(
    "make_event",
    [
        lambda q: PoissonSampledEvent(q, GaussianEvent(0.0575)),
        lambda q: PoissonSampledEvent(q, GaussianEvent(1.0)),
        lambda q: PoissonSampledEvent(q, GaussianEvent(30.0)),
        lambda q: PoissonSampledEvent(q, DiscreteGaussianEvent(1.0)),
        lambda q: PoissonSampledEvent(q, LaplaceEvent(0.5)),
        lambda q: MixtureOfGaussiansEvent(1.0, (0.0, 0.5, 1.0), (1.0, q, q)),
        lambda q: MixtureOfGaussiansEvent(1.0, (0.0, 0.5, 1.0), (0.99, 0.01, q)),
    ],
    ids=["near atom", "gaussian", "noisy", "integers", "laplace", "rare", "uneven"],
)
def test_chances_near_zero_have_an_answer(make, q, make_event) -> None:
    for count in (1, 1000):
        for delta in (1e-6, 2e-252):
            accountant = make().compose(make_event(q), count)
            bounds = accountant.epsilon(delta)
            assert 0 <= bounds.lower <= bounds.upper < math.inf
            assert accountant.delta(0.5).upper >= 0


@pytest.mark.parametrize("q", [1e-60, 3.48e-123, 1e-250])
def test_rare_release_with_little_noise_is_known_from_both_sides(q) -> None:
    """Drawn with probability q, it has the loss (2x - 1) / 2 s^2 + ln q at x > 0."""
    from scipy.special import log_ndtr, ndtri_exp

    noise, delta = 0.0575, 2e-252
    bounds = (
        PldAccountant()
        .compose(PoissonSampledEvent(q, GaussianEvent(noise)))
        .epsilon(delta)
    )
    assert bounds.converged
    if q <= delta:
        assert bounds.upper == 0
        return
    # q P(x > t) is at least delta, and half of it lies where 1 - e^{eps - l} > 1/2.
    t = 1 - noise * ndtri_exp(math.log(delta / q))
    assert float(log_ndtr(-(t - 1) / noise)) == pytest.approx(math.log(delta / q))
    largest = float(np.logaddexp(0, (2 * t - 1) / (2 * noise**2) + math.log(q)))
    assert bounds.upper <= largest * (1 + 1e-6)
    assert bounds.lower >= largest * 0.1


def test_replacing_and_zeroing_have_an_answer_too() -> None:
    for relation in NeighboringRelation:
        for q in TINY:
            event = PoissonSampledEvent(q, GaussianEvent(1.0))
            for make in (PldAccountant, RdpAccountant):
                bounds = make(relation).compose(event, 10).epsilon(1e-9)
                assert 0 <= bounds.upper < (1e-6 if make is PldAccountant else 0.1)
