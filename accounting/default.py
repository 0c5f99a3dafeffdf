"""The accountant that training, calibration, the report and the command use if none is
named.

Both bounds on epsilon, from the law of the privacy loss: how far they are apart is what
the certificate costs in noise.
"""

from accounting.pld import PldAccountant

DefaultAccountant = PldAccountant
