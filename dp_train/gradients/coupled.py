"""Losses that compare examples: an example alone says nothing to them.

The gradient of an example is that of its own loss. A loss that contrasts examples
(pairs, ranks, correlations over the batch) has none there: training would release
noise only. It is told by made-up rows: together they have a gradient, alone none has.
"""

from __future__ import annotations

import math
import warnings

import keras
import tensorflow as tf

from dp_train import host
from dp_train.errors import NotPrivateError
from dp_train.gradients.certificate import (
    FAILURES,
    made_up_rows,
    nothing_drawn,
    shaken,
)
from dp_train.gradients.objective import Objective, Rows
from dp_train.gradients.structures import map_rows, tensors
from dp_train.made_up import ROWS

_NOTHING = 1e-4
"""Of the gradient of all rows: less than that in each row alone is a rounding."""
_SHAKES = 1.0, 10.0, 100.0
"""How far weights are moved, one after the other, until a row has a gradient."""
_EQUAL = 1e-3
"""Of the largest loss: differences of losses are equal up to that."""


def check_loss_is_of_one_example(objective: Objective, example: Rows) -> None:
    """Refuses losses without a gradient on one example, and warns of coupled ones.

    A sum, or a mean, of losses f of single rows has, whatever f and the rows,

        L(a, b) - L(c, b) = L(a, d) - L(c, d)

    Args:
        objective: the loss of one example.
        example: (x, y, sample_weight) of some rows; only shapes and dtypes are read.

    Raises:
        NotPrivateError: no made-up row has a gradient alone, all together have.
    """
    rows = made_up_rows(example)
    with nothing_drawn(objective, rows) as quiet:
        try:
            _check(quiet, rows)
        except FAILURES:
            return  # what fails on made-up rows is told by whoever needs them


def _check(objective: Objective, rows: Rows) -> None:
    """The same where nothing is drawn."""
    hides_masks: list[bool] = []
    like = map_rows(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), rows)

    def trace(weights: list[tf.Tensor], rows: Rows) -> tuple[tf.Tensor, tf.Tensor]:
        found, loss, y_pred = objective.of_rows(weights, rows, [])
        hides_masks[:] = map(host.has_mask, keras.tree.flatten(y_pred))
        squares = [
            tf.reduce_sum(tf.square(tf.cast(g, tf.float64)))
            for g in found
            if g is not None
        ]
        size = tf.sqrt(tf.add_n([tf.zeros([], tf.float64), *squares]))
        return tf.cast(loss, tf.float64), size

    specs = [tf.TensorSpec(v.shape, v.dtype) for v in objective.variables]
    function = tf.function(trace, autograph=False).get_concrete_function(specs, like)

    def of(weights: list[tf.Tensor], *indices: int) -> tuple[float, float]:
        chosen = map_rows(lambda t: tf.gather(t, indices), rows)
        loss, size = function(*weights, *tensors(chosen))
        return float(loss), float(size)

    largest = 0.0
    for times in _SHAKES:
        weights = shaken(objective, seed=4, times=times)
        together = of(weights, *range(ROWS))[1]
        sizes = [of(weights, i)[1] for i in range(ROWS)]
        alone = max(filter(math.isfinite, sizes), default=0.0)
        if alone > _NOTHING * together:
            break
        largest = max(largest, together if math.isfinite(together) else 0.0)
    else:
        if largest > 0:
            raise NotPrivateError(
                "The loss has no gradient on one example alone, though it has one on "
                f"{ROWS} together: it compares examples, as contrastive, ranking and "
                "correlation losses do. Each example's own gradient is clipped here, "
                "so that nothing but noise would be released. Put what is compared "
                "into one example (pairs, or all rows of a user, along an axis behind "
                "the first), or use a loss that an example has by itself."
            )
        return
    pairs = [of(weights, *pair)[0] for pair in ((0, 2), (1, 2), (0, 1), (1, 1))]
    mixed = pairs[0] - pairs[1] - pairs[2] + pairs[3]
    if any(hides_masks) or not abs(mixed) > _EQUAL * max(map(abs, pairs)):
        return  # a mask of Keras normalises over the batch, and is no comparison
    warnings.warn(
        "Part of the loss compares examples, or is normalised over all of them: on "
        "made-up rows it is no sum of losses of each (load balancing of experts, Dice "
        "over a batch and layers that mix examples are such). Each example is trained "
        "here on the loss that it has alone. If another one is meant, put what belongs "
        "together into one example.",
        UserWarning,
        stacklevel=2,
    )
