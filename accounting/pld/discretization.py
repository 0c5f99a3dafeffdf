"""Two discrete laws on a grid that enclose a privacy loss: one above, one below.

A pair (P, Q) is described by D(x) = sup_S P(S) - x Q(S), its delta at epsilon = ln x,
convex and falling in x. On the grid x_j = e^{l_j}, l_j = offset + j h:

Upper: connect the dots (Doroshenko et al. 2022, arXiv:2207.04380), cell by cell. The
P-mass p of a cell (l_{j-1}, l_j] goes to its two ends so that its Q-mass stays:

    to the upper end    (p - e^{l_{j-1}} q) / (1 - e^{-h}) = excess / (1 - e^{-h})

Lower: lowered dots. A tangent of D at any point lies below D, and so does a chord
between two dots that both lie below a tangent, here at the middle m of their cell. At
x_j the two tangents of the neighboring middles are below D(x_j) by the excess of the
half cell [l_j, m] and by the deficit of the half cell [m', l_j], so the dot is lowered
by the larger one. (Should that press D below 0 next to a mass that is nearly an atom,
cells whose halves differ much take the tangent of their end instead.) Where that leaves
a kink that is not convex, the vertex is taken out and its mass goes to its neighbors
with (P, Q) kept: the lower convex hull.

Both errors are of second order in h. Both laws are for P; the Q-mass at loss l is
e^{-l} times the P-mass. Losses above the grid go to infinity in the upper law and are
left out of the lower one; those below it go to its first point in the upper law. In the
lower one they are left out too, or go with their Q-mass to the first dot, which is then
below 1 - x as well as the tangent of the first middle. The lower law is no probability,
yet for finite measures delta of a product is an average of deltas of one factor over
all real epsilon, so one factor at a time may be replaced by a smaller one.

Rounding. Errors of masses and excesses are those bounded in privacy_loss/base.py. The
upper law takes the mass and the excess from above, which makes it stochastically
larger. Where the losses of a cell reach over its ends by e, the chord over the true
ends is below the connected dots once the excess is larger by 4 e p and the points by
2 e; the latter is again a splitting of each point, 2 e / (1 - e^{-h}) of it to the next
one. The lower law takes masses and excesses from below and lowers each dot by the error
of its excess. There an e costs nothing: P(S) - x Q(S) is below D(x) for every set S.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from accounting.numerics import ROUNDOFF, Array
from accounting.privacy_loss import Loss
from accounting.privacy_loss.base import Below, Cells, Points

Indices = NDArray[np.intp]

_SWEEPS = 500
_LOPSIDED, _NEVER = 4.0, 1e300


@dataclasses.dataclass(frozen=True, slots=True)
class GridLaw:
    """P-masses of losses offset + h (first + j).

    Attributes:
        masses: [points] >= 0, any sum up to rounding above 1.
        infinite: mass of the loss that is infinite.
    """

    step: float
    offset: float
    first: int
    masses: Array
    infinite: float = 0.0

    @property
    def losses(self) -> Array:
        points = self.first + np.arange(len(self.masses))
        return np.asarray(self.offset + self.step * points)


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """Where the cells of one loss lie: points first .. last of offset + h j.

    The lower law starts at the point `start`, with or without what lies below it.
    """

    step: float
    offset: float
    first: int
    start: int
    last: int
    keeps_below: bool

    def boundaries(self) -> Array:
        """[2 cells + 1] ends and middles of the cells."""
        halves = np.arange(2 * self.first, 2 * self.last + 1)
        return np.asarray(self.offset + (0.5 * self.step) * halves)


def place(loss: Loss, step: float, low: float, high: float) -> Grid:
    """A grid over [low, high] whose offset suits the lower law.

    Its first dot stands for all losses up to a middle m, and is not lowered if the loss
    of those taken together is exactly m - h / 2. A law with a steep left end, or one
    that is nearly an atom, would lose h a release otherwise.
    """
    first, last = math.floor(low / step) - 1, math.ceil(high / step) + 1
    middle = _first_middle(loss, step, low, high)
    if middle is None:
        return _around_heaviest(loss, step, first, last)
    start = math.floor(middle / step - 0.5)
    offset = middle - (start + 0.5) * step
    return Grid(step, offset, min(first, start), start, last, True)


def aligned(step: float, anchor: float, low: float, high: float) -> Grid:
    """A grid over [low, high] on which a value lies, and all at whole steps from it."""
    offset = math.remainder(anchor, step)
    first = math.floor((low - offset) / step) - 1
    last = math.ceil((high - offset) / step) + 1
    return Grid(step, offset, first, first, last, False)


def _first_middle(loss: Loss, step: float, low: float, high: float) -> float | None:
    """m with ln P/Q of all losses up to m equal to m - h / 2; None if it is below low.

    ln P/Q of all losses up to m is m - ln(1 + deficit / mass).
    """
    target = math.expm1(step / 2)
    ends = low - step, high
    for turn in range(16):
        trials = np.linspace(*ends, 65)
        below = loss.below(trials)
        is_short = below.deficit <= target * below.mass
        if turn == 0 and (below.mass[0] > 0 and not is_short[0]):
            return None
        index = int(np.argmin(is_short))
        if index == 0:
            # All are short: the last one is as good as any.
            return float(trials[-1])
        ends = float(trials[index - 1]), float(trials[index])
        if ends[1] - ends[0] < 1e-14 * abs(ends[1]):
            break
    return ends[0]


def _around_heaviest(loss: Loss, step: float, first: int, last: int) -> Grid:
    """A grid on which the heaviest merged cell is exactly a point."""
    offset = 0.0
    center = None
    for _ in range(6):
        if center is None:
            edges = step * np.arange(first - 0.5, last + 1.0)
            cells = loss.cells(edges)
            heaviest = int(cells.mass.argmax())
            if cells.mass[heaviest] < 0.02:
                break
            center = first + heaviest
        else:
            edges = np.array([center - 0.5, center + 0.5]) * step + offset
            cells, heaviest = loss.cells(edges), 0
        ratio = cells.excess[heaviest] / cells.mass[heaviest]
        merged = float(edges[heaviest]) - math.log1p(-min(float(ratio), 1 - 1e-12))
        offset = merged - center * step
    return Grid(step, offset, first, first, last, False)


def laws(loss: Loss, grid: Grid) -> tuple[GridLaw, GridLaw]:
    """The lower and the upper law of a loss."""
    cells = loss.cells(grid.boundaries())
    points = loss.on_points(grid.step, grid.offset)
    if points is not None:
        return _exact(grid, points), _upper(grid, cells)
    lowest = np.array([grid.offset + grid.step * grid.start])
    lower = _lower(grid, cells, loss.below(lowest))
    if not lower.masses.any():
        lower = _rounded_down(grid, loss)
    return lower, _upper(grid, cells)


def upper_law(loss: Loss, grid: Grid) -> GridLaw:
    """The upper law alone, from whole cells."""
    cells = loss.cells(grid.boundaries()[::2])
    return _connected(grid, cells, cells.excess)


def _exact(grid: Grid, points: Points) -> GridLaw:
    """Lower law of losses that are on the grid: all of them smaller by the slip."""
    first = int(points.index[0])
    masses = np.zeros(int(points.index[-1]) - first + 1)
    masses[points.index - first] = points.mass
    return GridLaw(grid.step, grid.offset - points.slip, first, masses)


def _rounded_down(grid: Grid, loss: Loss) -> GridLaw:
    """Lower law of losses far apart, which no lowered dots leave convex.

    Each loss goes down to the lower end of its cell, with its P-mass: delta is the mean
    of (1 - e^{eps - l})+, which rises with l. The cells begin a hair below the points
    of the grid, so that losses on a point stay there but for that hair.
    """
    hair = 1e-6 * grid.step
    cells = loss.cells(grid.boundaries()[::2] - hair)
    masses = np.maximum(cells.mass - cells.mass_error, 0.0) * (1 - 4 * ROUNDOFF)
    masses[cells.slip > hair] = 0.0
    return GridLaw(grid.step, grid.offset - 2 * hair, grid.first, masses)


def _upper(grid: Grid, cells: Cells) -> GridLaw:
    whole = Cells(
        cells.mass[::2] + cells.mass[1::2],
        cells.excess[::2],
        cells.mass_error[::2] + cells.mass_error[1::2],
        cells.excess_error[::2] + cells.excess_error[1::2],
        np.maximum(cells.slip[::2], cells.slip[1::2]),
        cells.below,
        cells.above,
    )
    return _connected(grid, whole, _whole_excess(grid, cells))


def _connected(grid: Grid, cells: Cells, excess: Array) -> GridLaw:
    """Connects the dots, every rounding error upward."""
    mass = (cells.mass + cells.mass_error) * (1 + 4 * ROUNDOFF)
    excess = np.maximum(excess + cells.excess_error, 0.0) + 4 * cells.slip * mass
    fall = -math.expm1(-grid.step) * (1 - 8 * ROUNDOFF)
    rise = np.minimum(excess / fall, mass)
    masses = np.zeros(len(mass) + 2)
    masses[1:-1] = rise
    masses[:-2] += mass - rise
    masses[0] += cells.below
    slip = np.zeros(len(mass) + 1)
    slip[1:] = cells.slip
    slip[:-1] = np.maximum(slip[:-1], cells.slip)
    moved = masses[:-1] * np.minimum(2 * slip / fall, 1.0)
    masses[:-1] -= moved
    masses[1:] += moved
    masses *= 1 + 8 * ROUNDOFF
    return GridLaw(grid.step, grid.offset, grid.first, masses, cells.above)


def _whole_excess(grid: Grid, cells: Cells) -> Array:
    """Excess of each whole cell from those of its halves, all terms positive."""
    second = cells.excess[1::2]
    carried = -math.expm1(-grid.step / 2) * (cells.mass[1::2] - second)
    return np.asarray(cells.excess[::2] + second + carried)


def _lower(grid: Grid, cells: Cells, below: Below) -> GridLaw:
    """Lowers the dots by the tangents of middles, or of ends where that leaves none."""
    law = _lowered(grid, cells, below, _NEVER)
    return law if law.masses.any() else _lowered(grid, cells, below, _LOPSIDED)


def _lowered(grid: Grid, cells: Cells, below: Below, lopsided: float) -> GridLaw:
    """Lowers the dots, every rounding error downward."""
    h = grid.step
    fall, climb = -math.expm1(-h), math.expm1(h)
    left, right = (slice(2 * (grid.start - grid.first) + k, None, 2) for k in (0, 1))
    error = cells.mass_error[left] + cells.mass_error[right]
    excess_error = cells.excess_error[left] + cells.excess_error[right]
    mass = cells.mass[left] + cells.mass[right]
    mass = np.maximum(mass - error, 0.0) * (1 - 4 * ROUNDOFF)
    whole = _whole_excess(grid, cells)[grid.start - grid.first :]
    rise = (whole - excess_error) / fall
    count = len(mass)

    deficit = float(below.deficit[0])
    uncertain = float(below.mass_error[0] + below.deficit_error[0])
    base = np.zeros(count + 1)
    base[1:] = rise
    base[:-1] += mass - rise
    if grid.keeps_below:
        # The first dot has all Q-mass up to it.
        base[0] += float(below.mass[0]) + deficit - uncertain
    ahead = cells.excess[left] + cells.excess_error[left]
    behind = (
        math.expm1(h / 2) * cells.mass[right] - math.exp(h / 2) * cells.excess[right]
    )
    behind += 2 * (cells.excess_error[right] + h * cells.mass_error[right])
    # Where a cell is lopsided its tangent is that of an end: it spares one dot, which a
    # middle would press below 0, and lowers the other by the whole cell.
    whole_behind = climb * (cells.mass[left] + cells.mass[right]) - math.exp(h) * whole
    whole_behind += 4 * (excess_error + h * error)
    to_right = cells.mass[left] > lopsided * cells.mass[right]
    to_left = cells.mass[right] > lopsided * cells.mass[left]
    ahead = np.where(to_right, whole + 2 * excess_error, np.where(to_left, 0, ahead))
    behind = np.where(to_right, 0, np.where(to_left, whole_behind, behind))
    lowered = np.zeros(count + 1)
    lowered[:-1] = ahead
    if grid.keeps_below:
        lowered[0] = max(lowered[0], deficit + float(below.deficit_error[0]))
    lowered[1:-1] = np.maximum(lowered[1:-1], behind[:-1])
    last = _last_vertex(base, lowered, h)
    base, lowered = base[: last + 1], lowered[: last + 1]
    if last < 1:
        return GridLaw(h, grid.offset, grid.start, np.zeros(1))

    # Slopes of the lowering, in x, change the mass of the vertex between them.
    slope = np.diff(lowered)
    masses = base.copy()
    masses[:-1] -= slope / climb
    masses[1:] += slope / fall
    bound = np.abs(base)
    bound[:-1] += np.abs(slope) / climb
    bound[1:] += np.abs(slope) / fall
    masses -= 8 * ROUNDOFF * bound
    return GridLaw(h, grid.offset, grid.start, _hull(masses, h))


def _last_vertex(base: Array, lowered: Array, h: float) -> int:
    """Index of the new last vertex, where the dot is set to 0; writes into both.

    Beyond it D_low is 0. The chord that ends there is sound because its right end was
    lowered, not raised, to 0.
    """
    climb, shrink = math.expm1(h), math.exp(-h)
    dot = tail = 0.0
    for j in range(len(base) - 2, 0, -1):
        # tail = x_j Q(beyond x_j), dot = D(x_j)
        tail = shrink * (base[j + 1] + tail)
        dot += climb * tail
        before = dot + -math.expm1(-h) * (base[j] + tail)
        if dot >= lowered[j] and before >= lowered[j - 1]:
            # A vertex at j with all Q-mass from there on has the slope of D before it,
            # and lies lower by dot, which the difference of the two dots takes back.
            base[j] += tail
            lowered[j] = dot * (1 - 1e-12)
            return j
    return 0


def _hull(masses: Array, h: float) -> Array:
    """Lower convex hull: pushes negative masses to the neighbors until none is left."""
    result = masses
    index: Indices = np.arange(len(masses))
    for _ in range(_SWEEPS):
        negative = result < 0
        if not negative.any():
            full = np.zeros(len(masses))
            full[index] = result
            return full
        if negative[-1] or len(result) < 3:
            break
        # Neighbors do not go in the same sweep.
        is_even = np.arange(len(result)) % 2 == 0
        out = negative & is_even
        taken = np.pad(out, 1)
        out |= negative & ~is_even & ~taken[:-2] & ~taken[2:]
        result, index = _without(result, index, np.flatnonzero(out), h)
    # No hull was found: nothing is claimed.
    return np.zeros(len(masses))


def _without(
    masses: Array, index: Indices, out: Indices, h: float
) -> tuple[Array, Indices]:
    """The law without some vertices, their negative mass given to both neighbors."""
    moved = masses[out] * (1 + 8 * ROUNDOFF)
    result = masses.copy()
    if out[0] == 0:
        # At the left end only the Q-mass can be kept; the P-mass falls further.
        result[1] += moved[0] * math.exp(h * (index[1] - index[0]))
        inner, moved = out[1:], moved[1:]
    else:
        inner = out
    left, middle, right = index[inner - 1], index[inner], index[inner + 1]
    up = moved * np.expm1(h * (left - middle)) / np.expm1(h * (left - right))
    np.add.at(result, inner + 1, up)
    np.add.at(result, inner - 1, moved - up)
    touched = np.concatenate([inner - 1, inner + 1])
    result[touched] -= 8 * ROUNDOFF * np.abs(result[touched])
    return np.delete(result, out), np.delete(index, out)
