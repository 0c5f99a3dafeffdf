"""Battery: one example more or less moves the released sum by at most the clip bound.

Deterministic: noise off, a chosen draw, and the public `fit`. No false alarms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tests.batteries.cases import precision
from tests.batteries.training import (
    LEARNING_RATE,
    private,
    released_sum,
    without_noise,
)

CLIPS = (0.1, 1.0, 10.0)
OTHERS = (0, 7, 15)
SLACK = 1e-5
EXPECTED_BATCH_SIZE = 8
SCALES = (1e-3, 1.0, 1e3, -1e3, 1e30, np.nan, np.inf, -np.inf)


def times(y_true: Any, y_pred: Any) -> Any:
    """A loss whose gradient is as large as its target: mean of y_true * y_pred."""
    return keras.ops.mean(y_true * y_pred, axis=-1)


@dataclass(frozen=True)
class Setting:
    """What is trained: 16 fixed examples, then one candidate for each scale.

    Attributes:
        max_weight: sample weights reach from 0.1 to this; None: unweighted.
        policy: Keras dtype policy.
        engine, microbatch_size: as in make_private.
    """

    max_weight: float | None = None
    policy: str = "float32"
    engine: str = "auto"
    microbatch_size: int | str = 4

    def model(self, l2_norm_clip: float) -> Any:
        """Two layers, so that both carry a part of the norm."""
        keras.utils.set_random_seed(7)
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(4, activation="tanh"),
                keras.layers.Dense(2, dtype="float32"),
            ]
        )
        return private(
            model,
            l2_norm_clip=l2_norm_clip,
            learning_rate=LEARNING_RATE,
            engine=self.engine,
            microbatch_size=self.microbatch_size,
            loss=times,
        )

    def rows(self) -> tuple[Any, Any, Any]:
        """max(OTHERS) others, a candidate for each scale, and two with equal inputs."""
        generator = np.random.default_rng(11)
        others = max(OTHERS)
        count = others + len(SCALES)
        x = generator.standard_normal((count, 3)).astype("float32")
        y = generator.uniform(1.0, 3.0, (count, 2)).astype("float32")
        y[:others] *= np.geomspace(0.1, 100.0, others, dtype=np.float32)[:, None]
        for i, scale in enumerate(SCALES):
            y[others + i] *= np.float32(scale)
        # A huge input, not only a huge target.
        huge = np.array([[1e30, -1e30, 1e30]], np.float32)
        x, y = np.concatenate([x, huge, huge * np.nan]), np.concatenate([y, y[:2]])
        weight = None
        if self.max_weight is not None:
            weight = np.geomspace(self.max_weight, 0.1, len(x)).astype("float32")
            weight[others:] = self.max_weight
        return x, y, weight


def _norm(gradients: list[np.ndarray[Any, Any]]) -> float:
    return float(np.linalg.norm(np.concatenate([g.ravel() for g in gradients])))


def assert_one_example_moves_the_sum_by_at_most_the_clip(
    setting: Setting, l2_norm_clip: float
) -> None:
    """Adds each candidate, and a duplicate, to 0, 7 and 15 others.

    ||(weight change with) - (weight change without)|| * B <= C (1 + 1e-5)
    """
    with precision(setting.policy), without_noise():
        model = setting.model(l2_norm_clip)
        rows = setting.rows()
        candidates = range(max(OTHERS), len(rows[0]))
        largest = 0.0
        for others in OTHERS:
            alone = np.arange(others)
            without = released_sum(model, rows, alone, EXPECTED_BATCH_SIZE)
            for candidate in [*candidates, *([0] if others else [])]:
                drawn = np.append(alone, candidate)
                with_it = released_sum(model, rows, drawn, EXPECTED_BATCH_SIZE)
                difference = [a - b for a, b in zip(with_it, without, strict=True)]
                moved = _norm(difference)
                # A NaN must fail, so the claim is not written as `moved > bound`.
                assert moved <= l2_norm_clip * (1 + SLACK), (
                    f"Example {candidate} moved the sum of {others} others by "
                    f"{moved:.6g}, more than l2_norm_clip={l2_norm_clip}."
                )
                largest = max(largest, moved)
        assert largest >= 0.99 * l2_norm_clip, (
            f"No example moved the sum by more than {largest:.3g}, so the bound "
            f"{l2_norm_clip} was not put to the test."
        )


def assert_neighbours_differ_by_at_most_the_clip(
    l2_norm_clip: float,
    microbatch_size: int | str = "auto",
    engine: str = "vectorized",
) -> None:
    """The quick form: one clip, with weights, which the mutants are tried on."""
    setting = Setting(max_weight=50.0, engine=engine, microbatch_size=microbatch_size)
    assert_one_example_moves_the_sum_by_at_most_the_clip(setting, l2_norm_clip)
