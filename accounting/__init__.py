"""Privacy accounting: what was released, and what it reveals at most."""

__version__ = "0.1.0"

from accounting import calibrate, tradeoff
from accounting.accountant import Accountant, Bounds, ComposingAccountant
from accounting.calibrate import BudgetSpentError
from accounting.correlated import matrix_mechanism, tree_aggregation
from accounting.default import DefaultAccountant
from accounting.events import (
    ApproximateEvent,
    DiscreteGaussianEvent,
    DiscreteLaplaceEvent,
    Event,
    FixedSizeSampledEvent,
    GaussianEvent,
    LaplaceEvent,
    MixtureOfGaussiansEvent,
    PoissonSampledEvent,
    PureEvent,
    RandomAllocationEvent,
    RandomizedResponseEvent,
    TruncatedPoissonSampledEvent,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
    ZeroConcentratedEvent,
    event_from_dict,
    user_level,
)
from accounting.filters import RenyiFilter, RenyiOdometer
from accounting.ledger import Ledger, Release
from accounting.pld import PldAccountant
from accounting.rdp import RdpAccountant
from accounting.relations import NeighboringRelation
from accounting.report import PrivacyReport, privacy_report

__all__ = [
    "Accountant",
    "ApproximateEvent",
    "Bounds",
    "BudgetSpentError",
    "ComposingAccountant",
    "DefaultAccountant",
    "DiscreteGaussianEvent",
    "DiscreteLaplaceEvent",
    "Event",
    "FixedSizeSampledEvent",
    "GaussianEvent",
    "LaplaceEvent",
    "Ledger",
    "MixtureOfGaussiansEvent",
    "NeighboringRelation",
    "PldAccountant",
    "PoissonSampledEvent",
    "PrivacyReport",
    "PureEvent",
    "RandomAllocationEvent",
    "RandomizedResponseEvent",
    "RdpAccountant",
    "Release",
    "RenyiFilter",
    "RenyiOdometer",
    "TruncatedPoissonSampledEvent",
    "UnsupportedEventError",
    "UnverifiedSamplingEvent",
    "ZeroConcentratedEvent",
    "__version__",
    "calibrate",
    "event_from_dict",
    "matrix_mechanism",
    "privacy_report",
    "tradeoff",
    "tree_aggregation",
    "user_level",
]
