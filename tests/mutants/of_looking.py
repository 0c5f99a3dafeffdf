"""Bugs in what decides beside the noised updates: sizes of batches, eyes on results."""

from __future__ import annotations

from typing import Any
from unittest import mock

from dp_train.sizes import FixedSizes
from tests.mutants.mutant import Mutant


def any_sizes() -> Any:
    return mock.patch.object(FixedSizes, "check", lambda self, rows: None)


MUTANTS = {
    "padded to the longest": Mutant(
        "The longest example of a ready-made batch decides the size of all others.",
        any_sizes,
        "padding",
        "One long example moved the sum of the others by",
    ),
}
