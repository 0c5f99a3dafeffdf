"""The two laws on the grid enclose delta at every epsilon, and so do their sums."""

import math

import mpmath
import numpy as np
import pytest
from scipy import special

from accounting.numerics import ROUNDOFF
from accounting.pld import composition, discretization
from accounting.pld.composition import Curve, Tilted, Window
from accounting.pld.discretization import GridLaw
from accounting.privacy_loss.base import SampledGaussianLoss
from tests.accounting import truth


def delta_of(law: GridLaw, epsilon: float) -> float:
    """delta of one release of a law, by definition."""
    gain = -np.expm1(np.minimum(epsilon - law.losses, 0.0))
    return math.fsum(law.masses * gain) + law.infinite


LOSSES = [
    SampledGaussianLoss(0.01, 1.0, "remove"),
    SampledGaussianLoss(0.3, 0.7, "remove"),
    SampledGaussianLoss(1e-4, 0.5, "remove"),
    SampledGaussianLoss(1.0, 2.0, "remove"),
    SampledGaussianLoss(0.01, 1.0, "add"),
    SampledGaussianLoss(0.6, 3.0, "add"),
    SampledGaussianLoss(0.01, 1.0, "replace"),
    SampledGaussianLoss(1.0, 3.0, "replace"),
    SampledGaussianLoss(0.2, 20.0, "replace"),
]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("step", [0.3, 0.02, 1e-3])
def test_laws_enclose_delta_at_every_epsilon(loss, step) -> None:
    high = loss.largest(1e-12)
    low = -high if loss.direction == "replace" or loss.q == 1 else math.log1p(-loss.q)
    low = low if loss.direction != "add" else -loss.largest(1e-12) - 3
    step = min(step, (high - low) / 8)
    lower, upper = discretization.laws(
        loss, discretization.place(loss, step, low, high)
    )
    assert np.all(lower.masses >= 0) and np.all(upper.masses >= 0)
    generator = np.random.default_rng(0)
    trials = generator.uniform(low - step, high, 25)
    with mpmath.workdps(30):
        for epsilon in trials:
            expected = truth.one_release(loss.direction, loss.q, loss.noise, epsilon)
            # A sum of doubles, which the test itself rounds.
            slack = 1e-14 * abs(math.expm1(min(epsilon, 0))) + 1e-300
            assert delta_of(lower, epsilon) <= expected * (1 + 1e-13) + slack
            assert delta_of(upper, epsilon) >= expected * (1 - 1e-13) - slack


@pytest.mark.parametrize(
    "loss",
    [loss for loss in LOSSES if loss.q > 1e-3 and loss.direction != "add"],
    ids=str,
)
def test_both_laws_err_by_the_square_of_the_step(loss) -> None:
    high = loss.largest(1e-9)
    low = -high if loss.direction != "remove" else math.log1p(-loss.q * 0.999999)
    gaps = []
    for step in (high / 100, high / 200):
        lower, upper = discretization.laws(
            loss, discretization.place(loss, step, low, high)
        )
        # The mean of e^L - 1 - L weighs the whole law.
        weights = [
            math.fsum(law.masses * (np.expm1(-law.losses) + law.losses))
            for law in (lower, upper)
        ]
        gaps.append(weights[1] - weights[0])
    assert 0 < gaps[1] < 0.45 * gaps[0]


def test_upper_law_alone_is_the_upper_law() -> None:
    loss = LOSSES[0]
    cells = discretization.place(loss, 0.01, math.log1p(-loss.q), loss.largest(1e-9))
    _, upper = discretization.laws(loss, cells)
    alone = discretization.upper_law(loss, cells)
    assert np.allclose(alone.masses, upper.masses, rtol=1e-9, atol=1e-18)


