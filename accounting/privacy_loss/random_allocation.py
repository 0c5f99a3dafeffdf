"""Random allocation: each example in one of t steps, as the law of one sum.

With Gaussian noise s, let P be the outputs of an epoch with the example and Q those
without it (or with it zeroed). Given the step that the example is in, only that step
differs, so (Feldman and Shenfeld 2025, arXiv:2502.08202)

    Z = dP/dQ = (W_1 + ... + W_t) / t,    W = e^{Y / s - 1 / 2 s^2},   Y ~ N(0, 1)

under Q, independent. The pair (P, Q) is nothing but the law of Z: removing an example
has delta E(Z - e^eps)+, adding one has E(1 - e^eps Z)+. Both are expectations of convex
functions of Z, and convex functions of the sum are convex in each W: whatever spreads
each W without moving its mean makes delta larger, in both directions, and whatever
contracts it makes delta smaller. So each W goes to a linear grid (lognormal_sums.py),
on which sums are a convolution; arXiv:2602.17284 uses grids in ln W and one W at a
time.

W above the last point. E(Z; any W there) is at most V + (t - 1) Q, with V and Q the
masses of W there under w dQ and dQ: it goes to infinite losses. When an example is
added, a smaller Z is worse, and W above the last point counts as that point. The lower
law leaves it out.

The law of ln Z is put onto a grid of its own, again with mean kept above, and by
conditional means below, which is a post-processing of the pair.
"""

import functools
import math

import numpy as np

from accounting.numerics import ROUNDOFF, Array, ndtri
from accounting.privacy_loss.atoms import AtomicLoss
from accounting.privacy_loss.lognormal_sums import (
    HARMLESS,
    ORDERS,
    Step,
    Sum,
    lowered_dots,
    norm,
    spread_down,
    spread_up,
    step_of,
)

# Points of the law of ln Z.
_LOSSES = 6000
# Regions of points whose errors count together.
_REGIONS = 64
# Below it a linear grid has no digits for W.
LEAST_ALLOCATED_NOISE = 0.3
# How fine the grids are that an accountant tries in turn.
LEAST_POINTS, MOST_POINTS = 1 << 15, 1 << 19


