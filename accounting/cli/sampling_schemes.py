"""How batches are formed, by the names of the command, and the event each one earns.

A sampling scheme says what one release is and how many of them a number of steps makes.
Nothing borrows another scheme's figure.
"""

import dataclasses
import types
from collections.abc import Mapping

from accounting.events import (
    Event,
    FixedSizeSampledEvent,
    GaussianEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    RandomAllocationEvent,
    TruncatedPoissonSampledEvent,
    UnverifiedSamplingEvent,
    user_level,
)
from accounting.events.normal_form import without_sampling

SAMPLINGS: Mapping[str, str] = types.MappingProxyType(
    {
        "poisson": (
            "Poisson: each example enters each batch by its own independent coin, with"
            " probability batch_size / N"
        ),
        "truncated_poisson": (
            "truncated Poisson: as Poisson, and a batch of more than max_batch_size"
            " examples is cut to a random part of that size"
        ),
        "fixed_size": (
            "fixed size: batch_size examples drawn anew without replacement for each"
            " step"
        ),
        "shuffle": (
            "batches of a fixed size from a shuffled dataset, each example once in a"
            " pass"
        ),
        "balls_in_bins": (
            "balls in bins: in each pass every example chooses one of the steps by"
            " itself, each equally likely"
        ),
        "none": "none: each example may be in every batch",
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Scheme:
    """A way to form batches.

    Attributes:
        name: a key of SAMPLINGS.
        population: number of examples N, >= 1.
        max_examples_per_user: the most examples of one unit of privacy.
        max_batch_size: for truncated_poisson only.
    """

    name: str
    population: int
    max_examples_per_user: int = 1
    max_batch_size: int | None = None

    def steps_in_a_pass(self, batch_size: int) -> int:
        """Full batches in the data; bins that hold no more than batch_size each."""
        if self.name == "balls_in_bins":
            return -(-self.population // batch_size)
        return max(1, self.population // batch_size)

    def event(self, noise: float, batch_size: int) -> Event:
        """One release, or for balls_in_bins one pass."""
        q, gaussian = batch_size / self.population, GaussianEvent(noise)
        match self.name:
            case "poisson":
                if self.max_examples_per_user > 1:
                    return user_level(q, noise, self.max_examples_per_user)
                return PoissonSampledEvent(q, gaussian)
            case "truncated_poisson":
                most = self.max_batch_size or batch_size
                return TruncatedPoissonSampledEvent(q, gaussian, self.population, most)
            case "fixed_size":
                return FixedSizeSampledEvent(self.population, batch_size, gaussian)
            case "balls_in_bins":
                return RandomAllocationEvent(self.steps_in_a_pass(batch_size), gaussian)
        return UnverifiedSamplingEvent(self._of_all(noise))

    def unsampled(
        self, noise: float, batch_size: int, relation: NeighboringRelation
    ) -> Event:
        """One release if it is known which examples are in which batch."""
        if self.name == "truncated_poisson":
            return without_sampling(self.event(noise, batch_size), relation)
        return self._of_all(noise)

    def _of_all(self, noise: float) -> GaussianEvent:
        """One release on all examples of one unit.

        With k of them in one batch the sum moves by k clip norms. Over a pass the
        square of what it moves by is at most k^2, however they fall into batches.
        """
        return GaussianEvent(noise / self.max_examples_per_user)

    def count(self, batch_size: int, steps: int) -> int:
        """How many such events the steps make, at most."""
        if self.name not in ("shuffle", "balls_in_bins"):
            return steps
        return -(-steps // self.steps_in_a_pass(batch_size))

    def steps(self, batch_size: int, count: int) -> int:
        """The most steps that make this number of events."""
        if self.name not in ("shuffle", "balls_in_bins"):
            return count
        return count * self.steps_in_a_pass(batch_size)

    def attained(
        self, noise: float, batch_size: int, steps: int
    ) -> tuple[Event, int] | None:
        """For shuffling, what is released where all other examples have no gradient.

        Then nothing but the step in which the one example takes part is random, and
        that is uniform: random allocation, in every whole pass. Only where the batches
        use up the data: left out of a pass, or in a short batch, an example is safer.
        """
        if self.population % batch_size:
            return None
        in_a_pass = self.steps_in_a_pass(batch_size)
        passes = steps // in_a_pass
        if self.name != "shuffle" or passes == 0:
            return None
        return RandomAllocationEvent(in_a_pass, GaussianEvent(noise)), passes
