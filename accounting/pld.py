"""Accounting by the law of the privacy loss: a certified bracket and a point value.

The bracket comes from two discrete laws on a grid (grid.py) and their composition with
every rounding error counted (compose.py); the point value from an integral in the
complex plane (spectral.py) that says itself when it is not to be trusted. Gaussians
without sampling, and a single release, have closed forms (closed_form.py).
"""

import functools
import math
from typing import ClassVar, final

from accounting import closed_form, spectral
from accounting.accountant import (
    Bounds,
    ComposingAccountant,
    Composition,
    FixedSizeGaussian,
    Mechanism,
)
from accounting.bracket import (
    QUADRATURE,
    RELATIVE_WIDTH,
    DeltaAt,
    EpsilonAt,
    Question,
    bracket,
)
from accounting.events import GaussianEvent, PoissonSampledEvent
from accounting.fixed_size import FixedSizeLoss
from accounting.losses import LARGEST_NOISE, LEAST_NOISE, Loss, losses_of
from accounting.rdp import RdpAccountant
from accounting.relations import NeighboringRelation
from accounting.spectral import Terms

# Beyond them a release would have to be known to more digits than there are.
MOST_RELEASES = 10**9
# Share of the larger delta below which the smaller one is not narrowed.
_HARDLY = 1e-3
_NEVER = 1e-300


@final
class PldAccountant(ComposingAccountant):
    """Lower and upper bounds on epsilon from the law of the privacy loss.

    Args:
        relation: the neighboring relation.
        relative_width: how wide a bracket of epsilon may be, over its upper end, in
            [1e-5, 0.1]. A tenth of it takes about three times as long.

    Guarantees:
        lower <= truth <= upper, roundoff included. Where converged is True the bracket
        is at most relative_width of upper. A grid has at most 2^21 points; where that
        is too few, the bracket is wider and converged False. For batches of a fixed
        size it is 2 to 20 % wide by nature: the two ends belong to different pairs.

    Raises:
        ValueError: an argument out of range.

    >>> from accounting.events import GaussianEvent, PoissonSampledEvent
    >>> event = PoissonSampledEvent(0.01, GaussianEvent(1.0))
    >>> print(PldAccountant().compose(event, 1000).epsilon(1e-5))
    between 1.827 and 1.83
    """

    name: ClassVar[str] = "pld"
    has_fixed_size: ClassVar[bool] = True

    def __init__(
        self,
        relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE,
        *,
        relative_width: float = RELATIVE_WIDTH,
    ) -> None:
        super().__init__(relation)
        if not 1e-5 <= relative_width <= 0.1:
            raise ValueError(
                f"relative_width is {relative_width!r}, outside [1e-5, 0.1]. Narrower"
                " brackets would need more memory than they are worth. Pass for"
                " example 1e-3."
            )
        self._width = relative_width

    def running_epsilon(self, delta: float) -> float:
        """Epsilon at delta, fast enough to be read after every step of a training.

        The point value on frequencies that are kept while the counts double. Where that
        is not to be trusted, the estimates for counts 10 % apart, each computed once,
        and between them the straight line. For a promise read `epsilon`.

        Raises:
            ValueError: delta outside (0, 1).
        """
        composition = _sorted(self._composition)
        if not composition or not 0 < delta < 1 or not _is_on_grid(composition):
            return self.epsilon(delta).estimate
        if _closed_form(composition, self._relation) is not None:
            return self.epsilon(delta).estimate
        mechanisms = tuple(mechanism for mechanism, _ in composition)
        counts = [count for _, count in composition]
        octaves = tuple(count.bit_length() - 1 for count in counts)
        tables = _running(mechanisms, octaves, self._relation, delta)
        values = [table.epsilon(counts) for table in tables]
        if None not in values:
            return max(value for value in values if value is not None)
        rungs = [_rungs(count) for count in counts]
        low, high = (
            _epsilon_bounds(
                tuple(zip(mechanisms, ends, strict=True)),
                self._relation,
                delta,
                RELATIVE_WIDTH,
            ).estimate
            for ends in zip(*rungs, strict=True)
        )
        done = sum(counts) - sum(first for first, _ in rungs)
        width = sum(last - first for first, last in rungs)
        return low + (high - low) * done / max(width, 1)

    def deltas(self, epsilon: float) -> tuple[Bounds, ...]:
        """Delta at epsilon for each ordered pair of datasets; `delta` is their maximum.

        Returns:
            The bounds where the first dataset has the example and those where the
            second has it; only one where both are the same.

        Raises:
            ValueError: epsilon negative, infinite or NaN.
        """
        if not self._composition or self._has_no_noise() or not 0 <= epsilon < math.inf:
            return (self.delta(epsilon),)
        composition = _sorted(self._composition)
        return _deltas(composition, self._relation, float(epsilon))

    def _has_no_noise(self) -> bool:
        return any(
            mechanism.noise_multiplier == 0 for mechanism, _ in self._composition
        )

    def _epsilon(self, composition: Composition, delta: float) -> Bounds:
        return _epsilon_bounds(_sorted(composition), self._relation, delta, self._width)

    def _delta(self, composition: Composition, epsilon: float) -> Bounds:
        return _delta_bounds(_sorted(composition), self._relation, epsilon)


