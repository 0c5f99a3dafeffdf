"""Static shapes that a layer claims are checked when the step runs.

The proof that examples stay apart (gradients/separation.py) computes with static
shapes. `Tensor.set_shape` writes what it likes there, and nothing checks it: a layer
that gives [b / 2, 2 n] out as [b, n] would pass as one that keeps examples apart.
"""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf

from dp_train import host
from dp_train.gradients.separation import ancestors

_GIVEN = frozenset(["Placeholder", "ReadVariableOp"])
"""What a graph cannot infer; nobody in the graph made it either."""


def checked_at_run_time(
    value: tf.Tensor, outputs: Iterable[tf.Tensor], ends: Iterable[tf.Tensor] = ()
) -> tf.Tensor:
    """The value, which cannot be had if a static shape behind the outputs is false.

    Args:
        value: what is needed of the graph.
        outputs: what the proof was about.
        ends: where it stopped; their own shapes are checked.
    """
    needed = ancestors(outputs, {id(t.op) for t in ends})
    checks = [_check(t, shape) for t, shape in _claimed(value.graph, needed)]
    with tf.control_dependencies(checks):
        return tf.identity(value)


def _check(t: tf.Tensor, claimed: tf.TensorShape) -> tf.Operation:
    """Raises where a tensor has another shape than is claimed of it."""
    if host.is_compiled():
        # XLA knows no assertions, and looks at this while it compiles. Elsewhere
        # TensorFlow 2.21 would believe it, and not make the comparisons below.
        return tf.ensure_shape(t, claimed).op
    sizes = {i: size for i, size in enumerate(claimed) if size is not None}
    # Without tf.shape, which gives the claim itself where it is of all sizes.
    actual = tf.raw_ops.Shape(input=t)
    is_true = tf.equal(tf.raw_ops.Rank(input=t), claimed.rank)
    if sizes:
        picked = tf.gather(actual, list(sizes))
        are_true = tf.reduce_all(tf.equal(picked, list(sizes.values())))
        is_true = tf.logical_and(is_true, are_true)
    message = (
        f"{t.name} was given the static shape {claimed} by set_shape, and has another: "
        "what is known of it would not keep examples apart. Use tf.ensure_shape, or "
        "leave set_shape out. The shape is"
    )
    return tf.raw_ops.Assert(condition=is_true, data=[message, actual])


def _claimed(
    graph: tf.Graph, needed: set[int]
) -> list[tuple[tf.Tensor, tf.TensorShape]]:
    """Tensors of whose shape more is said than a copy of the graph infers."""
    ops = [op for op in graph.get_operations() if id(op) in needed]
    with tf.Graph().as_default() as copy:
        given = {
            t.name: tf.compat.v1.placeholder(t.dtype, t.shape)
            for op in ops
            if op.type in _GIVEN
            for t in op.outputs
        }
        tf.graph_util.import_graph_def(graph.as_graph_def(), given, name="copy")
    found = []
    for op in ops:
        if op.type in _GIVEN:
            continue
        # This op claims a shape of its input, and does not look.
        is_claim = op.type == "PlaceholderWithDefault"
        twin = copy.get_operation_by_name(f"copy/{op.name}")
        inferred = twin.inputs if is_claim else twin.outputs
        found += [
            (value, t.shape)
            for t, value, copied in zip(
                op.outputs, op.inputs if is_claim else op.outputs, inferred, strict=True
            )
            if _says_more(t.shape, copied.shape)
        ]
    return found


def _says_more(shape: tf.TensorShape, inferred: tf.TensorShape) -> bool:
    """Whether a shape has a rank or a size that the inferred one has not."""
    if shape.rank is None or inferred.rank is None:
        return shape.rank is not None
    return any(
        size is not None and other is None
        for size, other in zip(shape, inferred, strict=True)
    )
