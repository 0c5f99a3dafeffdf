"""Each bound accepts correct samples and fails on a planted error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests import statistics

COUNT = 1_000_000


@pytest.fixture(scope="module")
def normals():
    """Repeatable standard normal samples."""
    return np.random.default_rng(20).standard_normal(COUNT)


def test_stddev_bound_sees_the_error_that_it_states(normals):
    deficit = statistics.detectable_deficit(COUNT)
    assert deficit == pytest.approx(0.0076, abs=1e-4)
    statistics.assert_stddev(3 * normals, 3.0)
    for factor in (1 - deficit, 1 + deficit):
        with pytest.raises(AssertionError, match="standard deviation is"):
            statistics.assert_stddev(factor * normals, 1.0)


def test_stddev_bounds_are_missed_as_often_as_stated():
    generator = np.random.default_rng(21)
    lower, upper = statistics.stddev_bounds(50, false_alarm=0.1)
    ratios = np.sqrt(np.mean(generator.standard_normal((20_000, 50)) ** 2, axis=1))
    missed = int(np.sum((ratios < lower) | (ratios > upper)))
    statistics.assert_binomial(missed, 20_000, 0.1, 1e-6)


def test_mean_bound_sees_a_shift(normals):
    statistics.assert_zero_mean(normals, 1.0)
    with pytest.raises(AssertionError, match="standard errors"):
        statistics.assert_zero_mean(normals + 0.01, 1.0)


def test_correlation_bound_sees_shared_noise(normals):
    first, second = normals[:10_000], normals[10_000:20_000]
    statistics.assert_uncorrelated(first, second)
    with pytest.raises(AssertionError, match="correlation is"):
        statistics.assert_uncorrelated(first, second + 0.15 * first)
    with pytest.raises(AssertionError, match="constant"):
        statistics.assert_uncorrelated(first, np.zeros(10_000))
    with pytest.raises(AssertionError, match="do not pair"):
        statistics.assert_uncorrelated(first, second[1:])


def test_distribution_bound_sees_another_distribution_of_equal_variance(normals):
    statistics.assert_distribution(normals, stats.norm.cdf)
    laplace = np.random.default_rng(22).laplace(scale=0.5**0.5, size=100_000)
    with pytest.raises(AssertionError, match="distribution is off"):
        statistics.assert_distribution(laplace, stats.norm.cdf)


@pytest.mark.parametrize("edge", [2.0, 3.0, 3.9])
def test_tail_bound_sees_a_cut(normals, edge):
    statistics.assert_normal_tails(normals, 1.0)
    cut = np.clip(normals, -edge, edge)
    with pytest.raises(AssertionError, match="beyond"):
        statistics.assert_normal_tails(cut / cut.std(), 1.0)


def test_binomial_bound_sees_another_probability():
    statistics.assert_binomial(500, 1000, 0.5)
    with pytest.raises(AssertionError, match="successes of 1000"):
        statistics.assert_binomial(620, 1000, 0.5)


@pytest.mark.parametrize("planted", [0.5, 1.6])
def test_dispersion_bound_sees_less_and_more_scatter(planted):
    counts = np.random.default_rng(23).binomial(1000, 0.05, 400)
    statistics.assert_binomial_dispersion(counts, 1000, 0.05)
    scattered = 50 + planted * (counts - 50)
    with pytest.raises(AssertionError, match="scatter"):
        statistics.assert_binomial_dispersion(scattered, 1000, 0.05)
