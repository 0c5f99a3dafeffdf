"""Trade-offs: around closed forms, sound both ways, tighter than the symmetric one."""

import builtins
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import norm

from accounting import tradeoff
from accounting.accountant import Bounds, ComposingAccountant
from accounting.events import (
    ApproximateEvent,
    DiscreteGaussianEvent,
    FixedSizeSampledEvent,
    GaussianEvent,
    LaplaceEvent,
    NeighboringRelation,
    PoissonSampledEvent,
)
from accounting.pld import PldAccountant
from accounting.rdp import RdpAccountant
from accounting.report import delta_curves, plots
from tests.accounting.battery import sampled

RATES = [1e-5, 1e-3, 0.05, 0.3, 0.7, 0.99]


def single_release_tpr(q: float, noise: float, rate: float) -> tuple[float, float]:
    """TPR of both orders for one sampled Gaussian: thresholds on its one dimension."""
    # With = (1-q) N(0) + q N(1) against N(0): large outputs speak for the example.
    x = norm.isf(rate) * noise
    with_first = (1 - q) * norm.sf(x / noise) + q * norm.sf((x - 1) / noise)
    # N(0) against with: small outputs speak for its absence.
    grid = np.linspace(-40 * noise, 40 * noise, 800_001)
    share = (1 - q) * norm.cdf(grid / noise) + q * norm.cdf((grid - 1) / noise)
    x = np.interp(rate, share, grid)
    return float(with_first), float(norm.cdf(x / noise))


@pytest.mark.parametrize("mu", [0.3, 1.0, 4.0])
def test_gaussian_is_between_the_bounds(mu) -> None:
    accountant = PldAccountant().compose(GaussianEvent(1 / mu))
    for rate, bounds in tradeoff.true_positive_rate(accountant, RATES):
        truth = norm.cdf(norm.ppf(rate) + mu)
        assert bounds.lower <= truth <= bounds.upper
        assert bounds.upper - bounds.lower <= 0.05 * bounds.upper
    gaussian = tradeoff.gaussian(accountant, 1e-6)
    # The ladder's chords cost little, and delta gives a little back.
    assert mu * 0.99 <= gaussian.mu <= mu * 1.01
    assert 0 <= gaussian.regret < 0.03
    advantage = tradeoff.advantage(accountant)
    assert advantage.upper == pytest.approx(2 * norm.cdf(mu / 2) - 1, rel=1e-9)


@pytest.mark.parametrize(("q", "noise"), [(0.3, 1.0), (0.05, 0.5), (0.5, 3.0)])
def test_both_orders_of_a_sampled_release_count_and_the_larger_is_attained(
    q, noise
) -> None:
    accountant = PldAccountant().compose(sampled(q, noise))
    for rate, bounds in tradeoff.true_positive_rate(accountant, RATES):
        truth = max(single_release_tpr(q, noise, rate))
        assert bounds.lower <= truth * (1 + 1e-6)
        assert bounds.upper >= truth * (1 - 1e-6)


def test_two_curves_promise_more_than_the_symmetric_one() -> None:
    """The larger delta at every epsilon, used for both signs, is not attained."""
    accountant = PldAccountant().compose(sampled(0.05, 0.5), 3)
    rates = (0.2, 0.5)
    symmetric = delta_curves.curve_of_largest(accountant, 8.0)
    ours = [b for _, b in tradeoff.true_positive_rate(accountant, rates)]
    loose = [tradeoff._largest_tpr([(symmetric, symmetric)], rate) for rate in rates]
    assert all(a.upper <= b.upper for a, b in zip(ours, loose, strict=True))
    assert ours[1].upper < 0.995 * loose[1].upper


def test_directions_have_delta_as_their_maximum() -> None:
    accountant = PldAccountant().compose(sampled(0.2, 1.0), 3)
    for epsilon in (0.0, 0.1, 0.6, 1.0, 5.0):
        both = accountant.delta(epsilon)
        remove, add = accountant.deltas(epsilon)
        assert max(remove.lower, add.lower) <= both.upper
        assert max(remove.upper, add.upper) >= both.lower
        assert add.lower <= remove.upper
    # Without the example no loss exceeds -3 ln(1 - q).
    assert accountant.deltas(-3 * math.log1p(-0.2))[1].lower == 0.0
    assert len(PldAccountant().compose(GaussianEvent(1.0)).deltas(1.0)) == 1


