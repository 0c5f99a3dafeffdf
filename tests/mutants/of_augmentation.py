"""Bugs in augmentation: which gradient is clipped, and where seeds come from."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import numpy as np

from dp_train import draws
from dp_train.gradients import choose
from dp_train.gradients.copies import by_example, flat_rows, mean_of_copies
from tests.mutants.mutant import Mutant


def copies_clipped_one_by_one() -> Any:
    clipped_sum = choose.clipped_sum

    def function(
        compute: Any, objective: Any, rows: Any, clip: Any, microbatch: Any
    ) -> Any:
        copies = objective.copies
        alone = dataclasses.replace(objective, copies=1)
        sums, (losses, *predicted) = clipped_sum(
            compute, alone, flat_rows(rows, copies), clip, microbatch
        )
        by_row = by_example(tuple(predicted), copies)
        return sums, (mean_of_copies(losses, copies), *by_row)

    return mock.patch.object(choose, "clipped_sum", function)


def seeds_from_a_seed() -> Any:
    def keys(count: int) -> Any:
        return np.random.default_rng(1).integers(2**31, size=(count, 2), dtype=np.int32)

    return mock.patch.object(draws, "keys_at_once", keys)


MUTANTS = {
    "copies clipped one by one": Mutant(
        "Each copy of an example is clipped by itself, and they are added up.",
        copies_clipped_one_by_one,
        "augmentation: sensitivity",
        "copies moved the sum of",
    ),
    "augmentation decided by a seed": Mutant(
        "What examples become follows from a seed in the code.",
        seeds_from_a_seed,
        "augmentation: seeds",
        "their seeds repeat",
    ),
}