@functools.lru_cache(maxsize=32)
def allocation_losses(
    bins: int, noise: float, tail: float, points: int
) -> tuple[AtomicLoss, AtomicLoss]:
    """Losses of one epoch: removing an example, with its lower law, and adding one.

    Args:
        bins: t >= 2.
        noise: s >= LEAST_ALLOCATED_NOISE.
        tail: mass that may go to infinite losses.
        points: N, a power of two.
    """
    widest, longest = _reaches(bins, noise, tail)
    h = longest / points
    step = step_of(noise, h, max(2, min(math.ceil(widest / h), points // 2)))
    z: Array = np.asarray((h / bins) * np.arange(points), float)
    upper = Sum(spread_up(step), bins, points, 1.0)
    infinite = step.beyond[1] + (bins - 1) * step.beyond[0] + upper.shifted_beyond()
    mass, first = upper.above.copy(), upper.first(z)
    for region in _regions(z, first):
        # The error of a region counts as mass at its upper end, as a share of P.
        wrong = upper.error * norm(z[region] * upper.factor[region])
        mass[region.stop - 1] += wrong / z[region.stop - 1]
    # Smaller sums count as the first that is told.
    mass[first] += max(upper.whole - float(mass[first:].sum()), 0.0)
    removed = _split(z[first:], mass[first:], infinite, _below(step, bins, z))
    return removed, _added(bins, noise, tail, points)


def _regions(z: Array, first: int) -> list[slice]:
    """Points from first on, in regions whose ends grow by a fixed ratio."""
    ends = np.exp(np.linspace(math.log(z[first]), math.log(z[-1]), _REGIONS + 1))[1:]
    stops = np.unique(np.searchsorted(z, ends, side="right"))
    stops = stops[stops > first]
    stops[-1] = len(z)
    return [
        slice(start, stop)
        for start, stop in zip([first, *stops[:-1]], stops, strict=True)
    ]


def _below(step: Step, bins: int, z: Array) -> AtomicLoss | None:
    """Lower law of ln Z.

    The error of a region, a share I of P at its upper end, is taken from points of the
    next one, which lowers D by more. Where that has too little, all points above y go,
    where D(y) is all the error that is left: D is then lower by that much below y.
    """
    masses = lowered_dots(step)
    if not masses.any():
        return None
    lower = Sum(masses, bins, len(z), 1.0)
    first = lower.first(z)
    regions = _regions(z, first)
    q, weighed, lost = lower.below.copy(), z * lower.factor, z * lower.lost
    q[:first] = 0.0
    owed = [
        lower.error * norm(weighed[region])
        + lower.folded * float(weighed[region].max())
        + float(lost[region].sum())
        for region in regions
    ]
    paid = 0
    for region, following, wrong in zip(regions, regions[1:], owed, strict=False):
        there = float(q[following].sum()) * z[region.stop - 1]
        if there < 20 * wrong:
            break
        q[following] *= 1 - wrong / there * (1 + 1e-9)
        paid += 1
    wrong = sum(owed[paid:]) * (1 + 1e-6)
    beyond = np.concatenate([np.cumsum(q[::-1])[::-1][1:], [0.0]])
    curve = (z[1] - z[0]) * np.cumsum(beyond[::-1])[::-1]
    return _merged(z, np.where(curve >= wrong, q, 0.0))


def _added(bins: int, noise: float, tail: float, points: int) -> AtomicLoss:
    """The law for adding an example, where W above a point counts as that point."""
    median = math.exp(-0.5 / (noise * noise))
    widest = max(1.0, min(_reaches(bins, noise, 1e-4)[0], 0.1 * points * median))
    center = bins * (1 + 8 * math.sqrt(math.expm1(min(1 / noise**2, 20.0)) / bins))
    longest = min(bins * widest * 1.01, widest + max(center, 2.0 * bins))
    h = longest / points
    step = step_of(noise, h, max(2, math.ceil(widest / h)))
    total = Sum(spread_down(step), bins, points, -1.0)
    z: Array = np.asarray((h / bins) * np.arange(points), float)
    mass, last = total.above.copy(), total.last()
    first = min(max(int(np.searchsorted(np.cumsum(mass), 0.1 * tail)), 1), last - 1)
    infinite = float(mass[:first].sum()) + total.error * norm(total.factor[:first])
    for region in _regions(z[: last + 1], first):
        mass[region.start] += total.error * norm(total.factor[region])
    mass[last] += max(total.whole - float(mass[: last + 1].sum()), 0.0)
    z, mass = z[first : last + 1], mass[first : last + 1]
    losses = np.linspace(-math.log(z[-1]), -math.log(z[0]), _LOSSES)
    grid = np.exp(-losses)[::-1]
    index = np.clip(np.searchsorted(grid, z) - 1, 0, _LOSSES - 2)
    rise = (z - grid[index]) / np.diff(grid)[index]
    # Down rather than up, by more than the rounding of the share.
    rise = np.clip(rise - 64 * ROUNDOFF * _LOSSES, 0.0, 1.0)
    p = np.bincount(index + 1, mass * rise, _LOSSES)
    p += np.bincount(index, mass * (1 - rise), _LOSSES)
    error = 1e-14 + 2 * ROUNDOFF * points
    return AtomicLoss(
        losses, p[::-1].astype(float), error=error, outside=infinite, is_attained=False
    )


def _reaches(bins: int, noise: float, tail: float) -> tuple[float, float]:
    """Where W, and where the sum, ends but for a mass tail under P; no bound."""
    share = tail / 4
    widest = math.exp(0.5 / noise**2 - ndtri(share) / noise)
    # Chernoff with W cut there, on a rough grid.
    y = np.linspace(-8.0, -ndtri(share) + 1 / noise, 800)
    w = np.exp(y / noise - 0.5 / noise**2)
    q = np.exp(-0.5 * y * y) * (y[1] - y[0]) / math.sqrt(2 * math.pi)
    best = math.inf
    for order in ORDERS / widest:
        grown = order * w
        moment = float(np.log1p(np.einsum("i,i->", q, np.expm1(grown))))
        shifted = math.log(float(np.einsum("i,i,i->", q, w, np.exp(grown))))
        best = min(best, (shifted + (bins - 1) * moment - math.log(share)) / order)
    return widest, 1.02 * max(best, widest)


def _split(
    z: Array, mass: Array, infinite: float, attained: AtomicLoss | None
) -> AtomicLoss:
    """Upper law of ln Z for removing: each point to two of a geometric grid, mean kept.

    Points so small that they hold next to nothing under P go up to the first.
    """
    p = z * mass
    first = int(np.searchsorted(np.cumsum(p), HARMLESS))
    last = int(np.flatnonzero(p)[-1])
    losses = np.linspace(math.log(z[first]), math.log(z[last]), _LOSSES)
    grid = np.exp(losses)
    index = np.clip(np.searchsorted(grid, z) - 1, 0, _LOSSES - 2)
    rise = (z - grid[index]) / np.diff(grid)[index]
    rise = np.clip(rise + 64 * ROUNDOFF * _LOSSES, 0.0, 1.0)
    q = np.bincount(index + 1, mass * rise, _LOSSES)
    q += np.bincount(index, mass * (1 - rise), _LOSSES)
    error = 1e-14 + 2 * ROUNDOFF * len(z)
    return AtomicLoss(
        losses,
        (q * grid).astype(float),
        error=error,
        outside=infinite,
        is_attained=False,
        attained=attained,
    )


def _merged(z: Array, mass: Array) -> AtomicLoss | None:
    """Lower law of ln Z: points of one cell become one, which is post-processing."""
    p = z * mass
    if not p.any():
        return None
    grown = np.cumsum(p)
    first = max(int(np.searchsorted(grown, HARMLESS)), 1)
    last = int(np.flatnonzero(p)[-1])
    ends = np.linspace(math.log(z[first]), math.log(z[last]), _LOSSES)
    index = np.searchsorted(ends, np.log(np.maximum(z, z[first])))
    p_cell, q_cell = (np.bincount(index, values) for values in (p, mass))
    kept = (p_cell > 0) & (q_cell > 0)
    losses = np.log(p_cell[kept] / q_cell[kept])
    return AtomicLoss(
        losses, p_cell[kept].astype(float), error=1e-14 + 2 * ROUNDOFF * len(z)
    )
