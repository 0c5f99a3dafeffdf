"""Nested structures of tensors, in which None is a place without a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


def map_rows(function: Callable[[tf.Tensor], Any], structure: Any) -> Any:
    """`function` on every tensor of a structure; None stays None."""
    return keras.tree.map_structure(
        lambda t: None if t is None else function(t), structure, none_is_leaf=True
    )


def tensors(structure: Any) -> list[tf.Tensor]:
    """The tensors of a structure in order, without the Nones."""
    return [t for t in keras.tree.flatten(structure) if t is not None]


def restored(structure: Any, values: Sequence[Any]) -> Any:
    """`structure` with its tensors replaced, in order, by `values`."""
    remaining = iter(values)
    return map_rows(lambda _: next(remaining), structure)


def check_dense(rows: Any) -> None:
    """Refuses ragged and sparse tensors.

    Raises:
        ValueError: there are some; the message says how to make them dense.
    """
    ways = {
        tf.RaggedTensor: "x.to_tensor(shape=[None, length]), of one length for all",
        tf.SparseTensor: "tf.sparse.to_dense(x)",
    }
    for t in keras.tree.flatten(rows):
        for kind, way in ways.items():
            if isinstance(t, kind):
                raise ValueError(
                    f"The data holds a {kind.__name__} of shape {t.shape}. Gradients "
                    "of single examples are computed for dense tensors, in which each "
                    "example is a row. Map the dataset, or the arrays, through "
                    f"{way}."
                )


def row_count(rows: Any) -> tf.Tensor:
    """Number of rows, a scalar int32 tensor."""
    return tf.shape(tensors(rows)[0])[0]


def accumulate(
    step: Callable[[tf.Tensor], tuple[list[tf.Tensor], Any]], count: tf.Tensor
) -> tuple[list[tf.Tensor], Any]:
    """Runs step(0), ..., step(count - 1): adds the first results, joins the second.

    Args:
        step: maps a scalar int32 index to (sums, outputs), outputs [n, ...] with any
            n; traced once.
        count: number of steps, >= 0.

    Returns:
        (sums, outputs): zeros and no rows for count 0.
    """
    structure: list[Any] = []

    @tf.function(autograph=False)
    def flat_step(i: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        sums, outputs = step(i)
        structure[:] = [outputs]
        return sums, tensors(outputs)

    like_sums, like_outputs = flat_step.get_concrete_function(
        tf.TensorSpec([], tf.int32)
    ).structured_outputs

    def body(i: tf.Tensor, sums: list[Any], arrays: list[Any]) -> Any:
        added, outputs = flat_step(i)
        sums = [s + a for s, a in zip(sums, added, strict=True)]
        arrays = [a.write(i, o) for a, o in zip(arrays, outputs, strict=True)]
        return i + 1, sums, arrays

    _, sums, arrays = tf.while_loop(
        lambda i, *_: i < count,
        body,
        (
            tf.constant(0),
            [tf.zeros(s.shape, s.dtype) for s in like_sums],
            [
                tf.TensorArray(o.dtype, count, infer_shape=False, element_shape=o.shape)
                for o in like_outputs
            ],
        ),
        # Iterations in parallel would hold the gradients of several at once.
        parallel_iterations=1,
    )
    return sums, restored(structure[0], [_joined(a, count) for a in arrays])


def _joined(array: tf.TensorArray, count: tf.Tensor) -> tf.Tensor:
    """All rows; where there are none, unknown sizes are 0."""
    shape = array.element_shape
    empty = [0, *(size or 0 for size in shape[1:])]
    found = tf.cond(count > 0, array.concat, lambda: tf.zeros(empty, array.dtype))
    return tf.ensure_shape(found, [None, *shape[1:]])
