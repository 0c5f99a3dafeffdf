"""Composition of grid laws: delta of a sum of losses, with every error counted.

Each law is tilted by e^{theta l}, which makes roundoff relative to delta, folded onto
N points, transformed, raised to its count, multiplied and transformed back. With v the
tilted masses of sum 1, c their composition and A = e^{sum T K - theta eps},

    delta(eps) = A sum_{g > eps} c_g e^{-theta (g - eps)} (1 - e^{eps - g})

The kernel e^{-theta y} (1 - e^{-y}) is at most m = theta^theta / (1+theta)^{1+theta}.

What is added to an upper bound and taken from a lower one, u = 2^-53:

- Window. tau_R and tau_L bound the tilted mass right and left of the N points, by
  Chernoff at several orders; those of the upper law hold for the lower one. What falls
  there is folded to a wrong place. Upper: + A tau_R m for what is missing; lower:
  - A (tau_L + tau_R) m for what is surplus.
- Kernel. It is cut where e^{-theta y} is 1e-20: upper + A 1e-20. Its sum over n points
  is multiplied by 1 +- 2 n u.
- Transforms. The heaviest mass a of each v is kept apart, which leaves little to err
  where a law is nearly an atom: with f the transform of the other masses, counted from
  the heaviest,

      c-hat = prod a^T e^g,    g = sum T ln(1 + f / a)

  A transform of N = 2^k points errs in norm by at most 8 u log2 N (Higham 2002, Theorem
  24.2). Of each f that is ||df||_2 <= 8 u log2(N) sqrt(N) ||rest||_2, the bound for
  every single value too; 1 + f / a and its logarithm add 24 u |f|. With V the largest
  |v-hat| that these allow, ||dc||_2 is at most the sum of

      sum_i max_k [T_i prod V^T / V_i] 8 u log2(N) ||rest_i||_2
      || prod V^T (sum_i T_i 24 u |f_i| / V_i + 2 u |g|) + 8 u |c-hat| ||_2 / sqrt(N)
      8 u log2(N) ||c||_2                         c less its own atom, which is exact

  which enters delta with A ||dc||_2 ||kernel||_2.
- Masses. A tilted mass errs relatively by eta_v = u (16 + 4 max |theta l|), so delta is
  multiplied by e^{+- sum T (eta_v + u N_cells)}.
- Infinity. Upper + sum T p_inf.

All of them are computed at run time from the transforms at hand.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accounting.numerics import ROUNDOFF, Array
from accounting.pld.discretization import GridLaw

ComplexArray = NDArray[np.complex128]

MOST_POINTS = 1 << 21
_ORDERS = np.array([0.5, 1.0, 2.0, 3.0, 4.2, 5.6, 8.0, 14.0])
_OUTSIDE = 2e-6
_CUT = 46.1  # -ln 1e-20
# ln of the mass of an atom that is kept apart to the end.
_HEAVY = -30.0
# ln of a |c-hat| that is taken for 0, frequencies in a block, and what those dropped
# come to: sqrt(N) e^-200, and with errors of f at most 10^7 sqrt(N) times as much.
_NEGLIGIBLE, _BLOCK, _DROPPED = -200.0, 1 << 14, 1e-60

Factors = Sequence[tuple[GridLaw, int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The points first .. first + size - 1 of the sum's grid."""

    first: int
    size: int


