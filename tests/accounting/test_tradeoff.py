"""Trade-offs: around closed forms, sound both ways, tighter than the symmetric one."""

import builtins
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import norm

from accounting import plots, tradeoff
from accounting.events import GaussianEvent
from accounting.pld import PldAccountant
from accounting.rdp import RdpAccountant
from accounting.relations import NeighboringRelation
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
    symmetric = tradeoff._curve_of_largest(accountant, 8.0)
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
    curve = tradeoff._curve_of_largest(accountant, accountant.epsilon(1e-5).upper)
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
        curve = tradeoff.Curve(x, y * 0.995, y * 1.005)
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
    code = "import sys, accounting, accounting.plots\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "accounting.plots" in loaded
    assert not any(name.startswith("matplotlib") for name in loaded)


@pytest.mark.parametrize("count", [280, 300, 400])
def test_gaussian_covers_epsilons_whose_exponential_is_no_number(count) -> None:
    # mu of the composition is 2 sqrt(count); without the delta it would be exact.
    found = tradeoff.gaussian(PldAccountant().compose(GaussianEvent(0.5), count), 1e-6)
    mu = 2 * math.sqrt(count)
    assert mu <= found.mu <= 1.03 * mu
    assert 0 <= found.regret <= 1
