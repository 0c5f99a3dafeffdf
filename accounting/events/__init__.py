"""What was released: events, relations between neighbors, and their ledger."""

from accounting.events.base import (
    Event,
    UnsupportedEventError,
    checked_count,
    merge_counts,
)
from accounting.events.correlated_noise import matrix_mechanism, tree_aggregation
from accounting.events.ledger import Ledger, Release
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
    user_level,
)
from accounting.events.relations import NeighboringRelation
from accounting.events.sampling import (
    FixedSizeSampledEvent,
    PoissonSampledEvent,
    RandomAllocationEvent,
    TruncatedPoissonSampledEvent,
    UnverifiedSamplingEvent,
    event_from_dict,
)

__all__ = [
    "ApproximateEvent",
    "DiscreteGaussianEvent",
    "DiscreteLaplaceEvent",
    "Event",
    "FixedSizeSampledEvent",
    "GaussianEvent",
    "LaplaceEvent",
    "Ledger",
    "MixtureOfGaussiansEvent",
    "NeighboringRelation",
    "PoissonSampledEvent",
    "PureEvent",
    "RandomAllocationEvent",
    "RandomizedResponseEvent",
    "Release",
    "TruncatedPoissonSampledEvent",
    "UnsupportedEventError",
    "UnverifiedSamplingEvent",
    "ZeroConcentratedEvent",
    "checked_count",
    "event_from_dict",
    "matrix_mechanism",
    "merge_counts",
    "tree_aggregation",
    "user_level",
]
