"""The obviously correct clipped sum: one example at a time, in NumPy float64.

Uses Keras and TensorFlow's tape only; nothing of dp_train.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.batteries.cases import Case, Rows

Gradients = list[np.ndarray[Any, np.dtype[np.float64]]]


def picked(rows: Rows, indices: Any) -> Rows:
    """The rows at `indices` of every array."""
    x, y, weight = keras.tree.map_structure(
        lambda a: None if a is None else a[indices], rows, none_is_leaf=True
    )
    return x, y, weight


def plain_twin(case: Case, weights: list[Any]) -> keras.Model:
    """A plain Keras model of the case with these weights."""
    model = case.build()
    model.compile("sgd", **case.losses())
    model.set_weights(weights)
    return model


def _regularization(model: keras.Model) -> Any:
    """Sum of the weight regularisers' losses, from the weights alone."""
    return sum(
        v.regularizer(v) for v in model.trainable_variables if v.regularizer is not None
    )


def example_gradients(model: keras.Model, rows: Rows, index: int) -> Gradients:
    """Gradient of one example's loss, without the weight regularisers."""
    x, y, weight = keras.tree.map_structure(
        lambda a: None if a is None else tf.convert_to_tensor(a),
        picked(rows, slice(index, index + 1)),
        none_is_leaf=True,
    )
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight)
        total = tf.reduce_sum(loss) - _regularization(model)
    gradients = tape.gradient(total, [v.value for v in variables])
    return [
        np.zeros(v.shape) if g is None else tf.convert_to_tensor(g).numpy().astype("f8")
        for g, v in zip(gradients, variables, strict=True)
    ]


def norm(gradients: Gradients) -> float:
    """l2 norm over all variables together."""
    return float(np.linalg.norm(np.concatenate([g.ravel() for g in gradients])))


def clipped_sum(per_example: list[Gradients], l2_norm_clip: float) -> Gradients:
    """Sum of gradients scaled to norm at most l2_norm_clip, NaN and inf dropped."""
    total = [np.zeros_like(g) for g in per_example[0]]
    for gradients in per_example:
        size = norm(gradients)
        if not np.isfinite(size):
            continue
        factor = l2_norm_clip / size if size > l2_norm_clip else 1.0
        total = [t + factor * g for t, g in zip(total, gradients, strict=True)]
    return total


def regularization_gradients(model: keras.Model) -> Gradients:
    """Gradients of the weight regularisers; zero where a variable has none."""
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        total = tf.convert_to_tensor(_regularization(model))
    gradients = tape.gradient(
        total,
        [v.value for v in variables],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return [tf.convert_to_tensor(g).numpy().astype("f8") for g in gradients]