def test_hull_takes_out_kinks_and_keeps_mass_of_both_measures() -> None:
    h = 0.1
    masses = np.array([0.3, 0.2, -0.05, 0.25, 0.3])
    hull = discretization._hull(masses, h)
    assert np.all(hull >= 0)
    assert hull[2] == 0
    losses = h * np.arange(5)
    for power in (0.0, -1.0):
        weight = np.exp(power * losses)
        assert hull @ weight == pytest.approx(masses @ weight, rel=1e-13)
    below = discretization._hull(np.array([-0.1, 0.5, 0.5]), h)
    assert below[0] == 0
    assert below[1] == pytest.approx(0.5 - 0.1 * math.exp(h), rel=1e-13)


def test_hull_claims_nothing_where_it_finds_none() -> None:
    assert not discretization._hull(np.array([0.5, -0.6, -0.1]), 0.1).any()


def curve_of(law: GridLaw, count: int, theta: float, window: Window, *, upper: bool):
    tilted = Tilted([(law, count)], theta)
    # A lower bound is told from an upper one by the law that its tails come from.
    return Curve(tilted, window, tilted if upper else Tilted([(law, count)], theta))


def exact_delta(masses: list[tuple[float, float]], count: int, epsilon: float):
    """delta of count releases with two losses, summed over the binomial law."""
    (p, first), (other, second) = masses
    p, other = mpmath.mpf(p), mpmath.mpf(other)
    total = mpmath.mpf(0)
    for k in range(count + 1):
        loss = (count - k) * mpmath.mpf(first) + k * mpmath.mpf(second)
        if loss > epsilon:
            weight = mpmath.binomial(count, k) * p ** (count - k) * other**k
            total += weight * -mpmath.expm1(epsilon - loss)
    return total


def test_mass_outside_the_window_is_counted() -> None:
    """Losses 0 and 4 three times on 8 points: what folds over is lost without care."""
    law = GridLaw(1.0, 0.0, 0, np.array([0.9, 0, 0, 0, 0.1]))
    expected = float(exact_delta([(0.9, 0.0), (0.1, 4.0)], 3, 6.0))
    for theta in (0.1, 1.0):
        window = Window(0, 8)
        upper = curve_of(law, 3, theta, window, upper=True)
        lower = curve_of(law, 3, theta, window, upper=False)
        assert math.exp(upper.log_delta(6)) >= expected
        assert math.exp(lower.log_delta(6)) <= expected


@pytest.mark.parametrize(
    ("p", "count", "epsilon"),
    [(1e-3, 2000, 8.0), (0.3, 500, 190.0), (1e-6, 10_000, 5.0), (0.5, 4000, 2300.0)],
)
def test_composition_encloses_the_binomial_law(p, count, epsilon) -> None:
    """Rounding is what is tested: these laws are on the grid exactly."""
    law = GridLaw(1.0, 0.0, 0, np.array([1 - p, p]))
    with mpmath.workdps(40):
        expected = exact_delta([(1 - p, 0.0), (p, 1.0)], count, epsilon)
        log_expected = float(mpmath.log(expected))
    theta = math.log(epsilon / count / p * (1 - p) / (1 - epsilon / count))
    tilted = Tilted([(law, count)], theta)
    first, last = tilted.range(epsilon, math.exp(log_expected))
    size = 1 << (last - first + 1).bit_length()
    window = Window(first, size)
    index = round(epsilon) - first
    upper = curve_of(law, count, theta, window, upper=True).log_delta(index)
    lower = curve_of(law, count, theta, window, upper=False).log_delta(index)
    assert lower <= log_expected <= upper
    assert upper - lower <= 1e-4


def test_unlike_laws_compose_to_the_sum_of_their_losses() -> None:
    first = GridLaw(0.5, 0.1, 0, np.array([0.7, 0.0, 0.3]))
    second = GridLaw(0.5, -0.2, 1, np.array([0.6, 0.4]), infinite=1e-3)
    tilted = Tilted([(first, 2), (second, 1)], 0.7)
    curve = Curve(tilted, Window(0, 16), tilted)
    expected = 1e-3
    for a, p in ((0.1, 0.7), (1.1, 0.3)):
        for b, r in ((0.1, 0.7), (1.1, 0.3)):
            for c, s in ((0.3, 0.6), (0.8, 0.4)):
                expected += p * r * s * -math.expm1(min(0.4 - (a + b + c), 0.0))
    assert curve.delta(0.4) == pytest.approx(expected, rel=1e-6)
    assert curve.delta(0.4) >= expected
    assert curve.epsilon(curve.delta(0.4), 1.0) == pytest.approx(0.4, rel=1e-6)


