"""Battery: the clipped sum of an engine equals the obviously correct loop."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import dp_train
from tests.batteries import reference
from tests.batteries.cases import CASES, Case, Rows, precision
from tests.batteries.training import (
    LEARNING_RATE,
    behind_dropout,
    private,
    released_sum,
    weight_change,
    without_noise,
)

EXAMPLES = 7
POISONED = 3
"""The row that holds a NaN."""
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
"""Relative to the largest entry of the reference."""


def examples(case: Case, policy: str, count: int = EXAMPLES) -> Rows:
    """Fixed rows of the case, one of them poisoned, in the policy's float type."""
    x, y, weight = case.rows(np.random.default_rng(1), count)
    if count > POISONED:
        if case.is_float_input:
            x[POISONED].flat[0] = np.nan
        else:
            y[POISONED].flat[0] = np.nan

    def cast(a: Any) -> Any:
        is_float = a is not None and a.dtype.kind == "f"
        return a.astype(policy) if is_float else a

    rows = keras.tree.map_structure(cast, (x, y, weight), none_is_leaf=True)
    return rows[0], rows[1], rows[2]


def assert_close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    """Largest difference over all variables, relative to the largest entry."""
    assert [np.shape(a) for a in actual] == [np.shape(e) for e in expected], (
        f"{what}: shapes differ."
    )
    scale = max(float(np.max(np.abs(e))) for e in expected) or 1.0
    error = max(
        float(np.max(np.abs(np.asarray(a, np.float64) - e)))
        for a, e in zip(actual, expected, strict=True)
    )
    assert error <= tolerance * scale, (
        f"{what}: off by {error / scale:.3g} of the largest entry, allowed {tolerance}."
    )


class Expected:
    """A case's examples, and the references for any subset of them."""

    def __init__(self, name: str, policy: str) -> None:
        self.case = CASES[name]
        self.rows = examples(self.case, policy)
        keras.utils.set_random_seed(5)
        # Shaken, so that no bias is zero and a padding row has a gradient.
        shaking = np.random.default_rng(6)
        self.weights = [
            w + 0.1 * shaking.standard_normal(w.shape).astype(w.dtype)
            for w in self.case.build().get_weights()
        ]
        twin = reference.plain_twin(self.case, self.weights)
        self.per_example = [
            reference.example_gradients(twin, self.rows, b) for b in range(EXAMPLES)
        ]
        self.regularization = reference.regularization_gradients(twin)
        norms = [reference.norm(g) for g in self.per_example]
        assert not np.isfinite(norms[POISONED]), "The poisoned row must not be finite."
        # About half of the examples are above it, half below.
        self.l2_norm_clip = float(np.nanmedian(norms)) * 0.999

    def clipped_sum(self, indices: Any) -> reference.Gradients:
        """Reference over the chosen rows; zeros for none."""
        if len(indices) == 0:
            return [np.zeros_like(g) for g in self.per_example[0]]
        chosen = [self.per_example[b] for b in indices]
        return reference.clipped_sum(chosen, self.l2_norm_clip)

    def model(self, **options: Any) -> Any:
        """The private model of the case with the reference's weights."""
        losses = self.case.losses()
        model = private(
            self.case.build(), l2_norm_clip=self.l2_norm_clip, **losses, **options
        )
        model.set_weights(self.weights)
        return model


