"""Accounting by the law of the privacy loss: a certified bracket and a point value.

The bracket comes from two discrete laws on a grid (discretization.py) and their
composition with every rounding error counted (composition.py); the point value from an
integral in the complex plane (contour_integral.py) that says itself when it is not to
be trusted. Gaussians without sampling, and a single release, have closed forms
(closed_form.py).
"""

import functools
import math
from typing import ClassVar, final

from accounting import rdp
from accounting.accountant import Bounds, ComposingAccountant, with_failure
from accounting.events import (
    GaussianEvent,
    NeighboringRelation,
    RandomAllocationEvent,
    TruncatedPoissonSampledEvent,
    ZeroConcentratedEvent,
)
from accounting.events.normal_form import (
    Composition,
    FixedSizeGaussian,
    Mechanism,
    SampledGaussian,
    is_unprotected,
    without_failures,
    without_sampling,
)
from accounting.pld import closed_form, contour_integral
from accounting.pld.bound_search import (
    QUADRATURE,
    RELATIVE_WIDTH,
    DeltaAt,
    EpsilonAt,
    Question,
    bracket,
)
from accounting.pld.contour_integral import Terms
from accounting.privacy_loss import Loss, dominating_losses, is_on_grid
from accounting.privacy_loss.random_allocation import LEAST_POINTS, MOST_POINTS
from accounting.rdp import refusal

# Beyond them a release would have to be known to more digits than there are.
MOST_RELEASES = 10**9
# Share of delta that a law found by convolution may send to infinite losses.
_SPILLED = 1e-4
# Share of the larger delta below which the smaller one is not narrowed.
_HARDLY = 1e-3
_NEVER = 1e-300
# e^epsilon is a number up to here.
_LARGEST_EXPONENT = 700.0
_ROUND_DOWN, _ROUND_UP = 1 - 1e-12, 1 + 1e-12
# Width of the brackets whose estimates are shown after every step.
_RUNNING_WIDTH = 3e-3
# Ratio of the counts between which such estimates are interpolated.
_RUNG = 1.25


@final
class PldAccountant(ComposingAccountant):
    """Lower and upper bounds on epsilon from the law of the privacy loss.

    Args:
        relation: the neighboring relation.
        relative_width: how wide a bracket of epsilon may be, over its upper end, in
            [1e-8, 0.1]. A tenth of it takes up to three times as long.

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
    between 1.828 and 1.829
    """

    name: ClassVar[str] = "pld"

    def __init__(
        self,
        relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE,
        *,
        relative_width: float = RELATIVE_WIDTH,
    ) -> None:
        super().__init__(relation)
        if not 1e-8 <= relative_width <= 0.1:
            raise ValueError(
                f"relative_width is {relative_width!r}, outside [1e-8, 0.1]. Narrower"
                " brackets would need more memory than they are worth. Pass for"
                " example 1e-4."
            )
        self._width = relative_width

    def running_epsilon(self, delta: float) -> float:
        """Epsilon at delta, fast enough to be read after every step of a training.

        The point value on frequencies that are kept while the counts double. Where that
        is not to be trusted, for one kind of release the estimates for counts a quarter
        apart, each computed once, and a power of the count between them; for several
        kinds, of which one may stand still, that of a bracket 0.3 % wide. For a promise
        read `epsilon`.

        Raises:
            ValueError: delta outside (0, 1).
        """
        composition = _sorted(self._composition)
        if (
            not composition
            or not 0 < delta < 1
            or not _is_plain(composition, self._relation)
        ):
            return self.epsilon(delta).estimate
        mechanisms = tuple(mechanism for mechanism, _ in composition)
        counts = [count for _, count in composition]
        octaves = tuple(count.bit_length() - 1 for count in counts)
        tables = _running(mechanisms, octaves, self._relation, delta)
        values = [table.epsilon(counts) for table in tables]
        if None not in values:
            return max(value for value in values if value is not None)
        if len(composition) > 1:
            bounds = _epsilon_bounds(composition, self._relation, delta, _RUNNING_WIDTH)
            return bounds.estimate
        rungs = [_rungs(count) for count in counts]
        low, high = (
            _epsilon_bounds(
                tuple(zip(mechanisms, ends, strict=True)),
                self._relation,
                delta,
                _RUNNING_WIDTH,
            ).estimate
            for ends in zip(*rungs, strict=True)
        )
        first, last = (sum(ends) for ends in zip(*rungs, strict=True))
        share = math.log(sum(counts) / first) / max(math.log(last / first), _NEVER)
        if low == 0:
            return high * share
        return float(low * (high / low) ** share)

    def deltas(self, epsilon: float) -> tuple[Bounds, ...]:
        """Delta at epsilon for each ordered pair of datasets; `delta` is their maximum.

        Returns:
            The bounds where the first dataset has the example and those where the
            second has it; only one where both are the same, or where it is only known
            to be 0 at least.

        Raises:
            ValueError: epsilon negative, infinite or NaN.
        """
        composition, failure = without_failures(self._composition)
        if not composition or not 0 <= epsilon < math.inf:
            return (self.delta(epsilon),)
        if any(is_unprotected(mechanism) for mechanism, _ in composition):
            first, second = self.remainders()
            # Where nothing is told the loss is -ln(1 - told): 1 - e^eps (1 - told).
            grown = math.expm1(min(epsilon, _LARGEST_EXPONENT))
            second = max(second, (first - grown * (1 - first)) * _ROUND_DOWN)
            return Bounds(first, 1.0, 1.0, True), Bounds(second, 1.0, 1.0, True)
        found = _deltas(_sorted(composition), self._relation, float(epsilon))
        return tuple(with_failure(bounds, failure) for bounds in found)

    def gaussian_distance(self) -> float:
        """mu of a Gaussian release that is no more private than all that was composed.

        Sampling left aside; exact where there was none. Infinite where some release is
        no Gaussian, or has no noise.
        """
        if any(is_unprotected(mechanism) for mechanism, _ in self._composition):
            return math.inf
        if not self._composition:
            return 0.0
        whole = _unsampled(self._composition, self._relation)
        return math.inf if whole is None else whole.mu * _ROUND_UP

    def _refusal(self, mechanism: Mechanism) -> tuple[str, str] | None:
        if not isinstance(mechanism, ZeroConcentratedEvent):
            return None
        return (
            "Releases of the same rho differ, and no one pair of laws bounds them all.",
            "Use RdpAccountant, whose Renyi divergences do.",
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
) -> tuple[contour_integral.Running, ...]:
    """Tables for counts from 2^octave to 2^(octave + 1), one for each direction."""
    columns = [dominating_losses(mechanism, relation) for mechanism in mechanisms]
    counts = [1 << octave for octave in octaves]
    return tuple(
        contour_integral.Running(row, counts, delta)
        for row in zip(*columns, strict=True)
    )


