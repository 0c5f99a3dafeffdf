"""What a traced step may do besides computing: a white list of its ops.

The clipped sum and its noise bound what a step says about an example through the
weights. Nothing bounds what a step says through anything else that it changes: running
statistics kept by Python, a queue, a variable beside the path. And nothing bounds what
an example does to the next update through a value that was written without noise, as a
metric is. So of the ops of a step that have an effect only these are let through: reads
of what no step writes without noise, checks, prints, host calls of this library, and
writes to what may change.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from dp_train import host
from dp_train.errors import NotPrivateError

_HARMLESS = frozenset(
    """Assert CheckNumerics CheckNumericsV2 Empty LogicalAssert Print PrintV2
    StatelessRandomGetAlg StatelessRandomGetKeyCounterAlg""".split()
)
_READS_NO_VARIABLE = frozenset(
    "LookupTableFindV2 LookupTableSizeV2 VarIsInitializedOp VariableShape".split()
)
"""Ops that read no variable's value; what writes to a look-up table is refused."""
_READS = frozenset("ReadVariableOp ResourceGather ResourceGatherNd".split())
_WRITES = (
    "Assign",
    "ResourceApply",
    "ResourceScatter",
    "ResourceSparseApply",
    "ResourceStridedSliceAssign",
)
"""First letters of the ops that write to a variable, and do nothing else."""
_DRAWS = (
    "Fractional",
    "Multinomial",
    "ParameterizedTruncated",
    "Random",
    "RngReadAndSkip",
    "RngSkip",
    "Stateful",
    "TruncatedNormal",
)
"""First letters of random ops whose numbers follow from a seed and their own count."""

Variables = Iterable[Any]


def check(
    operations: Iterable[tf.Operation],
    *,
    what: Callable[[host.Effect], str],
    may_write: Variables = (),
    may_not_read: Variables = (),
    may_only_read: Variables | None = None,
    readers: Container[int] | None = None,
    feeds: Container[str] = (),
) -> None:
    """Refuses ops whose effect is not on the white list.

    Args:
        operations: of one graph.
        what: says of an effect whose it is, as the start of a sentence.
        may_write: variables that may be written.
        may_not_read: variables that are written without noise.
        may_only_read: where it is unknown what else writes: all that may be read.
        readers: ids of the ops that the last two are about; None: all.
        feeds: types of further ops that may be there, as what brings the batch.

    Raises:
        NotPrivateError: there is such an op; the message names it.
    """
    writable, forbidden = _handles(may_write), _handles(may_not_read)
    readable = None if may_only_read is None else _handles(may_only_read)
    for effect in host.effects(operations):
        given, kind = set(effect.handles), effect.type
        is_free = kind in _HARMLESS or kind in _READS_NO_VARIABLE or kind in feeds
        if is_free or host.is_own_call(effect.function):
            continue
        if kind in _READS:
            is_reader = readers is None or id(effect.op) in readers
            if not is_reader or not effect.is_needed:
                continue
            if given & forbidden:
                raise _of_read(what(effect), effect)
            if readable is not None and not given <= readable:
                raise _of_unknown_read(what(effect), effect)
        elif kind.startswith(_WRITES):
            if not given or not given <= writable:
                raise _of_write(what(effect), effect)
        elif kind.startswith(_DRAWS):
            raise _of_draw(what(effect), effect)
        else:
            raise _of_other(what(effect), effect)


def beyond_checks(operations: Iterable[tf.Operation]) -> Iterator[host.Effect]:
    """Effects of ops of one graph, other than checks and prints."""
    return (e for e in host.effects(operations) if e.type not in _HARMLESS)


def check_free_of(results: Any, rows: Any) -> None:
    """Refuses penalties that depend on the rows: they are added after the noise.

    Args:
        results: tensors, nested; None is skipped.
        rows: tensors of the batch, nested.

    Raises:
        NotPrivateError: one of the results is made of the rows.
    """
    made = _made_of(rows)
    for t in keras.tree.flatten(results):
        if t is not None and id(t.op) in made:
            raise _of_rows("A regularizer or", t)