def test_composed_gaussian_law_covers_every_bound_on_delta() -> None:
    accountant = PldAccountant().compose(sampled(0.01, 1.0), 1000)
    gaussian = tradeoff.gaussian(accountant, 1e-5)
    mu = gaussian.mu
    for epsilon in np.linspace(0.0, 3.0, 37):
        first = norm.cdf(-epsilon / mu + mu / 2)
        theirs = first - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)
        bounds = accountant.delta(float(epsilon))
        assert bounds.lower <= theirs + 1e-5
        assert theirs <= bounds.upper + gaussian.regret
    # It is not loose: a hundredth less does not cover.
    curve = delta_curves.curve_of_largest(accountant, accountant.epsilon(1e-5).upper)
    assert tradeoff._excess(curve, 0.99 * mu) > 1e-5


def test_guess_is_worth_the_prior_and_what_delta_adds() -> None:
    accountant = PldAccountant().compose(GaussianEvent(1.0))
    half = tradeoff.bayes_success(accountant, 0.5)
    assert half.upper == pytest.approx(norm.cdf(0.5), rel=1e-6)
    for prior in (0.1, 0.9):
        bounds = tradeoff.bayes_success(accountant, prior)
        # The best threshold, by brute force.
        x = np.linspace(-20, 20, 400_001)
        right = prior * norm.sf(x - 1) + (1 - prior) * norm.cdf(x)
        assert bounds.lower <= right.max() * (1 + 1e-9)
        assert bounds.upper >= right.max() * (1 - 1e-9)
        assert bounds.upper == pytest.approx(right.max(), rel=1e-6)


def test_guess_uses_the_direction_of_the_less_likely_dataset() -> None:
    accountant = PldAccountant().compose(sampled(0.2, 1.0))
    remove, add = accountant.deltas(math.log(3.0))
    likely = tradeoff.bayes_success(accountant, 0.75)
    unlikely = tradeoff.bayes_success(accountant, 0.25)
    assert unlikely.upper == pytest.approx(0.75 + 0.25 * remove.upper, rel=1e-9)
    assert likely.upper == pytest.approx(0.75 + 0.25 * add.upper, rel=1e-9)
    assert likely.upper < unlikely.upper


def test_upper_bounds_alone_serve_too() -> None:
    accountant = RdpAccountant().compose(GaussianEvent(1.0))
    for rate, bounds in tradeoff.true_positive_rate(accountant, RATES):
        assert bounds.upper >= norm.cdf(norm.ppf(rate) + 1.0)
        assert bounds.lower <= rate * (1 + 1e-12)


def test_nothing_and_everything_are_answered() -> None:
    nothing = PldAccountant()
    [(_, bounds)] = tradeoff.true_positive_rate(nothing, [0.1])
    assert bounds.upper == pytest.approx(0.1)
    assert tradeoff.gaussian(nothing, 1e-6).mu == 0
    everything = PldAccountant().compose(GaussianEvent(0.0))
    [(_, bounds)] = tradeoff.true_positive_rate(everything, [0.1])
    assert bounds.upper == 1.0
    assert tradeoff.gaussian(everything, 1e-6).mu == math.inf
    assert tradeoff.true_positive_rate(nothing, []) == ()


def test_curves_are_the_accountants_answers() -> None:
    accountant = PldAccountant().compose(GaussianEvent(2.0))
    assert tradeoff.epsilon_curve(accountant, [1e-5]) == (
        (1e-5, accountant.epsilon(1e-5)),
    )
    assert tradeoff.delta_curve(accountant, [1.0]) == ((1.0, accountant.delta(1.0)),)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan])
def test_rates_and_priors_out_of_range_are_refused(value) -> None:
    with pytest.raises(ValueError, match=r"Pass for example 0\.01"):
        tradeoff.true_positive_rate(PldAccountant(), [value])
    with pytest.raises(ValueError, match=r"Pass for example 0\.5"):
        tradeoff.bayes_success(PldAccountant(), value)


def test_lower_curve_is_below_any_convex_curve_within_its_bounds() -> None:
    x = np.exp(np.linspace(0.0, 3.0, 13))
    for mu in (0.5, 1.0, 3.0):

        def delta(at, mu=mu):
            e = np.log(at)
            first = norm.cdf(-e / mu + mu / 2)
            return first - at * norm.cdf(-e / mu - mu / 2)

        y = delta(x)
        curve = delta_curves.Curve(x, y * 0.995, y * 1.005)
        points_x, points_y = curve.vertices()
        assert np.all(points_y <= delta(points_x) + 1e-15)
        fine = np.linspace(1.0, x[-1], 4001)
        assert np.all(np.interp(fine, points_x, points_y) <= delta(fine) + 1e-12)


def test_picture_is_written_in_every_format(tmp_path) -> None:
    accountant = PldAccountant(NeighboringRelation.ZERO_OUT).compose(GaussianEvent(1.0))
    for suffix in plots.SUFFIXES:
        path = tmp_path / f"picture{suffix}"
        plots.draw(accountant, path, "one release")
        assert path.stat().st_size > 5000
    with pytest.raises(plots.PlotError, match=r"Let it end in \.pdf, \.png or \.svg"):
        plots.draw(accountant, tmp_path / "picture.doc")
    unbounded = PldAccountant().compose(GaussianEvent(0.0))
    with pytest.raises(plots.PlotError, match="Choose a noise multiplier above 0"):
        plots.draw(unbounded, tmp_path / "picture.png")


