"""What every event is, and the checks and the counting that all of them share."""

import abc
import dataclasses
import math
from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)


class UnsupportedEventError(ValueError):
    """An accountant met an event for which it has no sound bound."""

    def __init__(
        self, event: object, accountant: str, relation: str, reason: str, advice: str
    ) -> None:
        super().__init__(
            f"The {accountant} accountant has no bound for {event!r} under {relation}."
            f" {reason} {advice}"
        )
        self.event = event


class Event(abc.ABC):
    """What one release did. Subclasses are frozen, hashable and final."""

    __slots__ = ()

    @abc.abstractmethod
    def describe(self) -> str:
        """The event in a few words, for the report."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe mapping that `event_from_dict` turns back into an equal event."""
        result: dict[str, Any] = {"type": type(self).__name__}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Event):
                value = value.to_dict()
            result[field.name] = list(value) if isinstance(value, tuple) else value
        return result


def merge_counts(pairs: Iterable[tuple[Key, int]]) -> tuple[tuple[Key, int], ...]:
    """Adds the counts of equal keys; keys stay in order of first appearance.

    >>> merge_counts([("a", 1), ("b", 2), ("a", 3)])
    (('a', 4), ('b', 2))
    """
    totals: dict[Key, int] = {}
    for key, count in pairs:
        totals[key] = totals.get(key, 0) + count
    return tuple(totals.items())


def checked_count(
    count: object, name: str = "count", meaning: str = "a number of examples"
) -> int:
    """The count as an int; refuses everything that is not a whole number >= 1."""
    if type(count) is int and count >= 1:
        return count
    is_whole = not isinstance(count, bool) and hasattr(count, "__index__")
    if not is_whole or count.__index__() < 1:  # type: ignore[attr-defined]
        raise ValueError(
            f"{name} is {count!r}, not a whole number >= 1. It is how often the release"
            " happened; anything else would lower epsilon. Pass the number of releases."
            if name == "count"
            else f"{name} is {count!r}, not a whole number >= 1. It is {meaning}, on"
            " which epsilon depends. Pass that number."
        )
    return int(count.__index__())  # type: ignore[attr-defined]


def checked_real(name: str, value: object) -> float:
    """Value as a float; refuses what is not a real number."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise ValueError(
            f"{name} is {value!r}, not a number. Epsilon is computed from it. Pass a"
            " real number."
        )
    return float(value)


def checked_noise(value: object, meaning: str) -> float:
    """A noise multiplier: finite, >= 0."""
    noise = checked_real("noise_multiplier", value)
    if not (0 <= noise < math.inf):
        raise ValueError(
            f"noise_multiplier is {noise!r}, not a finite number >= 0. It is {meaning},"
            " which decides epsilon. Pass a number such as 1.1, or 0 for no noise."
        )
    return noise


def checked_probability(name: str, value: object, meaning: str, advice: str) -> float:
    """A probability in [0, 1]."""
    probability = checked_real(name, value)
    if not (0 <= probability <= 1):
        raise ValueError(
            f"{name} is {probability!r}, outside [0, 1]. It is {meaning}, so no bound"
            f" holds for it. {advice}"
        )
    return probability


def checked_cost(name: str, value: object, meaning: str) -> float:
    """An epsilon or rho: >= 0, finite."""
    cost = checked_real(name, value)
    if not (0 <= cost < math.inf):
        raise ValueError(
            f"{name} is {cost!r}, not a finite number >= 0. It is {meaning}. Pass the"
            " value that was proved for the release."
        )
    return cost


def require_event(event: object) -> None:
    """Refuses what is not an Event."""
    if not isinstance(event, Event):
        raise ValueError(
            f"event is {event!r}, not an Event. What was released must be stated in"
            " full to be counted. Pass for example GaussianEvent(1.1)."
        )
