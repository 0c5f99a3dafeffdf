"""Bounds that a correct program misses with a stated, tiny probability.

Every `assert_*` takes `false_alarm`, the probability that correct samples fail, and
computes its bound from an exact or conservative distribution. No bound is tuned by
hand, and `test_statistics` shows for each that it fails on a planted error.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize, stats

FALSE_ALARM = 1e-9
"""Default probability that a correct program fails one assertion."""

Array = np.ndarray[Any, Any]


def stddev_bounds(count: int, false_alarm: float = FALSE_ALARM) -> tuple[float, float]:
    """Bounds of (root mean square) / stddev for `count` samples of N(0, stddev^2).

    sum_i z_i^2 / stddev^2 ~ chi-square with `count` degrees of freedom
    """
    lower = stats.chi2.ppf(false_alarm / 2, count)
    upper = stats.chi2.isf(false_alarm / 2, count)
    return math.sqrt(lower / count), math.sqrt(upper / count)


def detectable_deficit(
    count: int, false_alarm: float = FALSE_ALARM, miss: float = 1e-6
) -> float:
    """Smallest relative deficit of the stddev that is missed with probability `miss`.

    0.76 % for 10^6 samples, 0.24 % for 10^7, at the default probabilities.
    """
    lower, _ = stddev_bounds(count, false_alarm)

    def excess(deficit: float) -> float:
        scaled = count * (lower / (1.0 - deficit)) ** 2
        return float(stats.chi2.logsf(scaled, count)) - math.log(miss)

    return float(optimize.brentq(excess, 0.0, 0.9))


def assert_stddev(
    samples: Array, stddev: float, false_alarm: float = FALSE_ALARM
) -> None:
    """Zero-mean normal samples have this standard deviation, neither less nor more."""
    values = np.asarray(samples, np.float64).ravel()
    ratio = math.sqrt(np.mean(np.square(values))) / stddev
    lower, upper = stddev_bounds(values.size, false_alarm)
    assert lower <= ratio <= upper, (
        f"The standard deviation is {ratio:.5f} times the promised {stddev:.6g}, "
        f"outside [{lower:.5f}, {upper:.5f}] for {values.size} samples."
    )


def assert_zero_mean(
    samples: Array, stddev: float, false_alarm: float = FALSE_ALARM
) -> None:
    """Samples of N(0, stddev^2) average to zero within mean ~ N(0, stddev^2 / n)."""
    values = np.asarray(samples, np.float64).ravel()
    score = values.mean() * math.sqrt(values.size) / stddev
    bound = stats.norm.isf(false_alarm / 2)
    assert abs(score) <= bound, (
        f"The mean is {score:.1f} standard errors from zero, beyond {bound:.1f}."
    )


def assert_uncorrelated(
    first: Array, second: Array, false_alarm: float = FALSE_ALARM
) -> None:
    """Two independent normal samples have a correlation near zero.

    r sqrt((n - 2) / (1 - r^2)) ~ Student t with n - 2 degrees of freedom. At 10^4
    samples and 1e-9 the bound on |r| is 0.061.
    """
    a = np.asarray(first, np.float64).ravel()
    b = np.asarray(second, np.float64).ravel()
    assert a.size == b.size and a.size > 2, f"Sizes {a.size} and {b.size} do not pair."
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(np.dot(a, a) * np.dot(b, b))
    assert norm > 0, "One of the samples is constant, so it is no noise."
    correlation = float(np.dot(a, b)) / norm
    t = stats.t.isf(false_alarm / 2, a.size - 2)
    bound = t / math.sqrt(a.size - 2 + t * t)
    assert abs(correlation) <= bound, (
        f"The correlation is {correlation:.4f}, beyond {bound:.4f} for {a.size} pairs."
    )


def assert_distribution(
    samples: Array, cumulative: Any, false_alarm: float = FALSE_ALARM
) -> None:
    """The empirical distribution function stays near `cumulative`.

    P(sup |F_n - F| > e) <= 2 exp(-2 n e^2)       Massart 1990, Ann. Probab. 18(3)

    Args:
        samples: independent samples.
        cumulative: vectorised distribution function F.
        false_alarm: probability that correct samples fail.
    """
    values = np.sort(np.asarray(samples, np.float64).ravel())
    expected = np.asarray(cumulative(values), np.float64)
    ranks = np.arange(values.size + 1) / values.size
    distance = max(np.max(ranks[1:] - expected), np.max(expected - ranks[:-1]))
    bound = math.sqrt(math.log(2 / false_alarm) / (2 * values.size))
    assert distance <= bound, (
        f"The distribution is off by {distance:.5f}, beyond {bound:.5f} for "
        f"{values.size} samples."
    )


def assert_normal_tails(
    samples: Array, stddev: float, false_alarm: float = FALSE_ALARM
) -> None:
    """The counts beyond 1, 2, 3 and 4 standard deviations, on each side, are binomial.

    Sees a cut or a thinned tail that leaves the standard deviation as it was, up to 4
    standard deviations at 10^6 samples (32 expected on each side).
    """
    values = np.asarray(samples, np.float64).ravel() / stddev
    edges = (1.0, 2.0, 3.0, 4.0)
    for edge in edges:
        for side in (1, -1):
            count = int(np.count_nonzero(side * values > edge))
            assert_binomial(
                count,
                values.size,
                float(stats.norm.sf(edge)),
                false_alarm / (2 * len(edges)),
                what=f"samples beyond {side * edge:+.0f} standard deviations",
            )


def assert_binomial(
    successes: int,
    trials: int,
    probability: float,
    false_alarm: float = FALSE_ALARM,
    what: str = "successes",
) -> None:
    """A count of independent successes lies between binomial quantiles."""
    lower = stats.binom.ppf(false_alarm / 2, trials, probability)
    upper = stats.binom.isf(false_alarm / 2, trials, probability)
    assert lower <= successes <= upper, (
        f"{successes} {what} of {trials}, outside [{lower:.0f}, {upper:.0f}] for "
        f"probability {probability:.3g}."
    )


def assert_binomial_dispersion(
    counts: Array, trials: int, probability: float, false_alarm: float = FALSE_ALARM
) -> None:
    """Counts scatter as Binomial(trials, probability) does, neither less nor more.

    sum_i (k_i - n p)^2 / (n p (1 - p)) over m counts has mean m and variance m (2 + e),
    e the excess kurtosis of the binomial. Bounds are those of a scaled chi-square with
    this mean and variance, so `false_alarm` is approximate here; 200 counts are enough.
    """
    values = np.asarray(counts, np.float64)
    variance = trials * probability * (1 - probability)
    excess = (1 - 6 * probability * (1 - probability)) / variance
    statistic = np.sum((values - trials * probability) ** 2) / variance
    # A chi-square with matched mean and variance: m scaled degrees of freedom.
    scale = (2 + excess) / 2
    lower = scale * stats.chi2.ppf(false_alarm / 2, values.size / scale)
    upper = scale * stats.chi2.isf(false_alarm / 2, values.size / scale)
    assert lower <= statistic <= upper, (
        f"The counts scatter {statistic / values.size:.3f} times as much as binomial "
        f"ones, outside [{lower / values.size:.3f}, {upper / values.size:.3f}]."
    )
