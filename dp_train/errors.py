"""The errors that dp_train raises on purpose; each message names the fix."""

from accounting.calibrate import BudgetSpentError


class NotPrivateError(RuntimeError):
    """Something would break the privacy guarantee, so nothing was released."""


class PrivacyWarning(UserWarning):
    """The run goes on, but its guarantee is weaker than a reader may assume."""


__all__ = ["BudgetSpentError", "NotPrivateError", "PrivacyWarning"]
