"""The accountant that training, calibration, the report and the command use if none is
named.

Both bounds on epsilon, from the law of the privacy loss, a ten-thousandth apart where
the grid allows it: so much more noise than needed is what the certificate costs.
"""

import functools

from accounting.pld import PldAccountant

DefaultAccountant = functools.partial(PldAccountant, relative_width=1e-4)
