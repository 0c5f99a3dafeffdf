"""Bugs between an example and the clipped sum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import tensorflow as tf

from dp_train import clipping, effects, host
from dp_train.gradients import choose, objective, vectorized
from dp_train.gradients.objective import Objective
from dp_train.gradients.structures import accumulate, map_rows, row_count
from dp_train.kernels import factored
from dp_train.optimizers.dp_optimizer import DPOptimizer
from tests.mutants.mutant import Mutant, resealed, without_checks_of_inputs

_sum_clipped = clipping.sum_clipped


def _summing_by(function: Any) -> Any:
    return mock.patch.object(clipping, "sum_clipped", function)


def _mean(gradients: Any, is_real: Any) -> tuple[list[Any], Any]:
    """Mean over the rows that are real, and their number."""
    if is_real is None:
        is_real = tf.ones([tf.shape(gradients[0])[0]], tf.bool)
    count = tf.reduce_sum(tf.cast(is_real, gradients[0].dtype))
    means = []
    for g in gradients:
        rows = tf.reshape(is_real, [-1] + [1] * (g.shape.rank - 1))
        total = tf.reduce_sum(tf.where(rows, g, tf.zeros_like(g)), 0)
        means.append(total / tf.maximum(count, 1))
    return means, count


def batch_mean_clipped() -> Any:
    def of_mean(gradients: Any, l2_norm_clip: float, is_real: Any = None) -> Any:
        means, count = _mean(gradients, is_real)
        clipped = _sum_clipped([m[None] for m in means], l2_norm_clip)
        return [count * c for c in clipped]

    return _summing_by(of_mean)


def microbatch_mean_clipped() -> Any:
    def of_mean(gradients: Any, l2_norm_clip: float, is_real: Any = None) -> Any:
        means, _ = _mean(gradients, is_real)
        return _sum_clipped([m[None] for m in means], l2_norm_clip)

    return _summing_by(of_mean)


def not_clipped() -> Any:
    def ones(norms: tf.Tensor, l2_norm_clip: float) -> tf.Tensor:
        return tf.where(tf.math.is_finite(norms), tf.ones_like(norms), 0.0 * norms)

    return mock.patch.object(clipping, "clip_factors", ones)


def clip_per_layer() -> Any:
    def per_layer(gradients: Any, l2_norm_clip: float, is_real: Any = None) -> Any:
        return [_sum_clipped([g], l2_norm_clip, is_real)[0] for g in gradients]

    return _summing_by(per_layer)


def nan_let_through() -> Any:
    def scaled(gradients: Any, l2_norm_clip: float, is_real: Any = None) -> Any:
        norms = clipping.per_example_norms(gradients)
        factors = clipping.clip_factors(norms, l2_norm_clip)
        if is_real is not None:
            factors = tf.where(is_real, factors, tf.zeros_like(factors))
        return [tf.tensordot(tf.cast(factors, g.dtype), g, 1) for g in gradients]

    return _summing_by(scaled)


def norm_in_float16() -> Any:
    def half(gradients: Any) -> Any:
        halves = [tf.cast(g, tf.float16) for g in gradients]
        squares = [
            tf.reduce_sum(tf.square(h), list(range(1, h.shape.rank))) for h in halves
        ]
        return tf.cast(tf.sqrt(tf.add_n(squares)), tf.float64)

    return mock.patch.object(clipping, "per_example_norms", half)


def padding_counted() -> Any:
    def all_rows(gradients: Any, l2_norm_clip: float, is_real: Any = None) -> Any:
        return _sum_clipped(gradients, l2_norm_clip)

    return _summing_by(all_rows)


def weight_after_clip() -> Any:
    def weighted(
        objective: Any, rows: Any, keys: Any, l2_norm_clip: float, is_real: Any = None
    ) -> Any:
        x, y, weight = rows

        def one(b: tf.Tensor) -> Any:
            part = map_rows(lambda t: t[b : b + 1], ((x, y, None), keys, is_real))
            sums, outputs = vectorized.clipped_sum(
                objective, part[0], part[1], l2_norm_clip, part[2]
            )
            return [weight[b] * s for s in sums], outputs

        return accumulate(one, row_count(rows))

    return mock.patch.dict(choose.ENGINES, {"vectorized": weighted})


def regularizer_clipped() -> Any:
    return mock.patch.object(
        host, "without_regularization_losses", lambda model: nullcontext()
    )


def regularizer_averaged() -> Any:
    apply = DPOptimizer.release

    def averaging(self: Any, clipped: Any, *rest: Any) -> None:
        extras = [
            None if g is None else g / tf.cast(clipped.expected_batch_size, g.dtype)
            for g in clipped.data_free_gradients
        ]
        clipped = resealed(clipped, data_free_gradients=tuple(extras))
        apply(self, clipped, *rest)

    return mock.patch.object(DPOptimizer, "release", averaging)


@contextmanager
def divisor_of_actual_rows() -> Iterator[None]:
    seen: list[Any] = []
    clipped_sum, apply = choose.clipped_sum, DPOptimizer.release

    def counting(engine: str, objective: Any, rows: Any, *rest: Any) -> Any:
        seen[:] = [tf.maximum(row_count(rows), 1)]
        return clipped_sum(engine, objective, rows, *rest)

    def dividing(self: Any, clipped: Any, *rest: Any) -> None:
        clipped = resealed(clipped, expected_batch_size=seen[0])
        apply(self, clipped, *rest)

    with (
        without_checks_of_inputs(),
        mock.patch.object(choose, "clipped_sum", counting),
        mock.patch.object(DPOptimizer, "release", dividing),
    ):
        yield


def _keys_by(function: Any) -> Any:
    return mock.patch.object(Objective, "example_keys", function)


def mask_shared_by_examples() -> Any:
    example_keys = Objective.example_keys

    def shared(self: Objective, count: tf.Tensor) -> Any:
        keys = example_keys(self, count)
        return [tf.repeat(key[:1], count, axis=0) for key in keys]

    return _keys_by(shared)


def _secret_keys_by(function: Any) -> Any:
    return mock.patch.object(objective, "secret_keys", function)


def mask_same_at_every_step() -> Any:
    return _secret_keys_by(lambda count: tf.zeros([count, 2], tf.int32))


def mask_decided_by_a_seed() -> Any:
    def seeded(self: Objective, count: tf.Tensor) -> Any:
        keys = []
        for state in self.seed_states:
            seed = tf.cast(state.value, tf.int32)
            key = tf.random.stateless_uniform([count, 2], seed, 0, 2**30, tf.int32)
            keys.append(tf.cast(key, state.dtype))
        return keys

    return _keys_by(seeded)


def mask_that_knows_the_number_of_rows() -> Any:
    example_keys = Objective.example_keys

    def summed(self: Objective, count: tf.Tensor) -> Any:
        # As a key for the whole batch that is made of the keys of its rows.
        keys = example_keys(self, count)
        return [key + tf.reduce_sum(key, 0) for key in keys]

    return _keys_by(summed)


def python_in_the_step() -> Any:
    return mock.patch.object(host, "is_own_call", lambda function: True)


def metrics_read() -> Any:
    check = effects.check

    def forgetting(operations: Any, **arguments: Any) -> None:
        check(operations, **arguments | {"may_not_read": ()})

    return mock.patch.object(effects, "check", forgetting)


def rounding_of_norms_forgotten() -> Any:
    return mock.patch.object(factored, "gamma", lambda roundings, dtype: 0.0)


_MOVED_OR_REFUSED = "moved the sum|cannot be used for this model.*from the loop's"
"""By the battery, or before by the library, which tries its engine against the loop."""

MUTANTS = {
    "batch mean clipped": Mutant(
        "The mean of the batch is clipped instead of each example.",
        batch_mean_clipped,
        "sensitivity",
        _MOVED_OR_REFUSED,
    ),
    "microbatch mean clipped": Mutant(
        "The mean of each microbatch is clipped instead of each example.",
        microbatch_mean_clipped,
        "sensitivity with microbatches",
        _MOVED_OR_REFUSED,
    ),
    "examples not clipped": Mutant(
        "Gradients are summed as they are, except for those that are not finite.",
        not_clipped,
        "sensitivity of auto",
        "moved the sum",
    ),
    "clip per layer": Mutant(
        "Every layer may carry the whole of l2_norm_clip.",
        clip_per_layer,
        "sensitivity",
        "moved the sum",
    ),
    "weight after the clip": Mutant(
        "The sample weight multiplies the gradient that was already clipped.",
        weight_after_clip,
        "sensitivity",
        _MOVED_OR_REFUSED,
    ),
    "NaN let through": Mutant(
        "A gradient that is not finite is multiplied by zero instead of left out.",
        nan_let_through,
        "sensitivity",
        "moved the sum of 0 others by nan",
    ),
    "norm in float16": Mutant(
        "The norm is computed in float16, whose rounding lets gradients be too long.",
        norm_in_float16,
        "sensitivity",
        "moved the sum",
    ),
    "divisor by the actual batch size": Mutant(
        "The sum is divided by the number of rows drawn, which is secret.",
        divisor_of_actual_rows,
        "sensitivity",
        "moved the sum",
    ),
    "padding counted": Mutant(
        "The rows that fill up a microbatch of one count as examples.",
        padding_counted,
        "gradient in microbatches",
        "microbatch 1, 7 rows: off by",
    ),
    "regularizer clipped": Mutant(
        "The weight regulariser is clipped with every example.",
        regularizer_clipped,
        "gradient with regularizers",
        "regularizers, vectorized.*off by",
    ),
    "regularizer averaged": Mutant(
        "The gradient of the weight regulariser is divided by the batch size.",
        regularizer_averaged,
        "training with regularizers",
        "fit on rows .*off by",
    ),
    "mask shared by examples": Mutant(
        "All examples of a batch get one dropout mask.",
        mask_shared_by_examples,
        "random layers",
        "share one mask",
    ),
    "mask same at every step": Mutant(
        "The keys of the random layers do not change from step to step.",
        mask_same_at_every_step,
        "random layers",
        "same masks",
    ),
    "mask decided by a seed": Mutant(
        "The keys of the random layers follow from keras.utils.set_random_seed.",
        mask_decided_by_a_seed,
        "random layers: seed",
        # By the battery, or before by the white list: nothing of a step reads a seed.
        "A seed decides|reads a variable that is neither",
    ),
    "mask that knows the number of rows": Mutant(
        "The keys of the random layers are a sum over the rows of the batch.",
        mask_that_knows_the_number_of_rows,
        "random layers: rows",
        "moved the masks of others",
    ),
    "Python in the step": Mutant(
        "Any code of Python may run inside a step.",
        python_in_the_step,
        "effects: state",
        "a mean of the rows was kept",
    ),
    "rows in penalties": Mutant(
        "A regularizer may depend on the rows, though it is added after the noise.",
        without_checks_of_inputs,
        "effects: rows",
        "the regularizer read a mean of the rows",
    ),
    "metrics read": Mutant(
        "The loss may read what a metric wrote about the rows.",
        metrics_read,
        "effects: metrics",
        "the loss read a metric",
    ),
    "metrics read by a plain model": Mutant(
        "The learning rate of a plain model may read what a metric wrote.",
        metrics_read,
        "effects: metrics of a plain model",
        "the schedule read a metric",
    ),
    "rounding of norms forgotten": Mutant(
        "A norm that does not form the gradient has no term for its rounding.",
        rounding_of_norms_forgotten,
        "cancellation",
        r"Cancelling rows add \d",
    ),
}
