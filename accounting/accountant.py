"""What all accountants share: composition, validation, and the answer as bounds.

An accountant adds only its own mathematics: `_epsilon` and `_delta` for a list of
(mechanism, count) pairs. Equal mechanisms are merged here, once, for all of them.
"""

import abc
import dataclasses
import decimal
import math
from typing import Any, ClassVar, Protocol, Self

from accounting.events import (
    Event,
    Ledger,
    NeighboringRelation,
    UnsupportedEventError,
    checked_count,
    merge_counts,
)
from accounting.events.normal_form import (
    FREE,
    Composition,
    Mechanism,
    exposure,
    is_unprotected,
    mechanism_of,
    without_failures,
)
from accounting.promise import Promise

# Above the rounding of a chance of failure.
_ROUNDED = 1e-14


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds(Promise):
    """An answer with its error: lower <= truth <= upper, estimate in between.

    Where a number is asked for (`float`, `<`, `f"{bounds:.2f}"`, `round`), it is the
    upper bound, rounded up.

    Attributes:
        lower: never above the truth; 0 where the accountant has no lower bound.
        estimate: the best single number.
        upper: never below the truth; the number to promise.
        converged: False if the bracket is wider than it should be (it still holds).
    """

    lower: float
    estimate: float
    upper: float
    converged: bool

    def __post_init__(self) -> None:
        if not self.lower <= self.estimate <= self.upper:
            raise ValueError(
                f"Bounds are out of order: lower={self.lower!r},"
                f" estimate={self.estimate!r}, upper={self.upper!r}. An upper bound"
                " below the lower one promises what is not true. Pass them in order."
            )

    @property
    def promised(self) -> float:
        """The upper bound."""
        return self.upper

    def __str__(self) -> str:
        if self.upper == math.inf:
            return "unbounded" if self.lower == 0 else f"at least {self.lower:.4g}"
        if self.lower == self.upper:
            return f"{self.upper:.4g}"
        upper = _rounded(self.upper, decimal.ROUND_CEILING)
        if self.lower == 0:
            return f"at most {upper}"
        return f"between {_rounded(self.lower, decimal.ROUND_FLOOR)} and {upper}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe mapping; infinity, which JSON lacks, is the text "infinity"."""
        return {
            name: "infinity" if value == math.inf else value
            for name, value in dataclasses.asdict(self).items()
        }


def _rounded(value: float, rounding: str) -> str:
    """Four significant digits, rounded outward so that the printed bound holds."""
    context = decimal.Context(prec=4, rounding=rounding)
    return f"{float(context.create_decimal(value)):.4g}"


class Accountant(Protocol):
    """What a caller may ask of any accountant."""

    @property
    def name(self) -> str: ...

    @property
    def relation(self) -> NeighboringRelation: ...

    def compose(self, event: Event, count: int = 1) -> Self: ...

    def compose_ledger(self, ledger: "Ledger") -> Self: ...

    def epsilon(self, delta: float) -> Bounds: ...

    def delta(self, epsilon: float) -> Bounds: ...


