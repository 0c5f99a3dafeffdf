"""How the privacy loss of one release is distributed, for pairs that dominate it."""

from accounting.privacy_loss.base import Loss
from accounting.privacy_loss.dominating_pairs import dominating_losses, is_on_grid

__all__ = [
    "Loss",
    "dominating_losses",
    "is_on_grid",
]