def _rungs(count: int) -> tuple[int, int]:
    """Neighbors of a count on a ladder of whole numbers, each a quarter above the last.

    They are 2, 3, 4, 5, 7, ...: rounded up.
    """
    rung = math.floor(math.log(count) / math.log(_RUNG))
    while math.ceil(_RUNG**rung) > count:
        rung -= 1
    while math.ceil(_RUNG ** (rung + 1)) <= count:
        rung += 1
    first = math.ceil(_RUNG**rung)
    return first, count if first == count else math.ceil(_RUNG ** (rung + 1))


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
    most = rdp.epsilon_bounds(_classic(composition, relation), relation, delta).upper
    whole = _unsampled(composition, relation)
    if whole is not None:
        most = min(most, closed_form.epsilon_bounds(whole, delta).upper)
    if most == 0 or not _is_on_grid(composition, relation):
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
    if most == 0:
        return Bounds(0.0, 0.0, 0.0, True)
    if not _is_on_grid(composition, relation):
        return Bounds(0.0, most, most, False)
    return _bracket(DeltaAt(epsilon), composition, relation, most)


def _most_delta(
    composition: Composition, relation: NeighboringRelation, epsilon: float
) -> float:
    """Upper bound on delta without a grid; 0 only where no loss exceeds epsilon."""
    most = rdp.delta_bounds(_classic(composition, relation), relation, epsilon).upper
    if most == 0:
        return most
    most = min(most, _total_variation(composition, relation))
    whole = _unsampled(composition, relation)
    if whole is not None:
        most = min(most, closed_form.delta_bounds(whole, epsilon).upper)
    return max(most, math.ulp(0.0))


@functools.lru_cache(maxsize=256)
def _deltas(
    composition: Composition, relation: NeighboringRelation, epsilon: float
) -> tuple[Bounds, ...]:
    """Delta in each direction; one where both are the same."""
    exact = _closed_form(composition, relation)
    if isinstance(exact, closed_form.SingleRelease):
        remove, add = (
            closed_form.delta_bounds(one, epsilon) for one in (exact.remove, exact.add)
        )
        return remove, add
    most = _most_delta(composition, relation, epsilon)
    if exact is not None or most == 0 or not _is_on_grid(composition, relation):
        return (_delta_bounds(composition, relation, epsilon),)
    tail = _tail(most, composition)
    directions = _directions(composition, relation, tail, LEAST_POINTS)
    if len(directions) == 1:
        bounds = _delta_bounds(composition, relation, epsilon)
        return _exchanged(epsilon, directions[0], bounds)
    first, second = directions
    larger = _one_delta(epsilon, first, most, 0.0)
    return larger, _one_delta(epsilon, second, most, _HARDLY * larger.upper)


