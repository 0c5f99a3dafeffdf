"""Bugs in what decides beside the noised updates: sizes of batches, eyes on results."""

from __future__ import annotations

from typing import Any
from unittest import mock

from accounting import Ledger
from dp_train.sizes import FixedSizes
from tests.mutants.mutant import Mutant


def any_sizes() -> Any:
    return mock.patch.object(FixedSizes, "check", lambda self, rows: None)


def nothing_remarked() -> Any:
    return mock.patch.object(Ledger, "remark", lambda self, caveat, detail: None)


def stops_forgotten() -> Any:
    return mock.patch.object(Ledger, "forgo", lambda self, count, detail: None)


MUTANTS = {
    "padded to the longest": Mutant(
        "The longest example of a ready-made batch decides the size of all others.",
        any_sizes,
        "padding",
        "One long example moved the sum of the others by",
    ),
    "decisions not reported": Mutant(
        "A callback decides on private figures, and the report does not say so.",
        nothing_remarked,
        "steering: decisions",
        "The report does not name TerminateOnNaN",
    ),
    "stop after looking taken as the plan": Mutant(
        "Training stopped after looking, and is reported as if it was planned so.",
        stops_forgotten,
        "steering: stops",
        "A stop was offered None",
    ),
}