@functools.lru_cache(maxsize=64)
def _running(
    mechanisms: tuple[Mechanism, ...],
    octaves: tuple[int, ...],
    relation: NeighboringRelation,
    delta: float,
) -> tuple[spectral.Running, ...]:
    """Tables for counts from 2^octave to 2^(octave + 1), one for each direction."""
    columns = [_losses(mechanism, relation) for mechanism in mechanisms]
    counts = [1 << octave for octave in octaves]
    return tuple(
        spectral.Running(row, counts, delta) for row in zip(*columns, strict=True)
    )


def _rungs(count: int) -> tuple[int, int]:
    """Neighbors of a count on a ladder of whole numbers whose rungs are 10 % apart."""
    rung = math.floor(math.log(count) / math.log(1.1))
    while math.ceil(1.1**rung) > count:
        rung -= 1
    while math.ceil(1.1 ** (rung + 1)) <= count:
        rung += 1
    first = math.ceil(1.1**rung)
    return first, count if first == count else math.ceil(1.1 ** (rung + 1))


def _sorted(composition: Composition) -> Composition:
    """The composition in one order, so that no rounding depends on it."""
    return tuple(sorted(composition, key=repr))


@functools.lru_cache(maxsize=256)
def _epsilon_bounds(
    composition: Composition,
    relation: NeighboringRelation,
    delta: float,
    width: float,
) -> Bounds:
    if _total_variation(composition, relation) <= delta:
        return Bounds(0.0, 0.0, 0.0, True)
    exact = _closed_form(composition, relation)
    if exact is not None:
        return closed_form.epsilon_bounds(exact, delta)
    # Sampling never costs: the same releases on all data are an upper bound.
    most = closed_form.epsilon_bounds(_unsampled(composition, relation), delta).upper
    classic = _classic(composition, relation)
    if classic is not None:
        most = min(most, classic.epsilon(delta).upper)
    if most == 0 or not _is_on_grid(composition):
        return Bounds(0.0, most, most, most == 0)
    return _bracket(EpsilonAt(delta, width), composition, relation, most)


@functools.lru_cache(maxsize=256)
def _delta_bounds(
    composition: Composition, relation: NeighboringRelation, epsilon: float
) -> Bounds:
    exact = _closed_form(composition, relation)
    if exact is not None:
        return closed_form.delta_bounds(exact, epsilon)
    most = _most_delta(composition, relation, epsilon)
    if not _is_on_grid(composition):
        return Bounds(0.0, most, most, False)
    return _bracket(DeltaAt(epsilon), composition, relation, most)


def _most_delta(
    composition: Composition, relation: NeighboringRelation, epsilon: float
) -> float:
    """Upper bound on delta without a grid."""
    whole = closed_form.delta_bounds(_unsampled(composition, relation), epsilon).upper
    most = min(whole, _total_variation(composition, relation))
    classic = _classic(composition, relation)
    if classic is not None:
        most = min(most, classic.delta(epsilon).upper)
    return max(most, math.ulp(0.0))


@functools.lru_cache(maxsize=256)
def _deltas(
    composition: Composition, relation: NeighboringRelation, epsilon: float
) -> tuple[Bounds, ...]:
    """Delta in each direction; one where both are the same."""
    is_symmetric = isinstance(_closed_form(composition, relation), closed_form.Gaussian)
    directions = _directions(composition, relation)
    if is_symmetric or len(directions) == 1 or not _is_on_grid(composition):
        return (_delta_bounds(composition, relation, epsilon),)
    most = _most_delta(composition, relation, epsilon)
    first, second = directions
    larger = _one_delta(epsilon, first, most, 0.0)
    return larger, _one_delta(epsilon, second, most, _HARDLY * larger.upper)


def _one_delta(epsilon: float, terms: Terms, most: float, little: float) -> Bounds:
    """Delta of one direction; only a plain bound where that is little."""
    little = max(little, MOST_RELEASES * _NEVER)
    if _is_never_above(epsilon, terms, little / sum(count for _, count in terms)):
        return Bounds(0.0, 0.0, little, True)
    question = DeltaAt(epsilon)
    ceiling = question.chernoff(question.point(terms)) * (1 + QUADRATURE)
    if ceiling <= little:
        return Bounds(0.0, ceiling, ceiling, True)
    return bracket(question, [terms], most)


