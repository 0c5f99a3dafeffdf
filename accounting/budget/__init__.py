"""What a target allows: noise, steps and batches, fixed beforehand or on the way."""

from accounting.budget.calibrate import BudgetSpentError
from accounting.budget.filters import RenyiFilter, RenyiOdometer

__all__ = [
    "BudgetSpentError",
    "RenyiFilter",
    "RenyiOdometer",
]
