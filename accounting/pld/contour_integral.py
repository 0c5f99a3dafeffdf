"""Point value of epsilon(delta) and delta(epsilon) by an integral in the complex plane.

For T releases with privacy losses L under P, M(z) = E_P[e^{z L}], and any theta > 0,

    delta(eps) = 1/(2 pi i) integral of M(z)^T e^{-z eps} / (z (z + 1)) dz, Re z = theta

(Alghamdi et al. 2023, arXiv:2208.09595, who expand it; here it is summed). With
z_j = theta + i (j + 1/2) du the midpoint rule is

    delta_hat(eps) = (du / pi) Re sum_j M(z_j)^T e^{-z_j eps} / (z_j (z_j + 1))
                   = sum_k (-1)^k delta(eps + k W) e^{theta k W},    W = 2 pi / du

so that what it adds to the truth is small once W spans the tilted law of the sum. M
comes from the nodes of privacy_loss/base.py, with T log M(z) kept relative to M(theta):

    M(theta + iu) / M(theta) = 1 + sum a (e^{iuL} - 1)

with the tilted weights a, so the phase keeps its digits at T = 10^7. theta is the best
order of the Chernoff bound, which with the largest losses cut off is

    epsilon <= min_t (T K(t) + slack(t) - ln delta) / t,   slack as in rdp/accountant.py

No bound is claimed: `converged` tells whether every check of the value passed.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from accounting.numerics import Array
from accounting.privacy_loss import Loss
from accounting.privacy_loss.base import Nodes

Terms = Sequence[tuple[Loss, int]]
ComplexArray = NDArray[np.complex128]
Objective = Callable[[Array, Array], Array]

# Mass of the largest losses that is left out, in units of delta.
TRUNCATED = 1e-10
_LEAST_ORDER, _MOST_ORDER = 1e-5, 1e9
_COARSE, _FINE = 90, 33
# Losses x frequencies that one value may cost.
_MOST_WORK = 2_000_000
# Orders x nodes in memory at once: 4 MB an array.
_MOST_CELLS = 1 << 19
_MOST_FREQUENCIES = 4096
# Nodes in memory at once with all their frequencies: 1 MB an array.
_NODES = 1 << 10
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """Where the tilted law of a composition sits, and the point value.

    Attributes:
        value: epsilon or delta; the Chernoff value if not converged.
        chernoff: the Chernoff bound on epsilon, or on ln delta.
        order: theta, at which the bound is smallest.
        spread: standard deviation of the sum of losses under the tilted law.
        mean: its mean.
        converged: True if every check of the value passed.
    """

    value: float
    chernoff: float
    order: float
    spread: float
    mean: float
    converged: bool


def epsilon_at(terms: Terms, delta: float) -> Point:
    """Point value of epsilon at delta in (0, 1) for (loss, count) terms."""
    log_delta = math.log(delta)
    state = _State(terms, delta, _epsilon_bound(delta), TRUNCATED)
    if state.chernoff <= 0:
        return state.point(0.0, True)

    def solve(integral: _Integral) -> tuple[float, bool]:
        return _newton(integral, log_delta, state.chernoff)

    return state.evaluated(solve, state.chernoff, delta)


def delta_at(terms: Terms, epsilon: float) -> Point:
    """Point value of delta at epsilon >= 0 for (loss, count) terms."""
    bound = _log_delta_bound(epsilon)
    # The tail left out is a share of delta, of which the bound is the first guess.
    guess = _State(terms, 1e-20, bound, TRUNCATED).chernoff
    state = _State(terms, max(math.exp(min(0.0, guess)), 1e-250), bound, TRUNCATED)
    delta = math.exp(min(0.0, state.chernoff))
    if delta == 0:
        return state.point(delta, False)

    def solve(integral: _Integral) -> tuple[float, bool]:
        value = math.exp(integral.log_scale(epsilon)) * integral.sums(epsilon)[0]
        return value, 0 < value <= delta * (1 + 1e-9)

    # The aliases are judged against a delta that may lie well below its bound.
    return state.evaluated(solve, delta, delta * 1e-4)


def order_for_delta(terms: Terms, delta: float, truncated: float) -> float:
    """Best order of the bound on epsilon without losses of mass truncated x delta."""
    return _State(terms, delta, _epsilon_bound(delta), truncated).order


def order_for_epsilon(
    terms: Terms, epsilon: float, delta: float, truncated: float
) -> float:
    """Best order of the bound on delta without losses of mass truncated x delta."""
    return _State(terms, delta, _log_delta_bound(epsilon), truncated).order


def _epsilon_bound(delta: float) -> Objective:
    log_delta = math.log(delta)
    return lambda t, moment: (moment + slack(t) - log_delta) / t


def _log_delta_bound(epsilon: float) -> Objective:
    return lambda t, moment: moment + slack(t) - t * epsilon


def slack(t: Array) -> Array:
    """t ln t - (1 + t) ln(1 + t)."""
    return np.asarray(-np.log1p(t) - t * np.log1p(1 / t))


class _State:
    """Nodes of all terms, and the order at which the Chernoff bound is smallest."""

    def __init__(
        self,
        terms: Terms,
        delta: float,
        objective: Objective,
        truncated: float,
    ) -> None:
        self.terms = terms
        total = sum(count for _, count in terms)
        self.tail = truncated * delta / total
        self.nodes = [loss.nodes(self.tail, 0.0, 0.0) for loss, _ in terms]
        ends = math.log(_LEAST_ORDER), math.log(_MOST_ORDER)
        self.is_interior = True
        # The nodes of the add direction depend on the order, which is found twice.
        for turn in range(2):
            t = np.exp(np.linspace(*ends, _COARSE if turn == 0 else _FINE))
            moment = sum(
                (n * _log_moments(nodes, t) for n, nodes in self.pairs()), 0 * t
            )
            values = objective(t, moment)
            best = int(values.argmin())
            if turn == 0:
                self.is_interior = 0 < best < len(t) - 1
                around = t[max(best - 1, 0)], t[min(best + 1, len(t) - 1)]
                ends = math.log(around[0]), math.log(around[1])
                self.nodes = [
                    loss.nodes(self.tail, 0.0, around[1]) for loss, _ in terms
                ]
        self.chernoff, self.order = float(values[best]), float(t[best])
        self.mean, variance = 0.0, 0.0
        for count, nodes in self.pairs():
            a = tilted(nodes, self.order)
            mean = float(np.einsum("i,i->", a, nodes.loss))
            self.mean += count * mean
            variance += count * float(
                np.einsum("i,i->", a, np.square(nodes.loss - mean))
            )
        self.spread = math.sqrt(variance)

    def pairs(self) -> list[tuple[int, Nodes]]:
        return [
            (count, nodes)
            for (_, count), nodes in zip(self.terms, self.nodes, strict=True)
        ]

    def point(self, value: float, converged: bool) -> Point:
        return Point(
            value, self.chernoff, self.order, self.spread, self.mean, converged
        )

    def evaluated(
        self,
        solve: "Callable[[_Integral], tuple[float, bool]]",
        fallback: float,
        delta: float,
    ) -> Point:
        """The value once the integral has converged, else the fallback, flagged."""
        is_smooth = any(loss.is_smooth for loss, _ in self.terms)
        if not self.is_interior or self.spread == 0 or not is_smooth:
            return self.point(fallback, False)
        width = 18 * self.spread + (37 - math.log(delta)) / self.order
        count = max(32, math.ceil(1.4 * width / self.spread))
        before = math.inf
        while count <= _MOST_FREQUENCIES:
            largest = count * 2 * math.pi / width
            ask = self.tail, largest, self.order
            work = count * sum(loss.node_count(*ask) for loss, _ in self.terms)
            if work > _MOST_WORK:
                break
            nodes = [loss.nodes(*ask) for loss, _ in self.terms]
            counts = [n for _, n in self.terms]
            integral = _Table(nodes, self.order, width, count).at(counts)
            value, is_root = solve(integral)
            if is_root and integral.has_converged():
                return self.point(value, True)
            rest = integral.rest()
            if rest > 0.2 * before:
                # The law is nearly an atom: its transform does not decay in reach.
                break
            before = rest
            count *= 2
        return self.point(fallback, False)


class _Table:
    """ln M of each loss at fixed frequencies, from which any counts are composed."""

    def __init__(
        self, nodes: Sequence[Nodes], order: float, width: float, count: int
    ) -> None:
        self.order, self.du = order, 2 * math.pi / width
        self.u = (np.arange(count) + 0.5) * self.du
        self.z = order + 1j * self.u
        t = np.array([order])
        self.log_moments = [float(_log_moments(points, t)[0]) for points in nodes]
        self.log_ratios = [self._log_ratio(points) for points in nodes]

    def at(self, counts: Sequence[int]) -> "_Integral":
        """The integral for these counts of releases."""
        return _Integral(self, counts)

    def _log_ratio(self, points: Nodes) -> ComplexArray:
        """ln M(theta + iu) / M(theta), to the last digits near u = 0.

        The frequencies are sums of one of few coarse and one of few fine ones, v and w:
        e^{i(v + w)L} - 1 is the sum of e^{ivL} - 1, e^{iwL} - 1 and their product.
        """
        a = tilted(points, self.order)
        fine = math.isqrt(len(self.u) - 1) + 1
        coarse = -(-len(self.u) // fine)
        w = self.du * np.arange(fine, dtype=float)
        v = self.u[0] + fine * self.du * np.arange(coarse, dtype=float)
        change = np.zeros((coarse, fine), complex)
        for start in range(0, len(a), _NODES):
            part = slice(start, start + _NODES)
            turned = _turned(v, points.loss[part]) * a[part]
            other = _turned(w, points.loss[part])
            change += turned @ other.T
            change += turned.sum(axis=1)[:, None] + other @ a[part]
        x, y = (values.ravel()[: len(self.u)] for values in (change.real, change.imag))
        square = np.maximum(x * (2 + x) + y * y, -1 + 1e-16)
        return np.asarray(0.5 * np.log1p(square) + 1j * np.arctan2(y, 1 + x))


def _turned(u: Array, loss: Array) -> ComplexArray:
    """[frequencies, losses] e^{iuL} - 1, both parts relatively precise near 0."""
    half = np.multiply.outer(0.5 * u, loss)
    sine = np.sin(half)
    result = np.empty(half.shape, complex)
    result.real = -2 * sine * sine
    result.imag = 2 * sine * np.cos(half)
    return result


class _Integral:
    """The midpoint sum for fixed counts; cheap to evaluate at any epsilon."""

    def __init__(self, table: _Table, counts: Sequence[int]) -> None:
        self.order, self.du, self.u, self.z = table.order, table.du, table.u, table.z
        self.log_moment = 0.0
        log_ratio = np.zeros(len(self.u), complex)
        for n, moment, ratio in zip(
            counts, table.log_moments, table.log_ratios, strict=True
        ):
            self.log_moment += n * moment
            log_ratio += n * ratio
        self.damped = np.exp(log_ratio) / self.z
        self._value = 0.0

    def log_scale(self, epsilon: float) -> float:
        return self.log_moment - self.order * epsilon

    def sums(self, epsilon: float) -> tuple[float, float]:
        """(delta, -d delta / d epsilon) over e^{log_scale}."""
        phase = np.exp(-1j * self.u * epsilon)
        terms = self.damped * phase / (self.z + 1)
        value = self.du / math.pi * float(terms.real.sum())
        slope = self.du / math.pi * float((terms * self.z).real.sum())
        self._value = value
        return value, slope

    def rest(self) -> float:
        """What may lie beyond the last frequency, over e^{log_scale}."""
        last = slice(-max(1, len(self.u) // 4), None)
        terms = np.abs(self.damped[last] / (self.z[last] + 1))
        return float((terms * self.u[last]).max()) / math.pi

    def has_converged(self) -> bool:
        """True if what lies beyond the last frequency is negligible."""
        return self.rest() < 1e-10 * abs(self._value)


class Running:
    """Epsilon at one delta for counts that grow, each up to twice what it was.

    The integral does not depend on theta, only its conditioning does: one theta and one
    set of frequencies serve all counts n_k <= N_k <= 2 n_k.

    Args:
        losses: one for each count.
        counts: n_k, >= 1.
        delta: the delta.
    """

    def __init__(
        self, losses: Sequence[Loss], counts: Sequence[int], delta: float
    ) -> None:
        self.log_delta = math.log(delta)
        middle = [max(1, round(1.41 * n)) for n in counts]
        state = _State(
            list(zip(losses, middle, strict=True)),
            delta,
            _epsilon_bound(delta),
            TRUNCATED / 2,
        )
        self.table: _Table | None = None
        is_smooth = any(loss.is_smooth for loss in losses)
        if not state.is_interior or state.spread == 0 or not is_smooth:
            return
        width = 18 * 1.2 * state.spread + (37 - self.log_delta) / state.order
        count = max(64, math.ceil(1.4 * width / (0.84 * state.spread)))
        ask = state.tail, count * 2 * math.pi / width, state.order
        work = count * sum(loss.node_count(*ask) for loss in losses)
        if count <= _MOST_FREQUENCIES and work <= _MOST_WORK:
            nodes = [loss.nodes(*ask) for loss in losses]
            self.table = _Table(nodes, state.order, width, count)

    def epsilon(self, counts: Sequence[int]) -> float | None:
        """The point value for these counts; None where it is not to be trusted."""
        if self.table is None:
            return None
        integral = self.table.at(counts)
        t = np.array([integral.order])
        chernoff = integral.log_moment + float(slack(t)[0]) - self.log_delta
        chernoff /= integral.order
        if chernoff <= 0:
            return 0.0
        value, is_root = _newton(integral, self.log_delta, chernoff)
        return value if is_root and integral.has_converged() else None


def _newton(
    integral: _Integral, log_delta: float, chernoff: float
) -> tuple[float, bool]:
    """Root of ln delta_hat(epsilon) = ln delta in [0, chernoff]."""
    low, high, epsilon, error = 0.0, chernoff, 0.9 * chernoff, math.inf
    for _ in range(60):
        value, slope = integral.sums(epsilon)
        if not (value > 0 and slope > 0):
            high, epsilon = epsilon, (low + epsilon) / 2
            continue
        error = math.log(value) + integral.log_scale(epsilon) - log_delta
        if abs(error) < 1e-12:
            break
        low, high = (epsilon, high) if error > 0 else (low, epsilon)
        if high <= 1e-9 * chernoff:
            # delta(0) is below delta: the smallest epsilon allowed is 0.
            return 0.0, True
        following = epsilon + error * value / slope
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - epsilon) <= 1e-15 * epsilon:
            break
        epsilon = following
    return epsilon, abs(error) < _TOLERANCE


def tilted(nodes: Nodes, order: float) -> Array:
    """Weights of the law tilted by e^{order L}, of sum 1."""
    grown = order * nodes.loss
    a = nodes.weight * np.exp(grown - grown.max())
    return np.asarray(a / a.sum())


def _log_moments(nodes: Nodes, t: Array) -> Array:
    """ln E_P[e^{t L}] at each t, precise where it is near 0 and where it is large."""
    rows = max(1, _MOST_CELLS // len(nodes.loss))
    parts = [_some_log_moments(nodes, t[i : i + rows]) for i in range(0, len(t), rows)]
    return np.concatenate(parts)


def _some_log_moments(nodes: Nodes, t: Array) -> Array:
    """The same with all orders x nodes in memory at once."""
    grown = np.multiply.outer(t, nodes.loss)
    peak = grown.max(axis=1)
    result = np.empty_like(t)
    small = peak < 1
    result[small] = np.log1p(np.einsum("ij,j->i", np.expm1(grown[small]), nodes.weight))
    large = ~small
    shifted = np.exp(grown[large] - peak[large, None])
    result[large] = peak[large] + np.log(np.einsum("ij,j->i", shifted, nodes.weight))
    return result