class Tilted:
    """Grid laws tilted by one theta, and bounds on the tails of their sum."""

    def __init__(self, factors: Factors, theta: float) -> None:
        self.factors, self.theta = factors, theta
        self.step = factors[0][0].step
        self.offset = float(sum(count * law.offset for law, count in factors))
        self.log_scale = 0.0
        self.noise = 0.0
        self.masses: list[Array] = []
        self.mean = variance = 0.0
        for law, count in factors:
            losses = law.losses
            with np.errstate(divide="ignore"):
                grown = np.log(law.masses) + theta * losses
            peak = float(grown.max())
            v = np.exp(grown - peak)
            total = float(v.sum())
            v /= total
            self.masses.append(v)
            self.log_scale += count * (peak + math.log(total))
            reach = theta * float(np.abs(losses[[0, -1]]).max()) + abs(peak)
            self.noise += count * ROUNDOFF * (16 + 4 * reach + len(v))
            mean = dot(v, losses)
            self.mean += count * mean
            variance += count * dot(v, np.square(losses - mean))
        self.spread = math.sqrt(variance)

    @functools.cached_property
    def tails(self) -> tuple[Array, Array, Array, Array]:
        """Orders r, tilted ln E e^{r (S - m)}, orders l <= theta, ln E e^{-l (S - m)}.

        S is the sum of losses, m its mean. At orders l <= theta both are moments
        E_P[e^{t L}] with t >= 0, which grow with D: they hold for a lower law too.
        """
        right = _ORDERS / max(self.spread, 0.1 * self.step)
        left = np.minimum(right, self.theta)
        up, down = np.zeros_like(right), np.zeros_like(right)
        for v, (law, count) in zip(self.masses, self.factors, strict=True):
            centered = law.losses - dot(v, law.losses)
            for j in range(len(right)):
                up[j] += count * _log_mean(v, right[j] * centered)
                down[j] += count * _log_mean(v, -left[j] * centered)
        return right, up, left, down

    def range(self, epsilon: float, delta: float) -> tuple[int, int]:
        """First and last point that matter to a delta at an epsilon."""
        right, up, left, down = self.tails
        # The mass outside is to be small against delta / (A m), and against 1.
        log_share = math.log(delta) - self.log_scale + self.theta * epsilon
        log_share -= _log_kernel(self.theta)
        log_outside = math.log(_OUTSIDE) + min(log_share, 0.0)
        to_right = float(((up - log_outside) / right).min())
        to_left = float(((down - log_outside) / left).min())
        least, center, most = self.support
        first = math.floor(center - to_left / self.step) - 1
        last = math.ceil(center + to_right / self.step) + 1
        return max(first, least), min(last, most)

    @property
    def support(self) -> tuple[int, float, int]:
        """Least point, mean in points, and largest point of the sum."""
        least = sum(n * law.first for law, n in self.factors)
        most = sum(n * (law.first + len(law.masses) - 1) for law, n in self.factors)
        return least, (self.mean - self.offset) / self.step, most

    def outside(self, window: Window) -> tuple[float, float]:
        """ln of the tilted mass left and right of a window."""
        right, up, left, down = self.tails
        least, center, most = self.support
        last = window.first + window.size - 1
        to_left = (center - window.first) * self.step
        to_right = (last - center) * self.step
        return (
            -math.inf
            if least >= window.first
            else float((down - left * to_left).min()),
            -math.inf if most <= last else float((up - right * to_right).min()),
        )


def _log_kernel(theta: float) -> float:
    """ln m, m the largest e^{-theta y} (1 - e^{-y})."""
    return theta * math.log(theta) - (1 + theta) * math.log1p(theta)


def dot(a: Array, b: Array) -> float:
    """Sum of products without BLAS, whose threads cost more than such sums."""
    return float(np.einsum("i,i->", a, b))


def _log_mean(v: Array, grown: Array) -> float:
    """ln sum v e^grown, with a sum of v of 1; overwrites grown."""
    peak = max(float(grown[0]), float(grown[-1]))
    if peak < 1:
        return math.log1p(dot(v, np.expm1(grown, out=grown)))
    # Ends without mass do not count, and may be far away.
    peak = float(grown[v > 0].max(initial=-math.inf))
    if peak == -math.inf:
        return peak
    grown -= peak
    np.minimum(grown, 0.0, out=grown)
    return peak + math.log(dot(v, np.exp(grown, out=grown)))


