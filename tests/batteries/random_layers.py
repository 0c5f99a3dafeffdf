"""Battery: what random layers draw is secret, and each example's is its own.

A model that keeps half of 1,024 ones of every example and adds up what is kept: the
clipped sum, over 2, is for each feature the number of examples whose mask kept it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from scipy import stats

import dp_train
from dp_train.noise.draw import replaced_host_source
from tests.batteries.training import behind_dropout

FEATURES, EXAMPLES = 1024, 8
FALSE_ALARM = 1e-6


class _FixedKeys:
    """A host source whose words never change; for what is drawn from them only."""

    name = "fixed"

    def normals(self, count: int, stddev: float, dtype: Any) -> Any:
        """[count] zeros: nothing here is released."""
        return np.zeros(count, dtype)

    def words(self, count: int) -> Any:
        """[count] int64 words."""
        return np.arange(1, 1 + count, dtype=np.int64) << 33


@contextmanager
def fixed_keys() -> Iterator[None]:
    """Inside the block the secret of every step is one and the same."""
    with replaced_host_source(_FixedKeys()):
        yield


def kept_counts(engine: str, weights: Any, **options: Any) -> Any:
    """[FEATURES] numbers of examples whose mask kept a feature.

    Args:
        engine: of make_private.
        weights: [n] 1 for an example, 0 for one whose own gradient is 0.
        options: of the model.
    """
    model = behind_dropout(FEATURES, engine, **options)
    weights = np.asarray(weights, np.float32)
    x = np.ones((len(weights), FEATURES), np.float32)
    y = np.zeros((len(weights), 1), np.float32)
    total = dp_train.clipped_gradients(
        model, x, y, weights, l2_norm_clip=1e6, expected_batch_size=EXAMPLES
    ).gradients[0]
    return np.asarray(total)[:, 0] / 2


def assert_no_seed_decides_a_mask(engine: str) -> None:
    """Equal by chance with a probability below 2^-1024."""
    counts = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        counts.append(kept_counts(engine, np.ones(EXAMPLES)))
    assert np.any(counts[0] != counts[1]), "A seed decides the masks."


def assert_a_row_more_moves_no_mask_of_others(engine: str, **options: Any) -> None:
    """With the secret held fixed, the masks of the rows before it stay as they are."""
    with fixed_keys():
        before = kept_counts(engine, np.ones(EXAMPLES), **options)
        after = kept_counts(engine, [*np.ones(EXAMPLES), 0.0], **options)
    moved = int(np.sum(before != after))
    assert not moved, f"A row more moved the masks of others at {moved} features."


def assert_a_row_more_changes_no_law_of_others(engine: str, **options: Any) -> None:
    """Wherever the row stands, each count follows Binomial(8, 1/2), and so do both.

    Pearson's test on 1,024 counts at a false-alarm rate of 1e-6 each: it would catch a
    kept share of 0.53 in place of 0.5 with probability 0.9.
    """
    law = stats.binom.pmf(np.arange(EXAMPLES + 1), EXAMPLES, 0.5) * FEATURES
    for place in (0, EXAMPLES // 2, None):
        weights = np.ones(EXAMPLES)
        if place is not None:
            weights = np.insert(weights, place, 0.0)
        counts = kept_counts(engine, weights, **options)
        found = np.bincount(counts.astype(int), minlength=EXAMPLES + 1)
        distance = float(np.sum((found - law) ** 2 / law))
        assert distance < stats.chi2.isf(FALSE_ALARM, EXAMPLES), (
            f"With a row at place {place} the counts are {found}, not {law}."
        )
