"""Differentially private training for Keras 3: the public names."""

from dp_train.own_accounting import __version__

# isort: split
from dp_train import saved_ledger, testing
from dp_train.callbacks import BudgetStop, EpsilonLogger
from dp_train.clipped_sum import ClippedSum
from dp_train.errors import BudgetSpentError, NotPrivateError, PrivacyWarning
from dp_train.loader import PoissonLoader
from dp_train.model import PrivateModel, clipped_gradients, make_private
from dp_train.optimizers.dp_optimizer import DPOptimizer
from dp_train.optimizers.short_names import (
    DPSGD,
    DPAdagrad,
    DPAdam,
    DPAdamW,
    DPRMSprop,
)
from dp_train.values import Batch

# Imported for what it does to files of weights.
del saved_ledger

__all__ = [
    "DPSGD",
    "Batch",
    "BudgetSpentError",
    "BudgetStop",
    "ClippedSum",
    "DPAdagrad",
    "DPAdam",
    "DPAdamW",
    "DPOptimizer",
    "DPRMSprop",
    "EpsilonLogger",
    "NotPrivateError",
    "PoissonLoader",
    "PrivateModel",
    "PrivacyWarning",
    "__version__",
    "clipped_gradients",
    "make_private",
    "testing",
]
