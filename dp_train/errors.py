"""The errors that dp_train raises on purpose; each message names the fix."""

from accounting import BudgetSpentError


class NotPrivateError(Exception):
    """Something would break the privacy guarantee, so nothing was released.

    An Exception by direct descent: AutoGraph hides others behind its own class.
    """


class PrivacyWarning(UserWarning):
    """The run goes on, but its guarantee is weaker than a reader may assume."""


__all__ = ["BudgetSpentError", "NotPrivateError", "PrivacyWarning"]
