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
import math
from collections.abc import Callable, Sequence
from typing import final

import numpy as np

from accounting.accountant import Accountant, Bounds, ComposingAccountant
from accounting.numerics import Array
from accounting.pld import PldAccountant
from accounting.report.delta_curves import (
    STEPS,
    Curve,
    curve_of_largest,
    deltas,
    ladder,
)

# e^eps is a number, and its products with probabilities are, up to here.
_LARGEST_EXPONENT = 600.0
# How many steps more where a bound is loose: a share of TPR, or what they save of mu.
_MORE_STEPS = 16
_NARROW, _CLOSE = 5e-3, 2e-4
_LEAST_DELTA = 1e-290
# Above the rounding of sums of a few terms.
_ROUND_UP = 1 + 1e-12
_ROUND_DOWN = 1 - 1e-12


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
    bounds = deltas(accountant, math.log((1 - share) / share))
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
    between 0.09216 and 0.09242
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
    return tuple((rate, _refined_tpr(accountant, curves, rate)) for rate in rates)


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
    known = math.inf
    if isinstance(accountant, PldAccountant):
        known = accountant.gaussian_distance()
    if most == math.inf and known == math.inf:
        return GaussianTradeOff(math.inf, delta, 1.0)
    if most <= _LARGEST_EXPONENT:
        steps: _Chords | _Steps = _Chords(accountant, most)
    else:
        steps = _Steps(accountant, most, delta)
    mu = steps.mu(delta, known)
    return GaussianTradeOff(mu, delta, 1.0 if mu == math.inf else steps.regret(mu))


def _smallest_mu(excess: Callable[[float], float], delta: float, most: float) -> float:
    """Smallest mu with an excess of at most delta; most where that is known to do."""
    low, high = 0.0, 1.0
    while not excess(high) <= delta:
        low, high = high, 2 * high
        if high > min(most, 1e6):
            return most
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) <= delta else (middle, high)
    return min(high, most)


class _Chords:
    """Delta below the chords of its convex curve, for numbers e^eps."""

    def __init__(self, accountant: Accountant, end: float) -> None:
        self._accountant, self._end = accountant, end
        self._curve = curve_of_largest(accountant, end)

    def mu(self, delta: float, known: float) -> float:
        """Smallest mu that covers the chords, of which the one that decides is halved
        while that matters.
        """
        mu = _smallest_mu(lambda mu: _excess(self._curve, mu), delta, known)
        for _ in range(_MORE_STEPS):
            step = int(_inner(self._curve, mu * (1 - _CLOSE)).argmax())
            middle = float(np.log(self._curve.x[step : step + 2]).mean())
            self._curve = self._curve.joined(middle, self._accountant.delta(middle))
            before = mu
            mu = _smallest_mu(lambda mu: _excess(self._curve, mu), delta, before)
            if mu > before * (1 - _CLOSE):
                break
        return mu

    def regret(self, mu: float) -> float:
        """At most how much TPR is overstated, by the better of both orders."""
        curves = ladder(lambda epsilon: deltas(self._accountant, epsilon), self._end)
        return min(
            max(_regret(first, mu), _regret(second, mu, is_exchanged=True))
            for first, second in ((curves[0], curves[-1]), (curves[-1], curves[0]))
        )


class _Steps:
    """Both bounds on delta as steps in eps: no chords, for which e^eps is too large."""

    def __init__(self, accountant: Accountant, end: float, delta: float) -> None:
        """Args: delta is known to hold at end."""
        self._accountant = accountant
        self._epsilons = np.linspace(0.0, end, STEPS)
        self._upper = np.array(
            [accountant.delta(float(epsilon)).upper for epsilon in self._epsilons]
        )
        self._upper[-1] = min(self._upper[-1], delta)

    def mu(self, delta: float, known: float) -> float:
        """Smallest mu that covers the steps."""
        return _smallest_mu(self._excess, delta, known)

    def regret(self, mu: float) -> float:
        """At most how much TPR is overstated, by the better of both orders."""
        gaussian = _gaussian_delta(self._epsilons, mu)
        rows = [deltas(self._accountant, float(e)) for e in self._epsilons]
        lowers = [np.array([row[place].lower for row in rows]) for place in (0, -1)]
        share = np.exp(-self._epsilons[:-1])
        overstated = min(
            max(
                float((gaussian[:-1] - first[1:]).max()),
                float((share * (gaussian[:-1] - second[1:])).max()),
            )
            for first, second in (lowers, lowers[::-1])
        )
        return min(max(overstated, float(gaussian[-1]), 0.0), 1.0)

    def _excess(self, mu: float) -> float:
        """Largest of delta - delta_mu: from each point to the next both fall."""
        gaussian = _gaussian_delta(self._epsilons, mu)
        return float(max((self._upper[:-1] - gaussian[1:]).max(), self._upper[-1]))


