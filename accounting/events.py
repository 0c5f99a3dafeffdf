"""Facts about one release: what was done, necessary and sufficient for accounting.

An event states the mathematics of one noised step, never how it was programmed. How
often it happened is a count beside it, and `merge_counts` is the only place where
counts of equal things are added.
"""

import abc
import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping
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
            result[field.name] = value.to_dict() if isinstance(value, Event) else value
        return result


@dataclasses.dataclass(frozen=True, slots=True)
class GaussianEvent(Event):
    """A sum over the data plus Gaussian noise, without sampling.

    Attributes:
        noise_multiplier: standard deviation of the noise / clip norm, >= 0, finite.
            0 means no noise: epsilon is then infinite.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        value = _real("noise_multiplier", self.noise_multiplier)
        if not (0 <= value < math.inf):
            raise ValueError(
                f"noise_multiplier is {value!r}, not a finite number >= 0. It is the"
                " standard deviation of the noise in units of the clip norm, which"
                " decides epsilon. Pass a number such as 1.1, or 0 for no noise."
            )
        object.__setattr__(self, "noise_multiplier", value)

    def describe(self) -> str:
        return f"Gaussian noise, multiplier {self.noise_multiplier:.6g}"


@dataclasses.dataclass(frozen=True, slots=True)
class PoissonSampledEvent(Event):
    """An event on a batch that took in each example by its own independent coin.

    Attributes:
        sampling_probability: chance of each example, in [0, 1]. 1 is no sampling.
        event: what was released about the batch.
    """

    sampling_probability: float
    event: Event

    def __post_init__(self) -> None:
        value = _real("sampling_probability", self.sampling_probability)
        if not (0 <= value <= 1):
            raise ValueError(
                f"sampling_probability is {value!r}, outside [0, 1]. It is the chance"
                " that an example enters the batch, so no bound holds for it. Pass"
                " expected batch size / number of examples."
            )
        object.__setattr__(self, "sampling_probability", value)
        _require_event(self.event)

    def describe(self) -> str:
        return (
            f"{self.event.describe()}, Poisson-sampled with probability"
            f" {self.sampling_probability:.6g}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class FixedSizeSampledEvent(Event):
    """An event on a batch of fixed size, drawn anew without replacement each time.

    Every batch of that size is equally likely. The number of examples is public and the
    same in neighboring datasets, so only REPLACE_ONE has a bound. A shuffled pass over
    the data is something else: its batches depend on one another.

    Attributes:
        population: number of examples, >= 1.
        batch_size: number of them drawn, from 1 to population.
        event: what was released about the batch.
    """

    population: int
    batch_size: int
    event: Event

    def __post_init__(self) -> None:
        for name in ("population", "batch_size"):
            object.__setattr__(self, name, checked_count(getattr(self, name), name))
        if self.batch_size > self.population:
            raise ValueError(
                f"batch_size is {self.batch_size}, larger than the population of"
                f" {self.population}. No batch without replacement has that size. Pass"
                " the number of examples drawn."
            )
        _require_event(self.event)

    def describe(self) -> str:
        return (
            f"{self.event.describe()}, {self.batch_size} of {self.population} examples"
            " without replacement"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class UnverifiedSamplingEvent(Event):
    """One release over a ready-made batch whose members the library did not draw.

    No amplification is granted: the release counts in full for every example. Each
    example occupies at most one place of a batch; then zeroing or replacing it changes
    each batch sum by one clipped row. Adding or removing an example would shift all
    later batches, so ADD_OR_REMOVE_ONE has no bound for this event.

    Attributes:
        event: what was released about the batch.
    """

    event: Event

    def __post_init__(self) -> None:
        _require_event(self.event)

    def describe(self) -> str:
        return f"{self.event.describe()}, ready-made batches, no amplification"


_EVENT_TYPES: dict[str, type[Event]] = {
    "FixedSizeSampledEvent": FixedSizeSampledEvent,
    "GaussianEvent": GaussianEvent,
    "PoissonSampledEvent": PoissonSampledEvent,
    "UnverifiedSamplingEvent": UnverifiedSamplingEvent,
}


def event_from_dict(mapping: Mapping[str, Any]) -> Event:
    """Inverse of `Event.to_dict`; only names in the registry are built.

    Raises:
        ValueError: unknown or missing type, wrong fields, or values out of range.

    >>> event_from_dict({"type": "GaussianEvent", "noise_multiplier": 1.1})
    GaussianEvent(noise_multiplier=1.1)
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(
            f"An event must be a mapping, received {mapping!r}. Without its fields the"
            " release cannot be counted. Pass what Event.to_dict returned."
        )
    name = mapping.get("type")
    kind = _EVENT_TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(
            f"Unknown event type {name!r}. Guessing its meaning could understate"
            f" epsilon. Known types: {', '.join(sorted(_EVENT_TYPES))}; a newer file"
            " needs a newer version of accounting."
        )
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = set(mapping) - {"type"}
    if given != names:
        raise ValueError(
            f"{name} has the fields {sorted(given)}, expected {sorted(names)}. A field"
            " that is dropped or made up changes what was released. Pass what"
            " Event.to_dict returned."
        )
    values = {
        key: event_from_dict(mapping[key]) if key == "event" else mapping[key]
        for key in names
    }
    return kind(**values)


def merge_counts(pairs: Iterable[tuple[Key, int]]) -> tuple[tuple[Key, int], ...]:
    """Adds the counts of equal keys; keys stay in order of first appearance.

    >>> merge_counts([("a", 1), ("b", 2), ("a", 3)])
    (('a', 4), ('b', 2))
    """
    totals: dict[Key, int] = {}
    for key, count in pairs:
        totals[key] = totals.get(key, 0) + count
    return tuple(totals.items())


def checked_count(count: object, name: str = "count") -> int:
    """The count as an int; refuses everything that is not a whole number >= 1."""
    if type(count) is int and count >= 1:
        return count
    is_whole = not isinstance(count, bool) and hasattr(count, "__index__")
    if not is_whole or count.__index__() < 1:  # type: ignore[attr-defined]
        raise ValueError(
            f"{name} is {count!r}, not a whole number >= 1. It is how often the release"
            " happened; anything else would lower epsilon. Pass the number of releases."
            if name == "count"
            else f"{name} is {count!r}, not a whole number >= 1. It is a number of"
            " examples, on which epsilon depends. Pass that number."
        )
    return int(count.__index__())  # type: ignore[attr-defined]


def _real(name: str, value: object) -> float:
    """Value as a float; refuses what is not a real number."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise ValueError(
            f"{name} is {value!r}, not a number. Epsilon is computed from it. Pass a"
            " real number."
        )
    return float(value)


def _require_event(event: object) -> None:
    if not isinstance(event, Event):
        raise ValueError(
            f"event is {event!r}, not an Event. What was released must be stated in"
            " full to be counted. Pass for example GaussianEvent(1.1)."
        )
