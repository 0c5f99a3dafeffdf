"""Deltas that need no numerics beyond special functions: Gaussians, and one release.

For unsampled Gaussians with sum of squared sensitivities over noise mu^2 (Balle and
Wang 2018, arXiv:1805.06530, Theorem 8), and for one Poisson-sampled release with
a = ln c, x = s^2 a + 1/2:

    Gaussian   delta = Phi(-y) - e^eps Phi(-y - mu),       y = eps / mu - mu / 2
    remove     delta = q [Phi(-z_1) - c Phi(-z_0)],        c = (e^eps - 1) / q + 1
    add        delta = e^eps q [c Phi(z_0) - Phi(z_1)],    c = (e^-eps - 1) / q + 1

with z_0 = x / s and z_1 = z_0 - 1 / s; add is 0 where c <= 0. Each bracket is a tail
times 1 minus a ratio of scaled tails, in which the exponentials have cancelled:

    c Phi(-z_0) / Phi(-z_1) = erfcx(z_0 / sqrt 2) / erfcx(z_1 / sqrt 2)
"""

import dataclasses
import math
from collections.abc import Callable

from accounting.accountant import Bounds
from accounting.numerics import ROUNDOFF

# (ln delta, bound on its error) at an epsilon
LogDelta = Callable[[float], tuple[float, float]]


@dataclasses.dataclass(frozen=True, slots=True)
class Gaussian:
    """Two normal laws of unit variance at distance mu > 0."""

    mu: float

    def __call__(self, epsilon: float) -> tuple[float, float]:
        y = epsilon / self.mu - self.mu / 2
        value, error = _log_tails(y, self.mu)
        rounding = 4 * ROUNDOFF * (epsilon / self.mu + self.mu)
        return value, error + rounding * (2 + abs(y))


@dataclasses.dataclass(frozen=True, slots=True)
class SingleRelease:
    """One Poisson-sampled release under add-or-remove, the larger direction."""

    q: float
    noise: float

    def __call__(self, epsilon: float) -> tuple[float, float]:
        values, errors = zip(self.remove(epsilon), self.add(epsilon), strict=True)
        return max(values), max(errors)

    def remove(self, epsilon: float) -> tuple[float, float]:
        """The direction in which the first dataset has the example."""
        q, s = self.q, self.noise
        grown = math.expm1(epsilon) / q if epsilon <= 600 else math.inf
        log_c = math.log1p(grown)
        if grown == math.inf:
            log_c = epsilon - math.log(q) + math.log(-math.expm1(-epsilon))
        y = s * log_c - 0.5 / s
        value, error = _log_tails(y, 1 / s)
        rounding = 8 * ROUNDOFF * (s * (1 + log_c) + 1 / s) * (2 + abs(y))
        return math.log(q) + value, error + rounding

    def add(self, epsilon: float) -> tuple[float, float]:
        """The direction in which the second dataset has the example."""
        q, s = self.q, self.noise
        c = math.expm1(-epsilon) / q + 1
        if c <= 0:
            return -math.inf, 0.0
        # Phi(z_0) c - Phi(z_1) with both mirrored: the larger tail is at -z_0.
        y = -s * math.log(c) - 0.5 / s
        value, error = _log_tails(y, 1 / s)
        rounding = 8 * ROUNDOFF * (s / c + 1 / s) * (2 + abs(y))
        return epsilon + math.log(q) + math.log(
            c
        ) + value, error + rounding + 4 * ROUNDOFF / c


def epsilon_bounds(log_delta: LogDelta, delta: float) -> Bounds:
    """Smallest epsilon >= 0 with log_delta(epsilon) <= ln delta."""
    target = math.log(delta)

    def above(epsilon: float) -> float:
        value, error = log_delta(epsilon)
        return value + error

    def below(epsilon: float) -> float:
        value, error = log_delta(epsilon)
        return value - error

    estimate = _root(lambda epsilon: log_delta(epsilon)[0], target, is_upper=True)
    upper = _root(above, target, is_upper=True)
    lower = _root(below, target, is_upper=False)
    return Bounds(min(lower, estimate), min(estimate, upper), upper, True)


def delta_bounds(log_delta: LogDelta, epsilon: float) -> Bounds:
    """delta at epsilon, with its rounding error."""
    value, error = log_delta(epsilon)
    lower, estimate, upper = (
        math.exp(min(0.0, value + sign * error)) for sign in (-1, 0, 1)
    )
    return Bounds(lower, estimate, max(upper, math.ulp(0.0)), True)


def _root(
    function: Callable[[float], float], target: float, *, is_upper: bool
) -> float:
    """Where a falling function crosses the target, from the side asked for."""
    if function(0.0) <= target:
        return 0.0
    low, high = 0.0, 1.0
    while function(high) > target:
        low, high = high, 2 * high
    while True:
        middle = (low + high) / 2
        if not low < middle < high or high - low < 2 * ROUNDOFF * high:
            return high if is_upper else low
        if function(middle) > target:
            low = middle
        else:
            high = middle


def _log_tails(y: float, distance: float) -> tuple[float, float]:
    """ln of Phi(-y) (1 - erfcx((y + distance)/sqrt 2) / erfcx(y/sqrt 2)), its error."""
    from scipy import special

    value = float(special.log_ndtr(-y))
    scaled = float(special.erfcx(y / math.sqrt(2)))
    if scaled == math.inf or distance > 1e100:
        return value, 16 * ROUNDOFF * (2 + abs(value))
    gap = 1 - float(special.erfcx((y + distance) / math.sqrt(2))) / scaled
    if gap <= 0:
        # The two laws cannot be told apart in floating point.
        return value + math.log(4 * ROUNDOFF), math.inf
    error = 16 * ROUNDOFF * (2 + abs(value) + 1 / gap)
    return value + math.log(gap), error