def _exchanged(
    epsilon: float, terms: list[tuple[Loss, int]], bounds: Bounds
) -> tuple[Bounds, ...]:
    """Bounds of both orders where one pair is an upper bound for either.

    What is attained from below differs in the two orders of the datasets.
    """
    losses = [loss.attained_exchanged for loss, _ in terms]
    if losses == [loss.attained for loss, _ in terms]:
        return (bounds,)
    others = [(loss, n) for loss, (_, n) in zip(losses, terms, strict=True) if loss]
    lower = 0.0
    if len(others) == len(terms):
        lower = min(_one_delta(epsilon, others, bounds.upper, 0.0).lower, bounds.lower)
    return bounds, Bounds(lower, bounds.estimate, bounds.upper, bounds.converged)


def _one_delta(
    epsilon: float, terms: list[tuple[Loss, int]], most: float, little: float
) -> Bounds:
    """Delta of one direction; only a plain bound where that is little."""
    little = max(little, MOST_RELEASES * _NEVER)
    if _is_never_above(epsilon, terms, little / sum(count for _, count in terms)):
        return Bounds(0.0, 0.0, little, True)
    question = DeltaAt(epsilon)
    ceiling = question.chernoff(question.point(terms)) * (1 + QUADRATURE)
    if ceiling <= little and all(loss.infinite == 0 for loss, _ in terms):
        return Bounds(0.0, ceiling, ceiling, True)
    return _bracket_of(question, [terms], most)


def _is_never_above(epsilon: float, terms: Terms, tail: float) -> bool:
    """True if the sum exceeds epsilon with no more than tail for each release."""
    return all(loss.infinite <= tail / 2 for loss, _ in terms) and (
        sum(count * loss.largest(tail / 2) for loss, count in terms) <= epsilon
    )


def _tail(delta: float, composition: Composition) -> float:
    """Mass that a law found by convolution may spill; few different values."""
    tail = _SPILLED * delta / sum(count for _, count in composition)
    return float(10.0 ** math.floor(max(math.log10(tail), -200.0)))


def _bracket(
    question: Question,
    composition: Composition,
    relation: NeighboringRelation,
    most: float,
) -> Bounds:
    """The bracket on the grid; laws found by convolution are refined as it needs."""
    if not any(isinstance(m, RandomAllocationEvent) for m, _ in composition):
        return _bracket_of(question, _directions(composition, relation), most)
    best = Bounds(0.0, most, most, False)
    points = LEAST_POINTS
    while points <= MOST_POINTS:
        tail = _tail(question.delta(best.upper), composition)
        directions = _directions(composition, relation, tail, points)
        found = _bracket_of(question, directions, best.upper)
        lower = max(best.lower, found.lower)
        upper = max(min(best.upper, found.upper), lower)
        estimate = min(max(found.estimate, lower), upper)
        is_much_smaller = question.delta(upper) < 0.1 * question.delta(best.upper)
        best = Bounds(lower, estimate, upper, found.converged)
        if found.converged:
            break
        if not is_much_smaller:
            points *= 8
    return best


def _bracket_of(
    question: Question, directions: list[list[tuple[Loss, int]]], most: float
) -> Bounds:
    """One bracket; where a pair is only a bound, its lower end is that of another."""
    if isinstance(question, DeltaAt):
        # The order of a loss that cannot occur would have no end.
        directions = [
            terms
            for terms in directions
            if not _is_never_above(question.at, terms, _NEVER)
        ]
        if not directions:
            return Bounds(0.0, 0.0, min(most, MOST_RELEASES * _NEVER), True)
    attained = [found for terms in directions if (found := _attained(terms))]
    if attained == directions:
        return bracket(question, directions, most)
    bounds = bracket(question.narrower(), directions, most)
    lower = 0.0
    if attained:
        below = bracket(question.narrower(), attained, bounds.upper)
        lower = min(below.lower, bounds.upper)
    is_narrow = question.is_narrow(lower, bounds.upper)
    return Bounds(lower, max(bounds.estimate, lower), bounds.upper, is_narrow)