def assert_clipped_sum_equals_the_loop(
    name: str,
    engine: str,
    microbatch_size: int | str = "auto",
    policy: str = "float64",
    subsets: tuple[int, ...] = (EXAMPLES, 1, 0),
) -> None:
    """`clipped_gradients` on the first rows of a case, against the reference.

    Args:
        name: key of CASES.
        engine: name of the engine.
        microbatch_size: as in make_private.
        policy: "float64" (to 1e-10) or "float32" (to 1e-5).
        subsets: numbers of rows to try.
    """
    with precision(policy):
        expected = Expected(name, policy)
        model = expected.model(engine=engine, microbatch_size=microbatch_size)
        for count in subsets:
            chosen = range(count)
            rows = reference.picked(expected.rows, slice(0, count))
            clipped = dp_train.clipped_gradients(
                model, *rows, l2_norm_clip=expected.l2_norm_clip
            )
            what = f"{name}, {engine}, microbatch {microbatch_size}, {count} rows"
            assert_close(
                clipped.gradients, expected.clipped_sum(chosen), TOLERANCE[policy], what
            )
            data_free = [
                np.zeros(v.shape) if g is None else np.asarray(g)
                for g, v in zip(
                    clipped.data_free_gradients, model.trainable_variables, strict=True
                )
            ]
            assert_close(
                data_free,
                expected.regularization,
                TOLERANCE[policy],
                f"{what}, regularisers",
            )


def assert_right_or_refused(name: str, engine: str) -> None:
    """For what an engine need not know: the library's refusal names the engine.

    A low-level error, or a wrong sum, is neither.
    """
    try:
        assert_clipped_sum_equals_the_loop(name, engine)
    except dp_train.NotPrivateError as refusal:
        assert engine in str(refusal), f"The refusal does not name {engine!r}."


def assert_training_applies_the_clipped_sum(
    name: str, engine: str, microbatch_size: int | str = "auto"
) -> None:
    """Public `fit` and `train_on_batch` move float32 weights by the reference sum.

    weight change = -learning_rate * ((sum of clipped gradients) / B + regularisers)
    """
    policy = "float32"
    with precision(policy), without_noise():
        expected = Expected(name, policy)
        model = expected.model(
            engine=engine,
            microbatch_size=microbatch_size,
            learning_rate=LEARNING_RATE,
        )
        for drawn, batch_size in (([0, 1, 2, 3, 4, 5, 6], 4), ([5], 4), ([], 2)):
            released = released_sum(model, expected.rows, drawn, batch_size)
            assert_close(
                released,
                [
                    g + batch_size * r
                    for g, r in zip(
                        expected.clipped_sum(drawn),
                        expected.regularization,
                        strict=True,
                    )
                ],
                TOLERANCE[policy],
                f"{name}, {engine}, fit on rows {drawn}",
            )
        count = 4
        rows = reference.picked(expected.rows, slice(0, count))
        change = weight_change(model, lambda: model.train_on_batch(*rows))
        assert_close(
            [-count / LEARNING_RATE * c for c in change],
            [
                g + count * r
                for g, r in zip(
                    expected.clipped_sum(range(count)),
                    expected.regularization,
                    strict=True,
                )
            ],
            TOLERANCE[policy],
            f"{name}, {engine}, train_on_batch",
        )


def assert_result_does_not_depend_on_microbatch_size(name: str, engine: str) -> None:
    """The clipped sum is the reference whatever rows share a microbatch.

    Seven rows in chunks of 1 (each padded to two rows), of at most 3, of at most 16
    (one chunk), and in one chunk that fits.
    """
    for microbatch_size in ("auto", 1, 3, 16):
        assert_clipped_sum_equals_the_loop(
            name, engine, microbatch_size, subsets=(EXAMPLES, 0)
        )


def assert_random_layers_draw_per_example_and_step(
    engine: str, **compile_arguments: Any
) -> None:
    """Dropout has a mask for each example and each step.

    With 64 features and 8 equal examples, masks shared by the examples would make every
    entry of the sum all or nothing; independent ones do so with probability below
    2^-448, and two equal steps have one below 2^-100.
    """
    features, count = 64, 8
    model = behind_dropout(features, engine, **compile_arguments)
    x, y = np.ones((count, features), np.float32), np.zeros((count, 1), np.float32)
    sums = [
        np.asarray(
            dp_train.clipped_gradients(model, x, y, l2_norm_clip=1e6).gradients[0]
        )
        for _ in range(2)
    ]
    kept = 2.0 * count
    assert np.any((sums[0] > 0) & (sums[0] < kept)), "All examples share one mask."
    assert np.any(sums[0] != sums[1]), "Both steps drew the same masks."
