"""The package `accounting` that came with dp_train, or an error that says which it is.

Users have packages of that name, and Python takes the first that it finds.
"""

from __future__ import annotations

import accounting

# No other package of that name has all of them.
_OURS = ("DefaultAccountant", "UnverifiedSamplingEvent", "__version__")

if not all(hasattr(accounting, name) for name in _OURS):
    place = getattr(accounting, "__file__", None) or list(accounting.__path__)
    raise ImportError(
        f"`import accounting` finds {place}, which is not the package that came with "
        "dp_train. Every epsilon is computed with that one, and yours hides it. Rename "
        "yours, or start Python where it is not found first.",
        name="accounting",
    )

__version__ = accounting.__version__