def _is_never_above(epsilon: float, terms: Terms, tail: float) -> bool:
    """True if the sum exceeds epsilon with no more than tail for each release."""
    return sum(count * loss.largest(tail) for loss, count in terms) <= epsilon


def _bracket(
    question: Question,
    composition: Composition,
    relation: NeighboringRelation,
    most: float,
) -> Bounds:
    """The bracket on the grid; for batches of a fixed size from two different pairs."""
    directions = _directions(composition, relation)
    if isinstance(question, DeltaAt):
        # The order of a loss that cannot occur would have no end.
        never = [_is_never_above(question.at, terms, _NEVER) for terms in directions]
        if all(never):
            return Bounds(0.0, 0.0, min(most, MOST_RELEASES * _NEVER), True)
        directions = [
            terms for terms, out in zip(directions, never, strict=True) if not out
        ]
    bounds = bracket(question, directions, most)
    if not any(isinstance(m, FixedSizeGaussian) for m, _ in composition):
        return bounds
    attained: list[tuple[Loss, int]] = [
        (loss.attained if isinstance(loss, FixedSizeLoss) else loss, count)
        for loss, count in directions[0]
    ]
    lower = min(bracket(question, [attained], bounds.upper).lower, bounds.upper)
    is_narrow = bounds.upper - lower <= RELATIVE_WIDTH * bounds.upper
    return Bounds(lower, max(bounds.estimate, lower), bounds.upper, is_narrow)


def _closed_form(
    composition: Composition, relation: NeighboringRelation
) -> closed_form.LogDelta | None:
    if all(mechanism.sampling_probability == 1 for mechanism, _ in composition):
        return _unsampled(composition, relation)
    (mechanism, count), *others = composition
    if others or count > 1 or relation is NeighboringRelation.REPLACE_ONE:
        return None
    return closed_form.SingleRelease(
        mechanism.sampling_probability, mechanism.noise_multiplier
    )


def _unsampled(
    composition: Composition, relation: NeighboringRelation
) -> closed_form.Gaussian:
    """The Gaussian that the composition is without sampling."""
    distance = relation.sensitivity(1.0)
    roots = [
        distance * math.sqrt(count) / mechanism.noise_multiplier
        for mechanism, count in composition
    ]
    return closed_form.Gaussian(math.hypot(*roots))


def _total_variation(composition: Composition, relation: NeighboringRelation) -> float:
    """Upper bound on delta(0): total variations add up."""
    total = 0.0
    for mechanism, count in composition:
        half = relation.sensitivity(1.0) / (2 * mechanism.noise_multiplier)
        total += count * mechanism.sampling_probability * math.erf(half / math.sqrt(2))
    return min(total * (1 + 1e-12), 1.0)


def _classic(
    composition: Composition, relation: NeighboringRelation
) -> RdpAccountant | None:
    """The Renyi accountant, where it has a bound for everything."""
    if any(isinstance(mechanism, FixedSizeGaussian) for mechanism, _ in composition):
        return None
    accountant = RdpAccountant(relation)
    for mechanism, count in composition:
        gaussian = GaussianEvent(mechanism.noise_multiplier)
        event = PoissonSampledEvent(mechanism.sampling_probability, gaussian)
        accountant.compose(event, count)
    return accountant


def _is_on_grid(composition: Composition) -> bool:
    """False where the grid has too few digits; the Renyi bound answers there."""
    return sum(count for _, count in composition) <= MOST_RELEASES and all(
        2 * LEAST_NOISE <= mechanism.noise_multiplier <= LARGEST_NOISE
        for mechanism, _ in composition
    )


def _losses(mechanism: Mechanism, relation: NeighboringRelation) -> tuple[Loss, ...]:
    """The losses of a mechanism in every direction."""
    if isinstance(mechanism, FixedSizeGaussian):
        q, noise = mechanism.sampling_probability, mechanism.noise_multiplier
        return (FixedSizeLoss(q, noise),)
    return losses_of(mechanism, relation)


def _directions(
    composition: Composition, relation: NeighboringRelation
) -> list[list[tuple[Loss, int]]]:
    """The terms of each ordered pair of datasets."""
    columns = [_losses(mechanism, relation) for mechanism, _ in composition]
    counts = [count for _, count in composition]
    return [list(zip(row, counts, strict=True)) for row in zip(*columns, strict=True)]