def test_normal_distribution_errs_by_what_the_bounds_assume() -> None:
    """8 u (1 + z^2 / 2) of the smaller tail; the worst found is a third of it."""
    worst = 0.0
    with mpmath.workdps(50):
        for z in np.random.default_rng(1).uniform(-37, 0, 3000):
            exact = mpmath.ncdf(mpmath.mpf(float(z)))
            error = abs(mpmath.mpf(float(special.ndtr(z))) / exact - 1)
            worst = max(worst, float(error) / (8 * ROUNDOFF * (1 + z * z / 2)))
    assert worst < 1


def test_transform_errs_by_less_than_its_bound() -> None:
    """Higham's bound for N points, against a transform in many digits."""
    size = 64
    generator = np.random.default_rng(2)
    v = generator.random(size)
    with mpmath.workdps(30):
        exact = [
            mpmath.fsum(
                mpmath.mpf(float(x)) * mpmath.expjpi(mpmath.mpf(-2 * j * k) / size)
                for j, x in enumerate(v)
            )
            for k in range(size // 2 + 1)
        ]
        difference = [
            complex(mpmath.mpc(complex(a)) - b)
            for a, b in zip(np.fft.rfft(v), exact, strict=True)
        ]
    norm = float(np.linalg.norm(v))
    bound = 8 * ROUNDOFF * math.log2(size) * math.sqrt(size) * norm
    assert np.linalg.norm(difference) < bound


def test_complex_logarithm_and_exponential_keep_small_digits() -> None:
    generator = np.random.default_rng(3)
    size = 10.0 ** generator.uniform(-18, 1, 200)
    f = size * np.exp(2j * math.pi * generator.random(200))
    with mpmath.workdps(40):
        for value, log, exponential in zip(
            f, composition._log_one_plus(f), composition._expm1(f), strict=True
        ):
            exact = mpmath.log(1 + mpmath.mpc(complex(value)))
            # Relative to |f| / |1 + f|, which is what a rounding of f makes of it.
            scale = abs(value) * (1 + 1 / abs(1 + value)) * ROUNDOFF
            assert float(abs(mpmath.mpc(complex(log)) - exact)) <= 24 * scale
            exact = mpmath.expm1(mpmath.mpc(complex(value)))
            error = float(abs(mpmath.mpc(complex(exponential)) - exact))
            growth = abs(value) * math.exp(max(value.real, 0.0))
            assert error <= 8 * ROUNDOFF * max(growth, float(abs(exact)))


@pytest.mark.parametrize(("q", "noise"), [(1.3e-7, 0.42), (6.2e-7, 0.52)])
def test_lower_law_survives_next_to_what_is_nearly_an_atom(q, noise) -> None:
    """Middles alone would press the dots below 0; every tangent is a valid choice."""
    loss = SampledGaussianLoss(q, noise, "replace")
    step, high = 5e-3, loss.largest(1e-24)
    lower, upper = discretization.laws(
        loss, discretization.place(loss, step, -0.01, high)
    )
    with mpmath.workdps(40):
        for epsilon in np.linspace(-0.02, 0.9 * high, 30):
            expected = truth.one_release("replace", q, noise, epsilon)
            slack = 1e-14 * abs(math.expm1(min(epsilon, 0))) + 1e-300
            below, above = delta_of(lower, epsilon), delta_of(upper, epsilon)
            assert below <= expected * (1 + 1e-12) + slack
            assert above >= expected * (1 - 1e-12) - slack
            if 0.1 < epsilon < 0.6 * high:
                assert below >= 0.95 * expected