def _attained(terms: list[tuple[Loss, int]]) -> list[tuple[Loss, int]] | None:
    """The terms of a pair that the releases attain, if one is known."""
    result = []
    for loss, count in terms:
        attained = loss.attained
        if attained is None:
            return None
        result.append((attained, count))
    return result


def _closed_form(
    composition: Composition, relation: NeighboringRelation
) -> closed_form.LogDelta | None:
    gaussians = _gaussians(composition)
    if gaussians is None:
        return None
    if all(mechanism.sampling_probability == 1 for mechanism, _ in gaussians):
        return _unsampled(composition, relation)
    (mechanism, count), *others = gaussians
    if others or count > 1 or relation is NeighboringRelation.REPLACE_ONE:
        return None
    return closed_form.SingleRelease(
        mechanism.sampling_probability, mechanism.noise_multiplier
    )


def _gaussians(composition: Composition) -> list[tuple[SampledGaussian, int]] | None:
    """The composition if it is one of sampled Gaussians only."""
    result = []
    for mechanism, count in composition:
        if not isinstance(mechanism, SampledGaussian):
            return None
        result.append((mechanism, count))
    return result


def _unamplified(mechanism: Mechanism, relation: NeighboringRelation) -> Mechanism:
    """The mechanism if the adversary knows which examples are in which batch."""
    match mechanism:
        case SampledGaussian(_, noise) | FixedSizeGaussian(_, noise):
            return SampledGaussian(1.0, noise)
        case RandomAllocationEvent() | TruncatedPoissonSampledEvent():
            inner = without_sampling(mechanism, relation)
            if isinstance(inner, GaussianEvent):
                return SampledGaussian(1.0, inner.noise_multiplier)
    return mechanism


def _unsampled(
    composition: Composition, relation: NeighboringRelation
) -> closed_form.Gaussian | None:
    """The Gaussian that the composition is without sampling, which never costs."""
    whole = _gaussians(tuple((_unamplified(m, relation), n) for m, n in composition))
    if whole is None:
        return None
    distance = relation.sensitivity(1.0)
    roots = [
        distance * math.sqrt(count) / mechanism.noise_multiplier
        for mechanism, count in whole
    ]
    return closed_form.Gaussian(math.hypot(*roots))


def _classic(composition: Composition, relation: NeighboringRelation) -> Composition:
    """What the Renyi accountant has a bound for, and is at least as bad."""
    return tuple(
        (m if refusal(m, relation) is None else _unamplified(m, relation), count)
        for m, count in composition
    )


def _total_variation(composition: Composition, relation: NeighboringRelation) -> float:
    """Upper bound on delta(0): total variations add up."""
    total = 0.0
    for mechanism, count in composition:
        if isinstance(mechanism, SampledGaussian | FixedSizeGaussian):
            half = relation.sensitivity(1.0) / (2 * mechanism.noise_multiplier)
            chance = mechanism.sampling_probability
            total += count * chance * math.erf(half / math.sqrt(2))
        elif is_on_grid(mechanism, relation):
            total += count * max(
                loss.variation() for loss in dominating_losses(mechanism, relation)
            )
        else:
            return 1.0
    return min(total * (1 + 1e-12), 1.0)


def _is_plain(composition: Composition, relation: NeighboringRelation) -> bool:
    """True where tables of frequencies serve, without laws found by convolution."""
    if any(isinstance(m, RandomAllocationEvent) for m, _ in composition):
        return False
    if any(is_unprotected(m) for m, _ in composition):
        return False  # without noise epsilon is infinite, and no table says so
    has_none = _closed_form(composition, relation) is None
    return has_none and _is_on_grid(composition, relation)


def _is_on_grid(composition: Composition, relation: NeighboringRelation) -> bool:
    """False where the grid has too few digits; the Renyi bound answers there."""
    return sum(count for _, count in composition) <= MOST_RELEASES and all(
        is_on_grid(mechanism, relation) for mechanism, _ in composition
    )


def _directions(
    composition: Composition,
    relation: NeighboringRelation,
    tail: float = 1e-15,
    points: int = LEAST_POINTS,
) -> list[list[tuple[Loss, int]]]:
    """The terms of each ordered pair of datasets, each kind of terms once."""
    columns = [dominating_losses(m, relation, tail, points) for m, _ in composition]
    counts = [count for _, count in composition]
    rows = dict.fromkeys(zip(*columns, strict=True))
    return [list(zip(row, counts, strict=True)) for row in rows]


# What training, calibration, the report and the command use if none is named: both
# bounds on epsilon, so that it shows what the certificate costs in noise.
DefaultAccountant = PldAccountant
