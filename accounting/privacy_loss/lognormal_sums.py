"""A log-normal variable on a linear grid, from above and from below, and its sums.

W = e^{Y / s - 1 / 2 s^2} with Y standard normal has the mean 1 (random_allocation.py).
On the points k_j = j h:

Upper: within each cell the mass is split to both ends with its mean kept. With V the
mass of the cell under w dQ and Q its mass, (V - k_j Q) / h goes up.
Lower: D(x) = E(W - x)+ is convex. Between two dots that both lie below a tangent at the
middle of their cell the chord lies below D. At k_j the tangents of the neighboring
middles are below D by E(W - k_j; half cell above) and E(k_j - W; half cell below); the
dot is lowered by the larger. Negative masses that this leaves are kinks that are not
convex, and go to their neighbors with mass and mean kept: the lower convex hull.

The sum is the power of a transform on 2 N points, tilted by e^{theta k} so that
roundoff is relative to the small masses of large sums. Let e bound the norm of the
error of the tilted masses. In a region of points R with ends z' < z'', whatever the
errors are, they change D(x) by at most (Cauchy and Schwarz)

    e || z_k f_k ||_R (1 - x / z'')+,    f_k = e^{t ln M - theta k}

that of a P-mass at z''. It is added there above, region by region, and taken away
below; when an example is added it is the Q-mass e || f_k ||_R at z'. Every value of a
transform of N points is off by at most 8 u log2 N times the sum of the masses, for it
is a sum along log2 N levels. So |df| <= unit, and the power errs by t |f|^{t-1} unit,
of which e is the root mean square; the inverse adds 8 u log2 N ||c|| (Higham 2002,
Theorem 24.2). What falls beyond N points is bounded by Chernoff: it goes to infinity
above. What falls beyond 2 N is folded, and counts as part of the error below.
"""

import dataclasses
import math

import numpy as np

from accounting.numerics import ROUNDOFF, Array
from accounting.privacy_loss.base import NormalMasses

# How much smaller a mass on the other side may be when tilted: e^7.
_MOST_TILT = 7.0
# Errors of masses at small losses that do not matter.
HARMLESS = 1e-8
# ln of the tilted mass beyond the last point that may be folded.
_LOG_FOLDED = -40.0
# Orders of the Chernoff bounds, over the largest W.
ORDERS = 2.0 ** np.arange(-6, 9)
_SWEEPS = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One W on the points 0 .. cells of a grid of step h.

    Attributes:
        low: [2 cells] Q-masses of the half cells; high: their masses under w dQ.
        low_error, high_error: bounds on their errors.
        slip: [cells] how far W may reach over the ends of its cell.
        beyond: Q-mass and mass under w dQ above the last point, from above.
    """

    h: float
    low: Array
    high: Array
    low_error: Array
    high_error: Array
    slip: Array
    beyond: tuple[float, float]

    @property
    def points(self) -> Array:
        return np.asarray(self.h * np.arange(len(self.slip) + 1))


def step_of(noise: float, h: float, cells: int) -> Step:
    """The masses of one W in half cells."""
    k = (0.5 * h) * np.arange(2 * cells + 1)
    with np.errstate(divide="ignore"):
        log_k = np.log(k)
    y = noise * log_k + 0.5 / noise
    low, high = NormalMasses(y), NormalMasses(y - 1 / noise)
    reach = 4 + np.abs(log_k[2::2]) + 2 / noise**2
    return Step(
        h,
        low.mass,
        high.mass,
        low.error,
        high.error,
        8 * ROUNDOFF * reach * k[2::2],
        (low.right, high.right),
    )


def _rise(step: Step, sign: float) -> tuple[Array, Array]:
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


def spread_up(step: Step) -> Array:
    """Upper law of W for removing: spread, and every error upward."""
    mass, rise = _rise(step, 1.0)
    mass = (mass + step.low_error[::2] + step.low_error[1::2]) * (1 + 4 * ROUNDOFF)
    return _to_ends(mass, np.clip(rise, 0.0, mass))


def spread_down(step: Step) -> Array:
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


def lowered_dots(step: Step) -> Array:
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


class Sum:
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
        self.error = unit * (count + 2) * norm(powers) * math.sqrt(2 / length)
        self.error += unit * norm(c)
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
        return max(min(int(np.argmax(norms <= HARMLESS)), latest), 1)

    def last(self) -> int:
        """Last point up to which all errors together are harmless under Q."""
        norms = self.error * np.sqrt(np.cumsum(np.square(self.factor)))
        earliest = int(self._count * _behind(self._masses, self._count, -1.0))
        last = max(int(np.searchsorted(norms, HARMLESS)) - 1, earliest, 2)
        return min(last, self._size - 1)

    def shifted_beyond(self) -> float:
        """P-mass of sums beyond the points: one W under w dQ, the others under Q."""
        place, masses = self._place, self._masses
        mean = float(np.einsum("i,i->", masses, place))
        best = math.inf
        for order in ORDERS / len(masses):
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
    for theta in sign * ORDERS / len(masses):
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
    for order in ORDERS / len(v):
        grown = order * place
        peak = float(grown[-1])
        moment = peak + math.log(float(np.einsum("i,i->", v, np.exp(grown - peak))))
        best = min(best, count * moment - order * size)
    return best + 1e-9


def norm(values: Array) -> float:
    """Euclidean norm, from above."""
    return math.sqrt(float(np.einsum("i,i->", values, values))) * (1 + 1e-9)