def check_inputs(
    operations: Sequence[tf.Operation], rows: Any, *, allowed: Any, before: int
) -> None:
    """Refuses an update that is made of the rows other than by the clipped sum.

    Args:
        operations: of the release.
        rows: tensors of the batch, nested.
        allowed: what the release may have of them.
        before: number of ops of the graph that were made before the release.

    Raises:
        NotPrivateError: learning rate, constraint or optimizer are given something
            else that was made of the rows.
    """
    if not operations:
        return
    made = _made_of(rows)
    earlier = set(map(id, operations[0].graph.get_operations()[:before]))
    known = set()
    for t in keras.tree.flatten(allowed):
        parts = (t.values, t.indices) if isinstance(t, tf.IndexedSlices) else (t,)
        known |= set(map(id, parts))
    for op in operations:
        for t in op.inputs:
            is_of_rows = id(t.op) in earlier and id(t.op) in made
            if is_of_rows and id(t) not in known:
                raise _of_rows("The inner optimizer, its learning rate or", t)


def _made_of(rows: Any) -> set[int]:
    """ids of the ops behind the rows."""
    found: set[int] = set()
    leaves = [t for t in keras.tree.flatten(rows) if t is not None]
    waiting = [op for t in leaves for op in t.consumers()]
    while waiting:
        op = waiting.pop()
        if id(op) not in found:
            found.add(id(op))
            waiting += [use for t in op.outputs for use in t.consumers()]
    return found


def _of_rows(what: str, t: tf.Tensor) -> NotPrivateError:
    return NotPrivateError(
        f"{what} a constraint depends on the examples of the batch "
        f"({t.op.type}, {t.op.name}): a layer kept a tensor, and it was read there. "
        "What is added behind the clip has no bound and no noise. Compute it from "
        "weights alone, or make it a part of the loss (add_loss)."
    )


def _handles(variables: Variables) -> set[int]:
    return {id(host.handle_of(v)) for v in variables}


def _of_read(what: str, effect: host.Effect) -> NotPrivateError:
    return NotPrivateError(
        f"{what} reads a variable that a metric, or another part of the step, writes "
        f"without noise ({effect.type}, {effect.name}). What it holds of the data "
        "would steer the next update, and neither the clip nor the noise bounds that. "
        "Read metrics in callbacks, and keep what training depends on in constants, "
        "weights or the optimizer."
    )


def _of_unknown_read(what: str, effect: host.Effect) -> NotPrivateError:
    return NotPrivateError(
        f"{what} reads a variable that is neither a weight of the model nor the "
        f"optimizer's ({effect.type}, {effect.name}). Nothing shows here what else "
        "writes to it, and data that is written there without noise would steer the "
        "next update. Use a constant, a weight that is not trainable, or assign "
        "optimizer.learning_rate."
    )


def _of_write(what: str, effect: host.Effect) -> NotPrivateError:
    return NotPrivateError(
        f"{what} writes to a variable ({effect.type}, {effect.name}). What it keeps of "
        "the data would be read in a later step, or saved, without noise. Use "
        "layers without running statistics, as GroupNormalization; let a metric write "
        "into variables of its own (add_variable); and draw by a SeedGenerator that is "
        "an attribute of its layer, or without one, since others cannot be told from "
        "what keeps data."
    )


def _of_draw(what: str, effect: host.Effect) -> NotPrivateError:
    return NotPrivateError(
        f"{what} draws random numbers by tf.random ({effect.type}, {effect.name}). "
        "They follow from a seed and from how many were drawn before, so that one "
        "example more would change what others get. Draw by keras.random with a "
        "keras.random.SeedGenerator, whose keys are made secret here."
    )


def _of_other(what: str, effect: host.Effect) -> NotPrivateError:
    is_host_call = "PyFunc" in effect.type
    hidden = (
        "runs Python code" if is_host_call else "runs an op that does not only compute"
    )
    return NotPrivateError(
        f"{what} {hidden} ({effect.type}, {effect.name}). What it does with the "
        "examples, or keeps of them, is hidden from the clip and from the noise. Write "
        "it with ops of TensorFlow or keras.ops that keep nothing, or do it in the "
        "input pipeline, for each example by itself."
    )