class Curve:
    """Bounds on delta at every point of the grid of a composed law."""

    def __init__(self, tilted: Tilted, window: Window, above: Tilted) -> None:
        """Args: tilted and above are the same for the upper bound."""
        is_upper = tilted is above
        theta, step, size = tilted.theta, tilted.step, window.size
        self.theta, self.step, self.is_upper = theta, step, is_upper
        self.offset, self.first, self.size = tilted.offset, window.first, size
        self.infinite = sum(n * law.infinite for law, n in tilted.factors)
        self.log_scale = tilted.log_scale + (1 if is_upper else -1) * tilted.noise
        c, error = _convolved(tilted, size)
        heaviest = sum(
            n * (law.first + int(v.argmax()))
            for v, (law, n) in zip(tilted.masses, tilted.factors, strict=True)
        )
        start = (window.first - heaviest) % size
        self._c = np.concatenate([c[start:], c[:start]])
        count = min(size, math.ceil(_CUT / (theta * step)))
        y = step * np.arange(1, count + 1)
        self._kernel = np.exp(-theta * y)
        self._kernel *= -np.expm1(-y)
        largest = math.exp(_log_kernel(theta))
        norm = math.sqrt(dot(self._kernel, self._kernel))
        left, right = above.outside(window)
        scale = above.log_scale - tilted.log_scale
        wrong = math.exp(min(right + scale, 0.0))
        if not is_upper:
            wrong += math.exp(min(left + scale, 0.0))
        self._slack = largest * wrong + error * norm + 1e-20
        self._rounding = 2 * ROUNDOFF * count

    def loss(self, index: int) -> float:
        """epsilon at a point of the window."""
        return self.offset + self.step * (self.first + index)

    def log_delta(self, index: int) -> float:
        """Bound on ln delta at a point; -inf where the lower bound is 0."""
        index_first = max(index + 1, 0)
        ahead = self._c[index_first : index_first + len(self._kernel)]
        skipped = index_first - (index + 1)
        kernel = self._kernel[skipped : skipped + len(ahead)]
        total = dot(ahead[: len(kernel)], kernel)
        slack = self._slack + self._rounding * abs(total)
        total += slack if self.is_upper else -slack
        if total <= 0 and not self.is_upper:
            return -math.inf
        value = self.log_scale - self.theta * self.loss(index) + math.log(total)
        if self.infinite > 0:
            value = float(np.logaddexp(value, math.log(self.infinite)))
        return min(value, 0.0)

    def delta(self, epsilon: float) -> float:
        """Bound on delta at any epsilon, on the chord between two points."""
        place = (epsilon - self.offset) / self.step - self.first
        index = math.floor(place)
        low, high = self.log_delta(index), self.log_delta(index + 1)
        share = math.expm1(self.step * (place - index)) / math.expm1(self.step)
        share = min(max(share, 0.0), 1.0)
        return math.exp(low) * (1 - share) + math.exp(high) * share

    def epsilon(self, delta: float, guess: float) -> float:
        """Bound on epsilon at delta; at least 0."""
        log_delta = math.log(delta)
        start = round((guess - self.offset) / self.step) - self.first
        low = high = start
        stride = 8
        # Above delta at low, at most delta at high.
        least = math.floor(-self.offset / self.step) - self.first - 1
        while self.log_delta(high) > log_delta:
            low, high, stride = high, high + stride, stride * 4
            if high > 2 * self.size:
                return math.inf
        stride = 8
        while self.log_delta(low) <= log_delta:
            if low <= least:
                return 0.0
            low, high, stride = max(low - stride, least), low, stride * 4
        while high - low > 1:
            middle = (low + high) // 2
            if self.log_delta(middle) > log_delta:
                low = middle
            else:
                high = middle
        above, below = math.exp(self.log_delta(low)), math.exp(self.log_delta(high))
        share = (above - delta) / (above - below)
        inside = math.log1p(min(max(share, 0.0), 1.0) * math.expm1(self.step))
        return max(self.loss(low) + min(inside, self.step), 0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class _Transform:
    """Of one law: v-hat = atom + f, and ||df||_2 / sqrt(N) is at most error."""

    count: int
    atom: float
    f: ComplexArray
    error: float


def _convolved(tilted: Tilted, size: int) -> tuple[Array, float]:
    """c modulo size, counted from the sum of the heaviest points; norm of its error."""
    unit = 8 * ROUNDOFF * math.log2(size)
    log_atom = 0.0
    transforms = []
    for v, (_, count) in zip(tilted.masses, tilted.factors, strict=True):
        heaviest = int(v.argmax())
        atom = float(v[heaviest])
        rest = v.copy()
        rest[heaviest] = 0.0
        folded = _folded(rest, -heaviest, size)
        norm = math.sqrt(dot(folded, folded))
        f = np.fft.rfft(folded)
        del rest, folded
        transforms.append(_Transform(count, atom, f, unit * norm))
        log_atom += count * math.log(atom)
    has_atom = log_atom > _HEAVY
    spectrum = transforms[0].f
    errors = [0.0] * len(transforms)
    square = 0.0
    for start in range(0, len(spectrum), _BLOCK):
        block = slice(start, start + _BLOCK)
        parts = [transform.f[block] for transform in transforms]
        largest, log_bound = _largest(transforms, parts, math.sqrt(size))
        if not has_atom and log_bound.max() < _NEGLIGIBLE:
            spectrum[block] = 0.0
            continue
        bound = np.exp(np.minimum(log_bound, 300.0))
        growth = np.zeros(len(bound), complex)  # g
        local = np.zeros(len(bound))
        for i, (transform, f) in enumerate(zip(transforms, parts, strict=True)):
            count, most = transform.count, float((bound / largest[i]).max())
            errors[i] = max(errors[i], count * transform.error * most)
            local += count * 24 * ROUNDOFF * np.abs(f) / largest[i]
            growth += count * _log_one_plus(f / transform.atom)
        local += 2 * ROUNDOFF * np.abs(growth)
        local *= bound
        if has_atom:
            part = math.exp(log_atom) * _expm1(growth)
        else:
            part = np.exp(growth + log_atom)
        local += 8 * ROUNDOFF * np.abs(part)
        square += dot(local, local)
        spectrum[block] = part
    del transforms
    c = np.fft.irfft(spectrum, size)
    error = sum(errors) + math.sqrt(2 * square / size)
    error += unit * math.sqrt(dot(c, c))
    if has_atom:
        c[0] += math.exp(log_atom)
    return c, error * (1 + 1e-6) + _DROPPED


def _largest(
    transforms: Sequence[_Transform], parts: Sequence[ComplexArray], root: float
) -> tuple[list[Array], Array]:
    """V of each law at some frequencies, and sum T ln V."""
    largest = []
    log_bound = np.zeros(len(parts[0]))
    for transform, f in zip(transforms, parts, strict=True):
        x = f.real + transform.atom
        bound = np.sqrt(x * x + f.imag * f.imag)
        bound += 24 * ROUNDOFF * (bound + transform.atom)
        bound += root * transform.error
        largest.append(bound)
        log_bound += transform.count * np.log(bound)
    return largest, log_bound


def _log_one_plus(f: ComplexArray) -> ComplexArray:
    """ln(1 + f), relatively precise where f is small."""
    x, y = f.real, f.imag
    result = np.empty_like(f)
    result.imag = np.arctan2(y, 1 + x)
    square = x * (2 + x) + y * y
    is_small = np.maximum(np.abs(x), np.abs(y)) < 0.4
    result.real[is_small] = 0.5 * np.log1p(square[is_small])
    rest = ~is_small
    result.real[rest] = np.log(np.maximum(np.hypot(1 + x[rest], y[rest]), 1e-300))
    return result


def _expm1(g: ComplexArray) -> ComplexArray:
    """e^g - 1, relatively precise where g is small."""
    x, y = g.real, g.imag
    result = np.empty_like(g)
    result.real = np.expm1(x) * np.cos(y) - 2 * np.square(np.sin(0.5 * y))
    result.imag = np.exp(x) * np.sin(y)
    return result


def _folded(v: Array, first: int, size: int) -> Array:
    """Masses at first, first + 1, ... added up modulo size."""
    start = first % size
    padded = np.zeros(-(-(start + len(v)) // size) * size)
    padded[start : start + len(v)] = v
    return np.asarray(padded.reshape(-1, size).sum(axis=0))
