"""What there is to say: the statement on a ledger, tradeoff curves, pictures."""

from accounting.report.statement import PrivacyReport, privacy_report

__all__ = [
    "PrivacyReport",
    "privacy_report",
]
