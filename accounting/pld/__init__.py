"""What a composition reveals: certified bounds from the law of the privacy loss."""

from accounting.pld.accountant import DefaultAccountant, PldAccountant

__all__ = [
    "DefaultAccountant",
    "PldAccountant",
]
