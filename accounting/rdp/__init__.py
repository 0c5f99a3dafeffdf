"""What Renyi divergences say: log-moments of the loss, and an upper bound from them."""

from accounting.rdp.accountant import RdpAccountant, delta_bounds, epsilon_bounds
from accounting.rdp.moments import Moments, moments_of, refusal

__all__ = [
    "Moments",
    "RdpAccountant",
    "delta_bounds",
    "epsilon_bounds",
    "moments_of",
    "refusal",
]
