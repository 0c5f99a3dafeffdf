"""Privacy accounting: what was released, and what it reveals at most."""

__version__ = "0.1.0"

from accounting import calibrate
from accounting.accountant import Accountant, Bounds, ComposingAccountant
from accounting.calibrate import BudgetSpentError
from accounting.default import DefaultAccountant
from accounting.events import (
    Event,
    FixedSizeSampledEvent,
    GaussianEvent,
    PoissonSampledEvent,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
    event_from_dict,
)
from accounting.filters import RenyiFilter
from accounting.ledger import Ledger, Release
from accounting.pld import PldAccountant
from accounting.rdp import RdpAccountant
from accounting.relations import NeighboringRelation
from accounting.report import PrivacyReport, privacy_report

__all__ = [
    "Accountant",
    "Bounds",
    "BudgetSpentError",
    "ComposingAccountant",
    "DefaultAccountant",
    "Event",
    "FixedSizeSampledEvent",
    "GaussianEvent",
    "Ledger",
    "NeighboringRelation",
    "PldAccountant",
    "PoissonSampledEvent",
    "PrivacyReport",
    "RdpAccountant",
    "Release",
    "RenyiFilter",
    "UnsupportedEventError",
    "UnverifiedSamplingEvent",
    "__version__",
    "calibrate",
    "event_from_dict",
    "privacy_report",
]
