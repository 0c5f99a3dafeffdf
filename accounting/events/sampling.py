"""Facts about one release: what was done, necessary and sufficient for accounting.

An event states the mathematics of one noised step, never how it was programmed. How
often it happened is a count beside it, and `merge_counts` is the only place where
counts of equal things are added.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from accounting.events.base import (
    Event,
    checked_count,
    checked_probability,
    require_event,
)
from accounting.events.mechanisms import (
    ApproximateEvent,
    DiscreteGaussianEvent,
    DiscreteLaplaceEvent,
    GaussianEvent,
    LaplaceEvent,
    MixtureOfGaussiansEvent,
    PureEvent,
    RandomizedResponseEvent,
    ZeroConcentratedEvent,
)


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
        value = _sampling_probability(self.sampling_probability)
        object.__setattr__(self, "sampling_probability", value)
        require_event(self.event)

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
        require_event(self.event)

    def describe(self) -> str:
        return (
            f"{self.event.describe()}, {self.batch_size} of {self.population} examples"
            " without replacement"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class TruncatedPoissonSampledEvent(Event):
    """An event on a Poisson batch that was cut to a largest size.

    Where more examples than that were drawn, a uniformly random subset of them of the
    largest size is kept (arXiv:2508.15089). Which batches were cut stays secret.

    Attributes:
        sampling_probability: chance of each example before the cut, in [0, 1].
        event: what was released about the batch.
        dataset_size: number of examples, >= 1; for adding or removing one, the larger.
        max_batch_size: the largest size, >= 1.
    """

    sampling_probability: float
    event: Event
    dataset_size: int
    max_batch_size: int

    def __post_init__(self) -> None:
        value = _sampling_probability(self.sampling_probability)
        object.__setattr__(self, "sampling_probability", value)
        require_event(self.event)
        for name in ("dataset_size", "max_batch_size"):
            object.__setattr__(self, name, checked_count(getattr(self, name), name))

    def describe(self) -> str:
        return (
            f"{self.event.describe()}, Poisson-sampled with probability"
            f" {self.sampling_probability:.6g} from {self.dataset_size} examples, at"
            f" most {self.max_batch_size} kept"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class RandomAllocationEvent(Event):
    """One epoch in which each example took part in exactly one of several steps.

    Each example draws its step uniformly, by itself and secretly: balls-in-bins with
    one ball (arXiv:2502.08202). Every epoch draws anew, and its count is the number of
    epochs. A shuffled pass with batches of a fixed size is something else.

    Attributes:
        bins: number of steps of the epoch, >= 1.
        event: what each step released about its batch.
    """

    bins: int
    event: Event

    def __post_init__(self) -> None:
        bins = checked_count(self.bins, "bins", "the number of steps of an epoch")
        object.__setattr__(self, "bins", bins)
        require_event(self.event)

    def describe(self) -> str:
        return (
            f"{self.event.describe()} in each of {self.bins} steps, every example in"
            " one of them at random"
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
        require_event(self.event)

    def describe(self) -> str:
        return f"{self.event.describe()}, ready-made batches, no amplification"


_EVENT_TYPES: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        ApproximateEvent,
        DiscreteGaussianEvent,
        DiscreteLaplaceEvent,
        FixedSizeSampledEvent,
        GaussianEvent,
        LaplaceEvent,
        MixtureOfGaussiansEvent,
        PoissonSampledEvent,
        PureEvent,
        RandomAllocationEvent,
        RandomizedResponseEvent,
        TruncatedPoissonSampledEvent,
        UnverifiedSamplingEvent,
        ZeroConcentratedEvent,
    )
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
    values = {key: _from_json(key, mapping[key]) for key in names}
    return kind(**values)


def _from_json(key: str, value: Any) -> Any:
    if key == "event":
        return event_from_dict(value)
    return tuple(value) if isinstance(value, list) else value


def _sampling_probability(value: object) -> float:
    return checked_probability(
        "sampling_probability",
        value,
        "the chance that an example enters the batch",
        "Pass expected batch size / number of examples.",
    )
