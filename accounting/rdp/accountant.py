"""Renyi accountant: continuous order, moments by quadrature, no list of orders.

For order 1 + t, with K(t) the summed log-moment of everything composed (moments.py) and
slack(t) = t ln t - (1 + t) ln(1 + t), Canonne, Kamath and Steinke 2020
(arXiv:2004.00010) Proposition 12 = Balle et al. 2020 (arXiv:2001.05990) Eq 20 read

    epsilon = (K(t) + slack(t) - ln delta) / t
    ln delta = K(t) + slack(t) - t epsilon

Every t > 0 gives a valid bound, so a search can only err upward. K and slack are
convex: both right-hand sides have one valley. It is searched on a fixed lattice of
orders, coarse to fine, so that moments are computed once per mechanism and a later
query with other counts only adds numbers. The last lattice is 0.14 % wide, which puts
the answer within 3e-7 of the continuous optimum where the valley is not unusually
steep.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar, final

import numpy as np

from accounting.accountant import Bounds, ComposingAccountant
from accounting.events import ApproximateEvent, NeighboringRelation
from accounting.events.normal_form import Composition, Mechanism
from accounting.numerics import Array
from accounting.rdp.moments import Moments, moments_of, refusal

# Lattice point m is t = 2^(m / 512). The strides divide one another.
_POINTS_PER_OCTAVE = 512
_STRIDES = (256, 16, 1)
_LOWEST = -20 * _POINTS_PER_OCTAVE


@final
class RdpAccountant(ComposingAccountant):
    """Upper bounds on epsilon from Renyi divergences of all real orders.

    Guarantees:
        `upper` is never below the truth; `lower` is 0, for this method has none.
        converged=False says that the best order lies at the end of the range searched,
        where the bound still holds.

    >>> from accounting.events import GaussianEvent
    >>> print(RdpAccountant().compose(GaussianEvent(5.0), 25).epsilon(1e-5))
    at most 4.729
    """

    name: ClassVar[str] = "rdp"

    def _refusal(self, mechanism: Mechanism) -> tuple[str, str] | None:
        if isinstance(mechanism, ApproximateEvent):
            return None
        return refusal(mechanism, self._relation)

    def _epsilon(self, composition: Composition, delta: float) -> Bounds:
        return epsilon_bounds(composition, self._relation, delta)

    def _delta(self, composition: Composition, epsilon: float) -> Bounds:
        return delta_bounds(composition, self._relation, epsilon)


def epsilon_bounds(
    composition: Composition, relation: NeighboringRelation, delta: float
) -> Bounds:
    """Bounds on epsilon at delta for mechanisms that `refusal` lets pass."""
    log_delta = math.log(delta)
    value, is_interior, most = _lowest(
        composition, relation, lambda t, moment: (moment - log_delta) / t
    )
    # No loss is larger than the sum of the largest ones.
    upper = min(max(value, 0.0), most)
    return Bounds(0.0, upper, upper, is_interior or upper in (0, most))


def delta_bounds(
    composition: Composition, relation: NeighboringRelation, epsilon: float
) -> Bounds:
    """Bounds on delta at epsilon for mechanisms that `refusal` lets pass."""
    value, is_interior, most = _lowest(
        composition, relation, lambda t, moment: moment - t * epsilon
    )
    if epsilon >= most:
        return Bounds(0.0, 0.0, 0.0, True)
    # Never 0: the smallest float instead, where the exponential underflows.
    upper = max(math.exp(min(value, 0.0)), math.ulp(0.0))
    return Bounds(0.0, upper, upper, is_interior or upper == 1)


def _lowest(
    composition: Composition,
    relation: NeighboringRelation,
    objective: Callable[[Array, Array], Array],
) -> tuple[float, bool, float]:
    """Lowest objective over the lattice, whether it is inside the range, most loss."""
    curves = [
        (_curve(mechanism, relation), float(count)) for mechanism, count in composition
    ]
    # Each cost alone has its optimum in its own range, and more cost only moves
    # the optimum to lower orders: the shortest range has it.
    highest = min(curve.highest for curve, _ in curves)
    first, last, is_interior = _LOWEST, highest, True
    for stride in _STRIDES:
        t, moment = _orders(first, last, stride)
        for curve, count in curves:
            moment = moment + count * curve.moments(first, last, stride)
        values = objective(t, moment)
        best = int(values.argmin())
        if stride == _STRIDES[0]:
            is_interior = 0 < best < len(values) - 1
        center = first + best * stride
        first, last = max(_LOWEST, center - stride), min(highest, center + stride)
    most = sum(count * curve.largest_loss for curve, count in curves)
    return float(values[best]), is_interior, most * (1 + 1e-14)


class _Curve:
    """K on the lattice for one mechanism and relation, computed where asked."""

    def __init__(self, moments: Moments) -> None:
        self._moments_at, self.largest_loss = moments.log_moments, moments.largest_loss
        octaves = math.log2(moments.largest_order)
        self.highest = _STRIDES[0] * math.ceil(
            octaves * _POINTS_PER_OCTAVE / _STRIDES[0]
        )
        self._known: dict[tuple[int, int, int], Array] = {}

    def moments(self, first: int, last: int, stride: int) -> Array:
        key = (first, last, stride)
        known = self._known.get(key)
        if known is None:
            known = self._moments_at(_orders(first, last, stride)[0])
            self._known[key] = known
        return known


@functools.lru_cache(maxsize=1024)
def _curve(mechanism: Mechanism, relation: NeighboringRelation) -> _Curve:
    """The curve shared by all accountants of this process."""
    return _Curve(moments_of(mechanism, relation))


@functools.lru_cache(maxsize=4096)
def _orders(first: int, last: int, stride: int) -> tuple[Array, Array]:
    """Lattice orders t and slack(t) = -ln(1 + t) - t ln(1 + 1/t)."""
    t = np.exp2(np.arange(first, last + 1, stride) / _POINTS_PER_OCTAVE)
    return t, -np.log1p(t) - t * np.log1p(1 / t)