def _curves(accountant: Accountant, rate: float) -> list[Curve]:
    """Curves of both directions as far as they matter to TPR at rate and 1 - rate."""
    # Where delta is a hundredth of the rate, e^eps rate alone exceeds what is below.
    end = accountant.epsilon(max(0.01 * rate, _LEAST_DELTA)).upper
    # TPR <= 1, so that eps above ln(1 / rate) is not needed.
    end = min(end, -math.log(rate))
    rests = 0.0, 0.0
    if isinstance(accountant, ComposingAccountant):
        rests = accountant.remainders()
    return ladder(lambda epsilon: deltas(accountant, epsilon), end, rests)


def _refined_tpr(
    accountant: Accountant, curves: Sequence[Curve], rate: float
) -> Bounds:
    """The larger TPR of both orders, with more steps of the ladder where that helps."""
    lower, upper = 0.0, 1.0
    for _ in range(_MORE_STEPS):
        # (P, Q) as named, and exchanged.
        pairs = [(curves[0], curves[-1]), (curves[-1], curves[0])]
        bounds = _largest_tpr(pairs, rate)
        lower, upper = max(lower, bounds.lower), min(upper, bounds.upper)
        if upper - lower <= _NARROW * upper:
            break
        epsilon = _loosest(pairs, rate)
        found = deltas(accountant, epsilon)
        curves = [
            curve.joined(epsilon, found[min(place, len(found) - 1)])
            for place, curve in enumerate(curves)
        ]
    lower = min(lower, upper)
    return Bounds(lower, (lower + upper) / 2, upper, upper - lower <= 0.05 * upper)


def _loosest(pairs: Sequence[tuple[Curve, Curve]], rate: float) -> float:
    """Where to look closer: the corner that lets the lower bound be so low."""
    forward, backward = max(
        pairs,
        key=lambda pair: (
            float(_highs(pair[0], pair[1], rate).min()),
            float(_lows(pair[0], pair[1], rate).min()),
        ),
    )
    x = np.concatenate([forward.vertices()[0], backward.vertices()[0]])
    epsilon = math.log(x[int(np.argmin(_lows(forward, backward, rate)))])
    steps = np.log(forward.x)
    at = int(np.abs(steps - epsilon).argmin())
    if abs(steps[at] - epsilon) > 1e-6 * steps[-1]:
        return epsilon
    # A step already: the middle of the longer step beside it.
    beside = [k for k in (at - 1, at) if 0 <= k < len(steps) - 1]
    k = max(beside, key=lambda k: steps[k + 1] - steps[k])
    return float(steps[k] + steps[k + 1]) / 2


def _highs(forward: Curve, backward: Curve, rate: float) -> Array:
    """Bounds on TPR from above: eps >= 0, and eps <= 0 with delta of the exchanged."""
    back = 1 - (1 - rate - backward.upper) / backward.x
    return np.concatenate([forward.x * rate + forward.upper, back])


def _lows(forward: Curve, backward: Curve, rate: float) -> Array:
    """TPR is at least the least of these, or what lies beyond the last step."""
    x, y = forward.vertices()
    back_x, back_y = backward.vertices()
    return np.concatenate([x * rate + y, 1 - (1 - rate - back_y) / back_x])


def _largest_tpr(pairs: Sequence[tuple[Curve, Curve]], rate: float) -> Bounds:
    """The larger TPR of both orders."""
    lower = upper = rate
    for forward, backward in pairs:
        beyond = [
            forward.x[-1] * rate + forward.rest,
            1 - (1 - rate - backward.rest) / backward.x[-1],
        ]
        found = min(float(_lows(forward, backward, rate).min()), *map(float, beyond))
        found = max(found, rate + min(forward.rest, backward.rest))
        upper = max(upper, float(_highs(forward, backward, rate).min()) * _ROUND_UP)
        lower = max(lower, found * _ROUND_DOWN)
    upper = min(upper, 1.0)
    lower = min(lower, upper)
    # The ladder errs upward; below, the chords do.
    return Bounds(lower, (lower + upper) / 2, upper, upper - lower <= 0.05 * upper)


def _excess(curve: Curve, mu: float) -> float:
    """Largest of chord - delta_mu over the steps of the ladder."""
    ends = curve.upper - _gaussian_delta(np.log(curve.x), mu)
    return float(max(_inner(curve, mu).max(), ends.max()))


def _inner(curve: Curve, mu: float) -> Array:
    """The same within each step."""
    x, y = curve.x, curve.upper
    slope = np.diff(y) / np.diff(x)
    share = np.clip(-slope, 1e-300, 1 - 1e-16)
    at = -mu * (_ndtri(share) + mu / 2)
    at = np.clip(at, np.log(x[:-1]), np.log(x[1:]))
    chord = y[:-1] + slope * (np.exp(at) - x[:-1])
    return np.asarray(chord - _gaussian_delta(at, mu))


def _regret(curve: Curve, mu: float, *, is_exchanged: bool = False) -> float:
    """Upper bound on sup of delta_mu - delta, which is that of the TPRs as well.

    At -eps, with the datasets exchanged, the difference is e^-eps of that at eps.
    """
    x, y = curve.vertices()
    # Between vertices the curve is above the broken line and delta_mu below its chord.
    above = _gaussian_delta(np.log(x), mu) - y
    inside = float((above / x if is_exchanged else above).max())
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