def test_picture_without_matplotlib_says_what_to_install(monkeypatch, tmp_path) -> None:
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(plots.PlotError, match=r"pip install 'dp-train\[plot\]'"):
        plots.draw(PldAccountant(), tmp_path / "picture.png")


def test_matplotlib_is_not_loaded_with_the_package() -> None:
    code = "import sys, accounting.report.plots\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "accounting.report.plots" in loaded
    assert not any(name.startswith("matplotlib") for name in loaded)


@pytest.mark.parametrize("count", [280, 300, 400])
def test_gaussian_covers_epsilons_whose_exponential_is_no_number(count) -> None:
    # mu of the composition is 2 sqrt(count); without the delta it would be exact.
    found = tradeoff.gaussian(PldAccountant().compose(GaussianEvent(0.5), count), 1e-6)
    mu = 2 * math.sqrt(count)
    assert mu <= found.mu <= 1.03 * mu
    assert 0 <= found.regret <= 1


def best_test(p, q, rate: float) -> float:
    """TPR of the best test between two laws on the same points (Neyman and Pearson)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(-np.log(p / q), kind="stable")
    fpr = np.concatenate([[0.0], np.cumsum(q[order])])
    tpr = np.concatenate([[0.0], np.cumsum(p[order])])
    return float(np.interp(rate, fpr, tpr))


def sampled_integers(q: float, deviation: float, count: int):
    """Laws of count Poisson-sampled discrete Gaussian releases with and without."""
    x = np.arange(-12, 14)
    other = np.exp(-((x / deviation) ** 2) / 2)
    other /= other.sum()
    moved = np.roll(other, 1)
    mixed = (1 - q) * other + q * moved
    p, without = np.ones(1), np.ones(1)
    for _ in range(count):
        p, without = np.outer(p, mixed).ravel(), np.outer(without, other).ravel()
    return p, without


@pytest.mark.parametrize("rate", [1e-3, 0.05, 0.5, 0.97])
@pytest.mark.parametrize(("q", "deviation", "count"), [(0.3, 0.6, 1), (0.1, 1.0, 3)])
def test_lower_bounds_of_integer_noise_never_exceed_the_best_test(
    q, deviation, count, rate
) -> None:
    """Both orders by Neyman and Pearson, on all outcomes one by one."""
    p, without = sampled_integers(q, deviation, count)
    truth = max(best_test(p, without, rate), best_test(without, p, rate))
    event = PoissonSampledEvent(q, DiscreteGaussianEvent(deviation))
    accountant = PldAccountant().compose(event, count)
    [(_, bounds)] = tradeoff.true_positive_rate(accountant, [rate])
    assert bounds.lower <= truth * (1 + 1e-9)
    assert truth <= bounds.upper * (1 + 1e-9)
    assert bounds.converged
    guess = tradeoff.bayes_success(accountant, 1 - rate)
    right = np.maximum((1 - rate) * p, rate * without).sum()
    missing = np.maximum((1 - rate) * without, rate * p).sum()
    assert guess.lower <= max(right, missing) * (1 + 1e-9)
    assert right <= guess.upper * (1 + 1e-9)


@pytest.mark.parametrize("noise", [0.05, 0.08, 0.3, 2.0])
@pytest.mark.parametrize("q", [0.01, 0.1, 0.6])
def test_lower_bounds_hold_for_one_release_where_no_grid_has_the_digits(
    q, noise
) -> None:
    accountant = PldAccountant().compose(sampled(q, noise))
    for rate, bounds in tradeoff.true_positive_rate(accountant, [0.01, 0.5, 0.9]):
        truth = max(single_release_tpr(q, noise, rate))
        assert bounds.lower <= truth * (1 + 1e-4)
        assert truth * (1 - 1e-4) <= bounds.upper <= 1.01 * truth


def test_figures_of_a_release_with_little_noise() -> None:
    """With noise 0.05 a sampled example is seen: 0.1 + 0.9 x 0.01, and 0.5 / 0.9."""
    accountant = PldAccountant().compose(sampled(0.1, 0.05))
    found = tradeoff.true_positive_rate(accountant, [0.01, 0.5])
    assert [b.lower for _, b in found] == pytest.approx([0.109, 5 / 9], rel=1e-9)
    guess = tradeoff.bayes_success(accountant, 0.9)
    assert guess.lower <= 0.9 <= guess.upper <= 0.9 * (1 + 1e-3)


def test_lower_bound_of_a_fixed_size_is_what_one_choice_of_data_attains() -> None:
    """Replacing +C by -C among others at -C, which is (1-q) N(0) + q N(2) or N(0)."""
    q, noise, rate = 0.3, 1.0, 0.5
    event = FixedSizeSampledEvent(100, 30, GaussianEvent(noise))
    accountant = PldAccountant(NeighboringRelation.REPLACE_ONE).compose(event)
    x = np.linspace(-9, 11, 801)
    without = norm.pdf(x) / norm.pdf(x).sum()
    p = (1 - q) * without + q * norm.pdf(x - 2) / norm.pdf(x - 2).sum()
    truth = max(best_test(p, without, rate), best_test(without, p, rate))
    [(_, bounds)] = tradeoff.true_positive_rate(accountant, [rate])
    assert rate < bounds.lower <= truth * (1 + 1e-3)
    assert truth <= bounds.upper
    guess = tradeoff.bayes_success(accountant, 0.8)
    assert guess.lower <= np.maximum(0.8 * p, 0.2 * without).sum() * (1 + 1e-3)


def test_accountant_without_directions_claims_no_test_of_either() -> None:
    class Largest(ComposingAccountant):
        """Knows the larger delta of both orders exactly, and no more."""

        name = "largest"

        def _epsilon(self, composition, delta):
            raise NotImplementedError

        def epsilon(self, delta):
            return Bounds(0.0, 20.0, 20.0, True)

        def delta(self, epsilon):
            return PldAccountant().compose(sampled(0.1, 0.05)).delta(epsilon)

        def _delta(self, composition, epsilon):
            raise NotImplementedError

    [(_, bounds)] = tradeoff.true_positive_rate(Largest(), [0.01])
    assert bounds.lower <= 0.109 <= bounds.upper
    assert tradeoff.bayes_success(Largest(), 0.9).lower <= 0.9


@pytest.mark.parametrize("make", [PldAccountant, RdpAccountant])
def test_without_noise_every_test_succeeds(make) -> None:
    for event in (GaussianEvent(0.0), LaplaceEvent(0.0), ApproximateEvent(1.0, 1.0)):
        accountant = make().compose(event)
        for rate, bounds in tradeoff.true_positive_rate(accountant, [1e-6, 0.1, 0.99]):
            assert bounds.lower == bounds.estimate == bounds.upper == 1, rate
        assert accountant.delta(5.0).lower == 1


def test_sampled_release_without_noise_tells_only_whom_it_took() -> None:
    """(1-q) at 0 and q elsewhere against 0: q + (1-q) a, or a / (1-q) the other way."""
    q, count = 0.1, 2
    told = 1 - (1 - q) ** count
    accountant = PldAccountant().compose(sampled(q, 0.0), count)
    for rate, bounds in tradeoff.true_positive_rate(accountant, [0.01, 0.3, 0.7]):
        truth = max(told + (1 - told) * rate, min(rate / (1 - told), 1.0))
        assert 0.88 * truth <= bounds.lower <= truth * (1 + 1e-9)
        assert bounds.upper >= truth
    assert accountant.epsilon(0.1).upper == math.inf


def test_release_that_may_fail_leaves_that_chance_at_every_rate() -> None:
    accountant = PldAccountant().compose(ApproximateEvent(0.0, 0.2))
    for rate, bounds in tradeoff.true_positive_rate(accountant, [0.01, 0.5]):
        truth = 0.2 + rate
        assert bounds.lower <= truth * (1 + 1e-9)
        assert truth <= bounds.upper <= 1.01 * truth


@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (2.0, 9), (0.3, 1), (10.0, 40)])
def test_plain_gaussians_have_the_mu_they_have(noise, count) -> None:
    accountant = PldAccountant().compose(GaussianEvent(noise), count)
    mu = math.sqrt(count) / noise
    found = tradeoff.gaussian(accountant, 1e-9)
    assert mu * (1 - 1e-3) <= found.mu <= mu * (1 + 1e-9)


def test_regret_covers_the_middle_where_the_two_orders_cross() -> None:
    """The symmetric curve is attained by no test; the regret is against those that are.

    Both orders of one sampled release, on rates one by one.
    """
    q, noise = 0.3, 0.5
    found = tradeoff.gaussian(PldAccountant().compose(sampled(q, noise)), 1e-6)
    rates = np.linspace(1e-3, 1 - 1e-3, 40)
    true = np.array([max(single_release_tpr(q, noise, rate)) for rate in rates])
    overstated = norm.cdf(norm.ppf(rates) + found.mu) - true
    assert overstated.min() >= -1e-6 - 1e-4
    assert overstated.max() <= found.regret
    assert found.regret <= 1.5 * overstated.max()