class ComposingAccountant(abc.ABC):
    """Base of the accountants: keeps what was composed, answers the plain cases.

    Guarantees:
        compose(event, n) equals n times compose(event), in any order. Sampling
        probability 0 costs nothing. Noise 0 makes epsilon infinite. Nothing composed
        means epsilon 0.
    """

    name: ClassVar[str]

    def __init__(
        self, relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE_ONE
    ) -> None:
        if not isinstance(relation, NeighboringRelation):
            raise ValueError(
                f"relation is {relation!r}, not a NeighboringRelation. An epsilon has"
                " no meaning without it. Pass NeighboringRelation.ADD_OR_REMOVE_ONE,"
                " REPLACE_ONE or ZERO_OUT."
            )
        self._relation = relation
        self._composition: Composition = ()

    @property
    def relation(self) -> NeighboringRelation:
        """The relation every answer is stated under."""
        return self._relation

    def compose(self, event: Event, count: int = 1) -> Self:
        """Adds count releases of the event and returns the accountant itself.

        Raises:
            UnsupportedEventError: no bound is known for the event and relation.
            ValueError: count is not a whole number >= 1.
        """
        mechanism = mechanism_of(event, self.name, self._relation)
        refusal = self._refusal(mechanism)
        if refusal is not None:
            raise UnsupportedEventError(
                event, self.name, self._relation.value, *refusal
            )
        count = checked_count(count)
        if mechanism != FREE:
            self._composition = merge_counts(
                (*self._composition, (mechanism, count)),
            )
        return self

    def _refusal(self, mechanism: Mechanism) -> tuple[str, str] | None:
        """Why this accountant has no bound for a mechanism, and what to do instead."""
        return None

    def compose_ledger(self, ledger: "Ledger") -> Self:
        """Adds everything a ledger has recorded and returns the accountant itself."""
        for release in ledger.releases:
            self.compose(release.event, release.count)
        return self

    def epsilon(self, delta: float) -> Bounds:
        """Smallest epsilon for which everything composed is (epsilon, delta)-DP.

        Args:
            delta: in (0, 1), the probability with which epsilon may fail.

        Returns:
            Bounds on epsilon; promise `upper`.

        Raises:
            ValueError: delta outside (0, 1).
        """
        if not 0 < delta < 1:
            raise ValueError(
                f"delta is {delta!r}, outside (0, 1). It is the probability with which"
                " the promise may fail, and must be far below 1 / number of examples."
                " Pass for example 1e-6."
            )
        if any(is_unprotected(mechanism) for mechanism, _ in self._composition):
            return Bounds(0.0, math.inf, math.inf, True)
        composition, failure = without_failures(self._composition)
        if failure >= delta:
            return Bounds(0.0, math.inf, math.inf, True)
        if not composition:
            return Bounds(0.0, 0.0, 0.0, True)
        if failure == 0:
            return self._epsilon(composition, float(delta))
        # What is left of delta, first from below and then from above.
        left = (delta - failure) / (1 - failure) * (1 - _ROUNDED)
        bounds = self._epsilon(composition, left)
        failure *= 1 - 2 * _ROUNDED
        most = (delta - failure) / (1 - failure) * (1 + _ROUNDED)
        lower = self._epsilon(composition, min(most, 1 - _ROUNDED)).lower
        estimate = max(bounds.estimate, lower)
        return Bounds(min(lower, estimate), estimate, bounds.upper, bounds.converged)

    def delta(self, epsilon: float) -> Bounds:
        """Smallest delta for which everything composed is (epsilon, delta)-DP.

        Args:
            epsilon: finite, >= 0.

        Returns:
            Bounds on delta, within [0, 1]; promise `upper`.

        Raises:
            ValueError: epsilon negative, infinite or NaN.
        """
        if not 0 <= epsilon < math.inf:
            raise ValueError(
                f"epsilon is {epsilon!r}, not a finite number >= 0. No probability"
                " belongs to such a bound. Pass for example 2.0."
            )
        if any(is_unprotected(mechanism) for mechanism, _ in self._composition):
            return Bounds(self.remainders()[0], 1.0, 1.0, True)
        composition, failure = without_failures(self._composition)
        bounds = Bounds(0.0, 0.0, 0.0, True)
        if composition:
            bounds = self._delta(composition, float(epsilon))
        return with_failure(bounds, failure)

    def remainders(self) -> tuple[float, float]:
        """What no epsilon takes away of delta, from below: releases that told all.

        Returns:
            For the order of datasets in which the first has the example, whose presence
            such releases tell, and for the other order.
        """
        composition, failure = without_failures(self._composition)
        told = exposure(composition)
        # Without the example there is nothing to tell, unless it is in for certain.
        chances = (failure + (1 - failure) * told, 1.0 if told == 1 else failure)
        first, second = (c if c == 1 else c * (1 - 4 * _ROUNDED) for c in chances)
        return first, second

    @abc.abstractmethod
    def _epsilon(self, composition: Composition, delta: float) -> Bounds:
        """Bounds on epsilon; not empty, nothing free, unprotected or failing."""

    @abc.abstractmethod
    def _delta(self, composition: Composition, epsilon: float) -> Bounds:
        """Bounds on delta; not empty, nothing free, unprotected or failing."""


def with_failure(bounds: Bounds, failure: float) -> Bounds:
    """Bounds on D + (1 - D) delta from those on delta, D rounded upward."""
    if failure == 0:
        return bounds
    upper = failure + (1 - failure) * bounds.upper
    upper = min(upper * (1 + _ROUNDED), 1.0)
    failure *= 1 - 2 * _ROUNDED
    lower = (failure + (1 - failure) * bounds.lower) * (1 - _ROUNDED)
    estimate = failure + (1 - failure) * bounds.estimate
    return Bounds(lower, min(max(estimate, lower), upper), upper, bounds.converged)
