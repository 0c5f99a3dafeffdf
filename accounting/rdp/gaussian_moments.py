"""Dominating pairs of the sampled Gaussian, and their log-moments by quadrature.

With unit sensitivity and noise s, the output of one release has the density
N(x; 0, s^2) if the example was not sampled and N(x; 1, s^2) if it was. The worst pair
(P, Q) of neighboring outputs, one-dimensional (Mironov, Talwar and Zhang 2019,
arXiv:1908.10530; Zhu, Dong and Wang 2022, arXiv:2106.08567):

    remove    P = (1-q) N(0) + q N(1)    Q = N(0)
    add       P = N(0)                   Q = (1-q) N(0) + q N(1)
    replace   P = (1-q) N(0) + q N(1)    Q = (1-q) N(0) + q N(-1)

With the privacy loss L = ln P/Q under P, an accountant needs K(t) = ln E_P[e^{t L}],
which is t times the Renyi divergence of order 1 + t. Since E_P[e^{-L}] = 1,

    e^{K(t)} - 1 = E_P[phi(L)],    phi(L) = (e^{t L} - 1) + t (e^{-L} - 1) >= 0

where no sign changes, so that the sum below keeps its relative precision even where
K is 1e-20. The integrand is analytic in the strip |Im x| < pi s^2, so the plain
trapezoid rule converges geometrically.

Indices: rows are orders, columns are nodes.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from accounting.events import NeighboringRelation
from accounting.numerics import Array, log_mixture_ratio, log_phi, log_sums

# Standard deviations beyond the outermost mode: e^{-WIDTH^2 / 2} = 2e-22.
_WIDTH = 10.0
# ln of the inverse quadrature error: 1e-19, which leaves three digits for the growth
# of the integrand off the real line.
_DIGITS = 44.0
# Above the rounding of the sums; keeps the result on the safe side of the truth.
_ROUND_UP = 1.0 + 1e-11
_MOST_NODES = 20_000
_MOST_CELLS = 1 << 17
# Below this noise the loss is nearly an atom and quadrature would need a node per
# 1e-4; convexity of the divergence gives a bound that is close there.
_LEAST_QUADRATURE_NOISE = 0.1
# Noise beyond it is treated as this much, which errs upward.
_LARGEST_NOISE = 1e12


@dataclasses.dataclass(frozen=True, slots=True)
class _Direction:
    """One ordered pair: (ln w, ln w mirrored) -> (ln dP/dN(0), L), and its window."""

    losses: Callable[[Array, Array], tuple[Array, Array]]
    window: Callable[[Array, float], tuple[Array, Array]]
    is_mirrored: bool


# Outermost modes, for t the order - 1. With r(x) = q e^z / w in [0, 1] the share of
# the sampled branch, the modes of N(x) w^{1+t} solve x = (1+t) r(x), those of
# N(x) w^{-t} solve x = -t r(x) with r(x) <= q for x <= 0; the term of order L^2 in
# phi and the pair itself add modes within [-1, 2].
_REMOVE = _Direction(
    lambda log_w, _: (log_w, log_w), lambda t, q: (0 * t - 1, t + 2), False
)
_ADD = _Direction(
    lambda log_w, _: (0 * log_w, -log_w), lambda t, q: (-q * t - 1, 0 * t + 2), False
)
_REPLACE = _Direction(
    lambda log_w, mirrored: (log_w, log_w - mirrored),
    lambda t, q: (0 * t - 2, t * (1 + q) + 2),
    True,
)


def largest_order(probability: float, noise: float) -> float:
    """Order - 1 above which no optimum of a conversion to (epsilon, delta) lies.

    Beyond 2 s^2 ln(1/q) the rare branch dominates and K grows like t^2 / 2 s^2, whose
    optimum is at most s sqrt(2 ln(1/delta)); 14 s serves delta down to 1e-42. A search
    that stops here is sound anyway, as every order gives a valid bound.
    """
    noise = min(noise, _LARGEST_NOISE)
    if probability == 1:
        return 14 * noise + 4
    largest = 2.5 * noise * noise * -math.log(probability) + 14 * noise + 4
    if noise < _LEAST_QUADRATURE_NOISE:
        return largest
    return min(largest, _MOST_NODES * _step(noise))


def log_moments(
    probability: float, noise: float, relation: NeighboringRelation, t: Array
) -> Array:
    """K(t) = ln E_P[e^{t L}] of one release, the larger of both directions per order.

    Args:
        probability: q in (0, 1], the sampling probability.
        noise: s > 0, standard deviation / clip norm.
        relation: the neighboring relation.
        t: [orders] order - 1 > 0, ascending.

    Returns:
        [orders] K(t), in nats.

    Guarantees:
        Never below the truth, and within 2e-11 of it relatively for noise >= 0.1 and
        t <= largest_order. q = 1 is the closed form of the Gaussian, exactly.
    """
    distance = relation.sensitivity(1.0) / noise
    gaussian: Array = t * (1 + t) * (0.5 * distance * distance)
    if probability == 1:
        return gaussian
    if noise < _LEAST_QUADRATURE_NOISE:
        # Joint convexity of e^K: at most (1-q) e^0 + q e^gaussian.
        log_q, log_rest = math.log(probability), math.log1p(-probability)
        return np.asarray(np.logaddexp(log_rest, log_q + gaussian))
    noise = min(noise, _LARGEST_NOISE)
    if relation is NeighboringRelation.REPLACE_ONE:
        return _log_moments(_REPLACE, probability, noise, t)
    return np.maximum(
        _log_moments(_REMOVE, probability, noise, t),
        _log_moments(_ADD, probability, noise, t),
    )


def _step(noise: float) -> float:
    """Node distance: solves 2 pi y / h - y^2 / 2 s^2 = digits for the best y.

    The integrand grows by e^{y^2 / 2 s^2} at height y above the real line, and y is at
    most pi s^2, where w^a has its branch point.
    """
    if noise * math.sqrt(2 / _DIGITS) * math.pi > 2:
        return noise * math.sqrt(2 / _DIGITS) * math.pi
    square = (math.pi * noise) ** 2
    return 2 * square / (_DIGITS + square / 2)


def mixture_log_moments(
    noise: float, shifts: tuple[float, ...], chances: tuple[float, ...], t: Array
) -> Array:
    """As log_moments for adding or removing what has one of several sensitivities.

    All sensitivities are at most 1, and up to a height of pi s^2 above the real line
    the terms of w turn into one half plane: its zeros are as far as those of one term.

    Args:
        noise: s, over the largest sensitivity.
        shifts: sensitivities in (0, 1].
        chances: their probabilities, of sum at most 1.
        t: [orders] order - 1 > 0, ascending.
    """
    q = min(math.fsum(chances), 1.0)
    if noise < _LEAST_QUADRATURE_NOISE:
        # Joint convexity of e^K again.
        with np.errstate(divide="ignore"):
            terms = [np.full_like(t, np.log(1 - q))]
        for c, p in zip(shifts, chances, strict=True):
            terms.append(math.log(p) + t * (1 + t) * (0.5 * (c / noise) ** 2))
        return np.asarray(np.logaddexp.reduce(terms, axis=0) * _ROUND_UP + 1e-15)

    def ratio(x: Array) -> Array:
        return log_mixture_ratio(x, noise, shifts, chances)

    # Where x <= 0 the mean sensitivity is below what it is without looking at x.
    return np.maximum(
        _log_moments(_REMOVE, q, noise, t, ratio),
        _log_moments(_ADD, q, noise, t, ratio),
    )


def _log_moments(
    direction: _Direction,
    q: float,
    noise: float,
    t: Array,
    ratio: Callable[[Array], Array] | None = None,
) -> Array:
    """ln E_P[e^{t L}] for one ordered pair by the trapezoid rule, row by row."""
    low, high = direction.window(t, q)
    low, high = low - _WIDTH * noise, high + _WIDTH * noise
    step = np.full_like(t, _step(noise))
    if direction is not _REMOVE:
        # w^{-t} narrows the peak: curvature 1/s^2 + t r (1-r) / s^4.
        step = step / np.sqrt(1 + min(q, 0.25) * t / (noise * noise))
    nodes = np.ceil((high - low) / step).astype(np.int64) + 1
    result = np.empty_like(t)
    start = 0
    while start < len(t):
        stop = start + max(1, int(_MOST_CELLS // nodes[start]))
        stop = start + max(1, int(_MOST_CELLS // nodes[start:stop].max()))
        rows = slice(start, stop)
        x = low[rows, None] + step[rows, None] * np.arange(nodes[rows].max())
        result[rows] = _log_excess(direction, q, noise, t[rows, None], x, ratio)
        result[rows] += np.log(step[rows])
        start = stop
    return np.asarray(np.logaddexp(0.0, result) * _ROUND_UP)


def _log_excess(
    direction: _Direction,
    q: float,
    noise: float,
    t: Array,
    x: Array,
    ratio: Callable[[Array], Array] | None,
) -> Array:
    """ln of the sum over the nodes of P(x) phi(L(x)), [orders]."""
    log_w = _log_mixture_ratio(x, q, noise) if ratio is None else ratio(x)
    mirrored = _log_mixture_ratio(-x, q, noise) if direction.is_mirrored else log_w
    log_p, loss = direction.losses(log_w, mirrored)
    scaled = x / noise
    log_p = log_p - 0.5 * scaled * scaled - math.log(noise * math.sqrt(2 * math.pi))
    return log_sums(log_p + log_phi(np.broadcast_to(t, loss.shape), loss))


def _log_mixture_ratio(x: Array, q: float, noise: float) -> Array:
    """ln w(x), w = 1 - q + q e^z, z = (2 x - 1) / 2 s^2, to full relative precision."""
    z = (x - 0.5) / (noise * noise)
    change = q * np.expm1(np.minimum(z, 600.0))
    result = np.log1p(np.maximum(change, -0.5))
    # Elsewhere 1 + change cancels (q near 1, z < 0) or overflows.
    other = (change < -0.5) | (z > 600.0)
    if other.any():
        result[other] = np.logaddexp(math.log1p(-q), math.log(q) + z[other])
    return np.asarray(result)
