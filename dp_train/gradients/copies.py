"""Several copies of each example: rows [n, K, ...] of x, flat rows [n K, ...].

The loss of an example is the mean over its K copies of the loss of each copy alone,
with the example's own label and weight, and so is its gradient: averaged over the
copies, then clipped once (De et al. 2022, arXiv:2204.13650, augmentation multiplicity).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from dp_train.gradients.structures import map_rows

_Rows = tuple[Any, Any, Any]


def flat_rows(rows: _Rows, copies: int) -> _Rows:
    """A row for each copy: those of an example follow each other.

    Args:
        rows: x [n, K, ...] if K > 1, y and sample_weight [n, ...].
        copies: K.
    """
    if copies == 1:
        return rows
    x, *others = rows
    y, sample_weight = map_rows(lambda t: tf.repeat(t, copies, axis=0), tuple(others))
    return flat(x, copies), y, sample_weight


def flat(structure: Any, copies: int) -> Any:
    """Tensors [n, K, ...] as [n K, ...]; as they are where K is 1."""
    if copies == 1:
        return structure

    def one(t: tf.Tensor) -> tf.Tensor:
        sizes = _sizes(t)[2:]
        return tf.reshape(t, [tf.shape(t)[0] * copies, *sizes])

    return map_rows(one, structure)


def by_example(structure: Any, copies: int) -> Any:
    """Tensors [n K, ...] as [n, K, ...]; as they are where K is 1."""
    if copies == 1:
        return structure

    def one(t: tf.Tensor) -> tf.Tensor:
        return tf.reshape(t, [tf.shape(t)[0] // copies, copies, *_sizes(t)[1:]])

    return map_rows(one, structure)


def mean_of_copies(structure: Any, copies: int) -> Any:
    """Tensors [n K, ...], averaged over the copies of each example: [n, ...]."""
    if copies == 1:
        return structure
    return map_rows(lambda t: tf.reduce_mean(t, 1), by_example(structure, copies))


def flat_specs(rows: _Rows, copies: int) -> _Rows:
    """Specs of flat rows; only shapes and dtypes of rows are read."""
    x, y, sample_weight = rows
    if copies == 1:
        return rows
    flat_x = map_rows(lambda t: tf.TensorSpec([None, *t.shape[2:]], t.dtype), x)
    return flat_x, y, sample_weight


def for_metrics(rows: _Rows, outputs: Any, copies: int) -> tuple[_Rows, Any]:
    """Rows and outputs of a step in which every copy counts as an example.

    Args:
        rows: (x, y, sample_weight).
        outputs: ([n] losses, predictions, hidden on them), [n, K, ...] if K > 1.
        copies: K.
    """
    losses, *predicted = outputs
    return flat_rows(rows, copies), (losses, *flat(tuple(predicted), copies))


def _sizes(t: tf.Tensor) -> list[Any]:
    """Of every axis: a number where it is known."""
    dynamic = tf.shape(t)
    return [dynamic[i] if s is None else s for i, s in enumerate(t.shape)]
