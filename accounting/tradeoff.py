"""What an adversary can do: true positives at false positives, advantage, mu-GDP.

Somebody who must tell from the released models whether an example was in the data makes
a test. P is the law of the outputs with it, Q without, and delta(eps) = sup over events
S of P(S) - e^eps Q(S), for every real eps. By duality of convex curves the best test
with false positive rate a has

    TPR(a) = inf over real eps of  e^eps a + delta(eps)

For eps < 0, delta(eps) = 1 - e^eps (1 - delta'(-eps)), delta' with P and Q exchanged.
Which of the two datasets is called P is not for the adversary to choose, so both orders
count, each with its own two curves; the larger of them at every eps, the symmetric
curve, would promise less than what holds (Zhu, Dong and Wang 2022, arXiv:2106.08567).

Curves are known between bounds at a ladder of eps. Every single one bounds TPR from
above. From below, a convex curve lies above its extrapolated chords, so that between
two steps of the ladder it lies above where two of these meet.

The upper bound is what may be promised.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from accounting.accountant import Accountant, Bounds
from accounting.pairs import Array
from accounting.pld import PldAccountant

# Steps of the ladder; a test that lies between two of them loses about 1 % of TPR.
# e^eps is a number, and its products with probabilities are, up to here.
_LARGEST_EXPONENT = 600.0
_STEPS = 40
_LEAST_DELTA = 1e-290
# Above the rounding of sums of a few terms.
_ROUND_UP = 1 + 1e-12
_ROUND_DOWN = 1 - 1e-12


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """One delta curve at a ladder of x = e^eps >= 1: bounds, not yet convex.

    Attributes:
        x: [steps] ascending, first 1.
        lower: [steps] never above delta.
        upper: [steps] never below delta.
    """

    x: Array
    lower: Array
    upper: Array

    def vertices(self) -> tuple[Array, Array]:
        """Points (x, y) of a broken line that no convex curve within bounds is below.

        On [x_j, x_{j+1}] the curve lies above the chord from x_{j-1} through x_j and
        above the chord back from x_{j+2} through x_{j+1}. It may fall below 0, and
        beyond the last step nothing but 0 is known.
        """
        x, low, high = self.x, self.lower, self.upper
        points_x, points_y = [float(x[0])], [float(low[0])]
        for j in range(len(x) - 1):
            from_left = (low[j] - high[j - 1]) / (x[j] - x[j - 1]) if j else -np.inf
            from_right = -np.inf
            if j + 2 < len(x):
                from_right = (high[j + 2] - low[j + 1]) / (x[j + 2] - x[j + 1])
            corner = _corner(
                (float(x[j]), float(low[j]), float(from_left)),
                (float(x[j + 1]), float(low[j + 1]), float(min(from_right, 0.0))),
            )
            points_x += [corner[0], float(x[j + 1])]
            points_y += [corner[1], float(low[j + 1])]
        return np.array(points_x), np.array(points_y)


@final
@dataclasses.dataclass(frozen=True, slots=True)
class GaussianTradeOff:
    """The Gaussian mechanism that is no more private than what was composed.

    TPR(a) <= Phi(Phi^-1(a) + mu) + delta for every false positive rate a (mu-GDP of
    Dong, Roth and Su 2019, arXiv:1905.02383, up to the mass delta), proved for these
    releases and not by a limit theorem.

    Attributes:
        mu: distance of the means over the standard deviation.
        delta: mass for which it does not hold.
        regret: at most how much it overstates TPR, over all a.
    """

    mu: float
    delta: float
    regret: float


def epsilon_curve(
    accountant: Accountant, deltas: Sequence[float]
) -> tuple[tuple[float, Bounds], ...]:
    """(delta, bounds on epsilon) for each delta."""
    return tuple((float(delta), accountant.epsilon(delta)) for delta in deltas)


def delta_curve(
    accountant: Accountant, epsilons: Sequence[float]
) -> tuple[tuple[float, Bounds], ...]:
    """(epsilon, bounds on delta) for each epsilon."""
    return tuple((float(epsilon), accountant.delta(epsilon)) for epsilon in epsilons)


def advantage(accountant: Accountant) -> Bounds:
    """Largest TPR - FPR of any test: the total variation, delta(0)."""
    return accountant.delta(0.0)


def bayes_success(accountant: Accountant, prior: float) -> Bounds:
    """Largest chance of a right guess whether the example was in the data.

        sup over S of  p P(S) + (1-p) (1 - Q(S)) = 1 - p + p delta(ln((1-p) / p))

    for p <= 1/2, and the same with the roles exchanged above (Kulynych et al. 2024,
    arXiv:2407.02191).

    Args:
        accountant: what was composed.
        prior: p in (0, 1), how likely it was before the model was seen.

    Raises:
        ValueError: prior outside (0, 1).
    """
    if not 0 < prior < 1:
        raise ValueError(
            f"prior is {prior!r}, outside (0, 1). Who is certain before learns nothing."
            " Pass for example 0.5."
        )
    share = min(prior, 1 - prior)
    # The curve whose first dataset is the less likely one.
    bounds = _deltas(accountant, math.log((1 - share) / share))
    chosen = bounds[0] if prior <= 0.5 else bounds[-1]
    return Bounds(
        (1 - share + share * chosen.lower) * _ROUND_DOWN,
        1 - share + share * chosen.estimate,
        min(1.0, (1 - share + share * chosen.upper) * _ROUND_UP),
        chosen.converged,
    )


def true_positive_rate(
    accountant: Accountant, false_positive_rates: Sequence[float]
) -> tuple[tuple[float, Bounds], ...]:
    """(FPR, bounds on the TPR of the best test) for each false positive rate.

    The same figure bounds the success of any guess about an example that succeeds with
    probability FPR for somebody who has not seen the model (Kulynych et al. 2024).

    Args:
        accountant: what was composed.
        false_positive_rates: each in (0, 1).

    Raises:
        ValueError: a rate outside (0, 1).

    >>> from accounting.events import GaussianEvent
    >>> accountant = PldAccountant().compose(GaussianEvent(1.0))
    >>> [(rate, bounds)] = true_positive_rate(accountant, [0.01])
    >>> print(bounds)
    between 0.09181 and 0.09243
    """
    rates = [float(rate) for rate in false_positive_rates]
    for rate in rates:
        if not 0 < rate < 1:
            raise ValueError(
                f"A false positive rate is {rate!r}, outside (0, 1). At 0 and 1 every"
                " test is decided beforehand. Pass for example 0.01."
            )
    if not rates:
        return ()
    curves = _curves(accountant, min(min(rate, 1 - rate) for rate in rates))
    # (P, Q) as named, and exchanged.
    pairs = [(curves[0], curves[-1]), (curves[-1], curves[0])]
    return tuple((rate, _largest_tpr(pairs, rate)) for rate in rates)


def gaussian(accountant: Accountant, delta: float) -> GaussianTradeOff:
    """Smallest mu whose Gaussian covers everything composed, up to delta.

    The condition is delta_here(eps) <= delta_mu(eps) + delta for every real eps. The
    Gaussian curve is its own mirror image, so the larger curve at eps >= 0 decides.
    Between two steps delta_here is below its chord, and chord - delta_mu is largest
    where the slope -Phi(-eps / mu - mu / 2) of delta_mu in e^eps is that of the chord.

    Args:
        accountant: what was composed.
        delta: in (0, 1).

    Raises:
        ValueError: delta outside (0, 1).
    """
    most = accountant.epsilon(delta).upper
    if most == 0:
        return GaussianTradeOff(0.0, delta, accountant.delta(0.0).upper)
    if most == math.inf:
        return GaussianTradeOff(math.inf, delta, 1.0)
    excess: Callable[[float], float]
    regret: Callable[[float], float]
    if most <= _LARGEST_EXPONENT:
        curve = _curve_of_largest(accountant, most)
        excess = functools.partial(_excess, curve)
        regret = functools.partial(_regret, curve)
    else:
        steps = _Steps(accountant, most, delta)
        excess, regret = steps.excess, steps.regret
    low, high = 0.0, 1.0
    while not excess(high) <= delta:
        low, high = high, 2 * high
        if high > 1e6:
            return GaussianTradeOff(math.inf, delta, 1.0)
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) <= delta else (middle, high)
    return GaussianTradeOff(high, delta, regret(high))


class _Steps:
    """Both bounds on delta as steps in eps: no chords, for which e^eps is too large."""

    def __init__(self, accountant: Accountant, end: float, delta: float) -> None:
        """Args: delta is known to hold at end."""
        self._epsilons = np.linspace(0.0, end, _STEPS)
        bounds = [accountant.delta(float(epsilon)) for epsilon in self._epsilons]
        self._lower = np.array([b.lower for b in bounds])
        self._upper = np.array([b.upper for b in bounds])
        self._upper[-1] = min(self._upper[-1], delta)

    def excess(self, mu: float) -> float:
        """Largest of delta - delta_mu: from each point to the next both fall."""
        gaussian = _gaussian_delta(self._epsilons, mu)
        return float(max((self._upper[:-1] - gaussian[1:]).max(), self._upper[-1]))

    def regret(self, mu: float) -> float:
        """Upper bound on sup of delta_mu - delta."""
        gaussian = _gaussian_delta(self._epsilons, mu)
        inside = float((gaussian[:-1] - self._lower[1:]).max())
        return min(max(inside, float(gaussian[-1]), 0.0), 1.0)


def _deltas(accountant: Accountant, epsilon: float) -> tuple[Bounds, ...]:
    """Delta in each direction, or the larger where the accountant knows no more."""
    if isinstance(accountant, PldAccountant):
        return accountant.deltas(epsilon)
    return (accountant.delta(epsilon),)


def _curves(accountant: Accountant, rate: float) -> list[Curve]:
    """Curves of both directions as far as they matter to TPR at rate and 1 - rate."""
    # Where delta is a hundredth of the rate, e^eps rate alone exceeds what is below.
    end = accountant.epsilon(max(0.01 * rate, _LEAST_DELTA)).upper
    # TPR <= 1, so that eps above ln(1 / rate) is not needed.
    end = min(end, -math.log(rate))
    return _ladder(lambda epsilon: _deltas(accountant, epsilon), end)


def _curve_of_largest(accountant: Accountant, end: float) -> Curve:
    """The larger delta of both directions on a ladder up to end."""
    return _ladder(lambda epsilon: (accountant.delta(epsilon),), end)[0]


def _ladder(deltas: Any, end: float) -> list[Curve]:
    """Curves on equal steps of eps from 0 to end."""
    epsilons = np.linspace(0.0, max(end, 1e-9), _STEPS)
    rows = [deltas(float(epsilon)) for epsilon in epsilons]
    width = max(len(row) for row in rows)
    rows = [row * width if len(row) < width else row for row in rows]
    curves = []
    for column in zip(*rows, strict=True):
        lower = np.array([bounds.lower for bounds in column])
        upper = np.array([bounds.upper for bounds in column])
        # Delta falls, so that a later lower bound holds before and an upper after.
        lower = np.maximum.accumulate(lower[::-1])[::-1]
        curves.append(Curve(np.exp(epsilons), lower, np.minimum.accumulate(upper)))
    return curves


def _corner(
    left: tuple[float, float, float], right: tuple[float, float, float]
) -> tuple[float, float]:
    """Where the line from the left meets the line from the right, between them."""
    (x, y, rise), (end_x, end_y, end_rise) = left, right
    if rise == -math.inf:
        return x, end_y + end_rise * (x - end_x) if end_rise > -math.inf else 0.0
    if end_rise == -math.inf:
        return end_x, y + rise * (end_x - x)
    if rise >= end_rise:
        # No valley: the curve is convex, so both bounds are loose; the lower end holds.
        return (end_x, min(y, end_y))
    at = (end_y - y + rise * x - end_rise * end_x) / (rise - end_rise)
    at = min(max(at, x), end_x)
    return at, min(y + rise * (at - x), end_y + end_rise * (at - end_x))


def _largest_tpr(pairs: Sequence[tuple[Curve, Curve]], rate: float) -> Bounds:
    """The larger TPR of both orders."""
    lower = upper = rate
    for forward, backward in pairs:
        # eps >= 0 with delta, and eps <= 0 with delta of the exchanged pair.
        high = np.concatenate(
            [
                forward.x * rate + forward.upper,
                1 - (1 - rate - backward.upper) / backward.x,
            ]
        )
        x, y = forward.vertices()
        back_x, back_y = backward.vertices()
        low = np.concatenate([x * rate + y, 1 - (1 - rate - back_y) / back_x])
        beyond = [forward.x[-1] * rate, 1 - (1 - rate) / backward.x[-1]]
        upper = max(upper, float(high.min()) * _ROUND_UP)
        lower = max(lower, min(float(low.min()), *map(float, beyond)) * _ROUND_DOWN)
    upper = min(upper, 1.0)
    lower = min(lower, upper)
    # The ladder errs upward; below, the chords do.
    return Bounds(lower, (lower + upper) / 2, upper, upper - lower <= 0.05 * upper)


def _excess(curve: Curve, mu: float) -> float:
    """Largest of chord - delta_mu over the steps of the ladder."""
    x, y = curve.x, curve.upper
    slope = np.diff(y) / np.diff(x)
    share = np.clip(-slope, 1e-300, 1 - 1e-16)
    at = -mu * (_ndtri(share) + mu / 2)
    at = np.clip(at, np.log(x[:-1]), np.log(x[1:]))
    inner = y[:-1] + slope * (np.exp(at) - x[:-1]) - _gaussian_delta(at, mu)
    ends = y - _gaussian_delta(np.log(x), mu)
    return float(max(inner.max(), ends.max()))


def _regret(curve: Curve, mu: float) -> float:
    """Upper bound on sup of delta_mu - delta, which is that of the TPRs as well."""
    x, y = curve.vertices()
    # Between vertices the curve is above the broken line and delta_mu below its chord.
    inside = float((_gaussian_delta(np.log(x), mu) - y).max())
    beyond = float(_gaussian_delta(np.log(x[-1:]), mu)[0])
    return min(max(inside, beyond, 0.0), 1.0)


def _gaussian_delta(epsilon: Array, mu: float) -> Array:
    """delta_mu(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)."""
    from scipy.special import log_ndtr

    first = np.exp(log_ndtr(-epsilon / mu + mu / 2))
    second = np.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))
    return np.asarray(np.maximum(first - second, 0.0))


def _ndtri(share: Array) -> Array:
    """Quantiles of the standard normal law."""
    from scipy.special import ndtri

    return np.asarray(ndtri(share))
