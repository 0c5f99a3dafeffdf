"""Random allocation: each example in one of t steps, as the law of one sum.

With Gaussian noise s, let P be the outputs of an epoch with the example and Q those
without it (or with it zeroed). Given the step that the example is in, only that step
differs, so (Feldman and Shenfeld 2025, arXiv:2502.08202)

    Z = dP/dQ = (W_1 + ... + W_t) / t,    W = e^{Y / s - 1 / 2 s^2},   Y ~ N(0, 1)

under Q, independent. The pair (P, Q) is nothing but the law of Z: removing an example
has delta E(Z - e^eps)+, adding one has E(1 - e^eps Z)+. Both are expectations of convex
functions of Z, and convex functions of the sum are convex in each W: whatever spreads
each W without moving its mean makes delta larger, in both directions, and whatever
contracts it makes delta smaller. So each W goes to a linear grid (linear_grid.py), on
which sums are a convolution; arXiv:2602.17284 uses grids in ln W and one W at a time.

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

from accounting.atomic import AtomicLoss
from accounting.linear_grid import (
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
from accounting.losses import ROUNDOFF, ndtri
from accounting.pairs import Array

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


<<<<<<< HEAD
=======
def _step(noise: float, h: float, cells: int) -> _Step:
    """The masses of one W in half cells."""
    k = (0.5 * h) * np.arange(2 * cells + 1)
    with np.errstate(divide="ignore"):
        log_k = np.log(k)
    y = noise * log_k + 0.5 / noise
    low, high = NormalMasses(y), NormalMasses(y - 1 / noise)
    reach = 4 + np.abs(log_k[2::2]) + 2 / noise**2
    return _Step(
        h,
        low.mass,
        high.mass,
        low.error,
        high.error,
        8 * ROUNDOFF * reach * k[2::2],
        (low.right, high.right),
    )


def _rise(step: _Step, sign: float) -> tuple[Array, Array]:
    """Masses of whole cells, and their part that goes up, both off by sign errors."""
    mass = step.low[::2] + step.low[1::2]
    mean = step.high[::2] + step.high[1::2]
    lower = step.points[:-1]
    error = step.high_error[::2] + step.high_error[1::2]
    low_error = step.low_error[::2] + step.low_error[1::2]
    error += lower * low_error + 8 * ROUNDOFF * (mean + lower * mass)
    error += 4 * step.slip * mass
    rise = (mean - lower * mass + sign * error) / step.h
    return mass, np.asarray(rise)


def _up(step: _Step) -> Array:
    """Upper law of W for removing: spread, and every error upward."""
    mass, rise = _rise(step, 1.0)
    mass = (mass + step.low_error[::2] + step.low_error[1::2]) * (1 + 4 * ROUNDOFF)
    return _to_ends(mass, np.clip(rise, 0.0, mass))


def _down(step: _Step) -> Array:
    """Upper law of W for adding: spread, masses upward and W downward."""
    mass, rise = _rise(step, -1.0)
    mass = (mass + step.low_error[::2] + step.low_error[1::2]) * (1 + 4 * ROUNDOFF)
    masses = _to_ends(mass, np.clip(rise, 0.0, mass))
    masses[-1] += step.beyond[0]
    return masses


def _to_ends(mass: Array, rise: Array) -> Array:
    masses = np.zeros(len(mass) + 1)
    masses[1:] = rise
    masses[:-1] += mass - rise
    return masses


def _lowered(step: _Step) -> Array:
    """Lower law of W: dots lowered to the tangents at middles, errors downward."""
    h, points = step.h, step.points
    mass, rise = _rise(step, -1.0)
    mass = mass - step.low_error[::2] - step.low_error[1::2]
    mass = np.maximum(mass * (1 - 4 * ROUNDOFF), 0.0)
    base = _to_ends(mass, np.clip(rise, 0.0, mass))
    left, right = slice(0, None, 2), slice(1, None, 2)
    error = step.high_error + np.repeat(points[1:], 2) * step.low_error
    error += 8 * ROUNDOFF * (step.high + np.repeat(points[1:], 2) * step.low)
    ahead = step.high[left] - points[:-1] * step.low[left] + error[left]
    behind = points[1:] * step.low[right] - step.high[right] + error[right]
    lowered = np.zeros(len(points))
    lowered[:-1] = np.maximum(ahead, 0.0)
    lowered[1:] = np.maximum(lowered[1:], behind)
    # D at every point, from the right; all terms are positive.
    beyond = np.concatenate([np.cumsum(base[::-1])[::-1][1:], [0.0]])
    curve = h * np.cumsum(beyond[::-1])[::-1]
    stays = np.flatnonzero((curve[1:] >= lowered[1:]) & (curve[:-1] >= lowered[:-1]))
    if len(stays) == 0:
        return np.zeros(len(points))
    last = int(stays[-1]) + 1
    curve, lowered, base = curve[: last + 1], lowered[: last + 1], base[: last + 1]
    lowered[last] = curve[last]
    slope = np.diff(lowered) / h
    masses = base.copy()
    masses[:-1] -= slope
    masses[1:] += slope
    # The last vertex has all mass from there on.
    masses[last] += beyond[last]
    bound = np.abs(base)
    bound[:-1] += np.abs(slope)
    bound[1:] += np.abs(slope)
    return _hull(masses - 8 * ROUNDOFF * bound)


def _hull(masses: Array) -> Array:
    """Lower convex hull: negative masses go to both neighbors, mean kept."""
    place = np.arange(len(masses))
    result = masses
    for _ in range(_SWEEPS):
        negative = result < 0
        if not negative.any():
            full = np.zeros(len(masses))
            full[place] = result
            return full
        if negative[-1] or len(result) < 3:
            break
        is_even = np.arange(len(result)) % 2 == 0
        out = negative & is_even
        taken = np.pad(out, 1)
        out |= negative & ~is_even & ~taken[:-2] & ~taken[2:]
        index = np.flatnonzero(out)
        moved = result[index] * (1 + 8 * ROUNDOFF)
        kept = result.copy()
        if index[0] == 0:
            # Left of the first vertex only the mass matters.
            kept[1] += moved[0]
            index, moved = index[1:], moved[1:]
        left, middle, right = place[index - 1], place[index], place[index + 1]
        up = moved * (middle - left) / (right - left)
        np.add.at(kept, index + 1, up)
        np.add.at(kept, index - 1, moved - up)
        touched = np.concatenate([index - 1, index + 1])
        kept[touched] -= 8 * ROUNDOFF * np.abs(kept[touched])
        stays = ~out
        result, place = kept[stays], place[stays]
    # No hull was found: nothing is claimed.
    return np.zeros(len(masses))


class _Sum:
    """Law of the sum of count W, on the points 0 .. size - 1.

    Attributes:
        above, below: masses, their relative errors counted either way.
        lost: what was negative and is not, from above.
        factor: what a tilted mass stands for at each point.
        error: bound on the norm of the errors of the tilted masses.
        folded: tilted mass that lies beyond the points of the transform.
        whole: the sum of all masses.
    """

    def __init__(self, masses: Array, count: int, size: int, sign: float) -> None:
        self._masses, self._count, self._size = masses, count, size
        # Twice the points, so that little is folded.
        length = 2 * size
        self._place = place = np.arange(len(masses), dtype=float)
        theta = _tilt(masses, count, length, sign)
        with np.errstate(divide="ignore"):
            grown = np.log(masses) + theta * place
        peak = float(grown.max())
        v = np.exp(grown - peak)
        total = float(v.sum())
        v /= total
        log_scale = count * (peak + math.log(total))
        f = np.fft.rfft(v, length)
        modulus = np.abs(f)
        with np.errstate(divide="ignore"):
            spectrum = np.exp(count * np.log(modulus) + 1j * (count * np.angle(f)))
        c = np.fft.irfft(spectrum, length)
        # Every value of a transform is off by at most 8 u log2 N of the sum of masses,
        # and its power by the count times as much.
        unit = ROUNDOFF * (8 * math.log2(length) + 16)
        powers = np.exp((count - 1) * np.log(modulus + unit))
        self.error = unit * (count + 2) * _norm(powers) * math.sqrt(2 / length)
        self.error += unit * _norm(c)
        self.folded = math.exp(min(0.0, _log_beyond(v, place, count, length)))
        self.whole = math.exp(count * math.log(float(masses.sum()))) * (1 + 1e-9)
        c = c[:size]
        log_factor = log_scale - theta * np.arange(size)
        largest = float(np.abs(log_factor).max())
        noise = ROUNDOFF * (64 + count * (16 + len(v)) + 8 * largest)
        noise += ROUNDOFF * 8 * count * (abs(theta) * len(v) + abs(peak))
        self.factor = np.exp(np.minimum(log_factor, 150.0)) * (1 + noise)
        self.above = np.maximum(c, 0.0) * self.factor
        self.below = self.above * (1 - 2 * noise)
        self.lost = np.maximum(-c, 0.0) * self.factor

    def first(self, z: Array) -> int:
        """First point from which all errors together are harmless under P."""
        squares = np.square(z * self.factor)
        norms = self.error * np.sqrt(np.cumsum(squares[::-1])[::-1])
        # Never so late that it matters where smaller sums are told.
        latest = int(self._count * _behind(self._masses, self._count, 1.0))
        return max(min(int(np.argmax(norms <= _HARMLESS)), latest), 1)

    def last(self) -> int:
        """Last point up to which all errors together are harmless under Q."""
        norms = self.error * np.sqrt(np.cumsum(np.square(self.factor)))
        earliest = int(self._count * _behind(self._masses, self._count, -1.0))
        last = max(int(np.searchsorted(norms, _HARMLESS)) - 1, earliest, 2)
        return min(last, self._size - 1)

    def shifted_beyond(self) -> float:
        """P-mass of sums beyond the points: one W under w dQ, the others under Q."""
        place, masses = self._place, self._masses
        mean = float(np.einsum("i,i->", masses, place))
        best = math.inf
        for order in _ORDERS / len(masses):
            grown = order * place
            peak = float(grown[-1])
            powers = np.exp(grown - peak)
            moment = peak + math.log(float(np.einsum("i,i->", masses, powers)))
            shifted = float(np.einsum("i,i,i->", masses, place, powers)) / mean
            value = peak + math.log(shifted) + (self._count - 1) * moment
            best = min(best, value - order * self._size)
        # Under w dQ the masses have a sum of 1 but for what is spread and cut.
        return math.exp(min(best + 1e-6, 0.0))


def _tilt(masses: Array, count: int, size: int, sign: float) -> float:
    """theta whose tilt leaves masses five deviations behind at least e^-7 of theirs.

    What lies beyond the last point is folded, and must stay negligible when tilted.
    """
    place = np.arange(len(masses), dtype=float)
    whole = float(masses.sum())
    behind = _behind(masses, count, sign)
    best = 0.0
    for theta in sign * _ORDERS / len(masses):
        grown = theta * (place - behind)
        peak = float(grown.max())
        v = masses * np.exp(grown - peak)
        total = float(v.sum())
        if count * (peak + math.log(total / whole)) > _MOST_TILT:
            break
        if sign > 0 and _log_beyond(v / total, place, count, size) > _LOG_FOLDED:
            break
        best = float(theta)
    return best


def _behind(masses: Array, count: int, sign: float) -> float:
    """The mean over count terms that is five deviations on the side of sign < 0."""
    place = np.arange(len(masses), dtype=float)
    whole = float(masses.sum())
    center = float(np.einsum("i,i->", masses, place)) / whole
    square = float(np.einsum("i,i,i->", masses, place - center, place - center))
    return max(center - sign * 5 * math.sqrt(square / whole / count), 0.0)


def _log_beyond(v: Array, place: Array, count: int, size: int) -> float:
    """ln of the mass of sums at or beyond size, for masses v of sum 1, by Chernoff."""
    best = 0.0
    for order in _ORDERS / len(v):
        grown = order * place
        peak = float(grown[-1])
        moment = peak + math.log(float(np.einsum("i,i->", v, np.exp(grown - peak))))
        best = min(best, count * moment - order * size)
    return best + 1e-9


>>>>>>> 6db5ea6e96a5d52004658369b72eb441ab5f58fc
def _split(
    z: Array, mass: Array, infinite: float, attained: AtomicLoss | None
) -> AtomicLoss:
    """Upper law of ln Z for removing: each point to two of a geometric grid, mean kept.

    Points so small that they hold next to nothing under P go up to the first.
    """
    p = z * mass
<<<<<<< HEAD
    first = int(np.searchsorted(np.cumsum(p), HARMLESS))
=======
    first = int(np.searchsorted(np.cumsum(p), _HARMLESS))
>>>>>>> 6db5ea6e96a5d52004658369b72eb441ab5f58fc
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
<<<<<<< HEAD
    first = max(int(np.searchsorted(grown, HARMLESS)), 1)
=======
    first = max(int(np.searchsorted(grown, _HARMLESS)), 1)
>>>>>>> 6db5ea6e96a5d52004658369b72eb441ab5f58fc
    last = int(np.flatnonzero(p)[-1])
    ends = np.linspace(math.log(z[first]), math.log(z[last]), _LOSSES)
    index = np.searchsorted(ends, np.log(np.maximum(z, z[first])))
    p_cell, q_cell = (np.bincount(index, values) for values in (p, mass))
    kept = (p_cell > 0) & (q_cell > 0)
    losses = np.log(p_cell[kept] / q_cell[kept])
    return AtomicLoss(
        losses, p_cell[kept].astype(float), error=1e-14 + 2 * ROUNDOFF * len(z)
    )
