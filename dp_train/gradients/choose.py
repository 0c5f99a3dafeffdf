"""Which engine computes the clipped sum, and in chunks of how many rows.

A batch that fits in memory is one chunk. Beyond that, its rows are shared out to equal
chunks: clipped sums are accumulated, noise is added once. No result depends on the
choice, only memory and speed do.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from dp_train import host
from dp_train.errors import NotPrivateError
from dp_train.gradients import bookkeeping, loop, vectorized
from dp_train.gradients.certificate import (
    NotCertifiedError,
    certify,
    reason_of,
)
from dp_train.gradients.compiled import Program
from dp_train.gradients.copies import flat_specs
from dp_train.gradients.coupled import check_loss_is_of_one_example
from dp_train.gradients.objective import Objective, Outputs, Rows, weight_values
from dp_train.gradients.structures import (
    accumulate,
    map_rows,
    restored,
    row_count,
    tensors,
)
from dp_train.kernels.contribution import UnsupportedSiteError

ENGINES: dict[str, Callable[..., Any]] = {
    "bookkeeping": bookkeeping.clipped_sum,
    "vectorized": vectorized.clipped_sum,
    "loop": loop.clipped_sum,
}
"""From the fastest to the most general."""
_FEWEST_ROWS = 2
"""Kernels and maps of TensorFlow 2.21 lose shapes, or crash, on fewer rows."""
MEMORY_BUDGET = 192 * 2**20
"""Bytes that the per-example gradients of one chunk may take."""


def check_engine_name(gradients: str) -> str:
    """`gradients` if it is "auto" or names an engine.

    Raises:
        ValueError: it does not.
    """
    if gradients != "auto" and gradients not in ENGINES:
        raise ValueError(
            f"gradients must be one of 'auto', {', '.join(map(repr, ENGINES))}. "
            f"Received: gradients={gradients!r}. It names the engine that computes "
            "per-example gradients. Use 'auto'."
        )
    return gradients


Alone = tuple[tuple[keras.layers.Layer, str], ...]
"""(layer, reason) of layers that run one example at a time."""


@dataclass(frozen=True)
class Plan:
    """Which engine computes per-example gradients, how, and why no faster one.

    Attributes:
        engine: a key of ENGINES.
        refused: (engine, reason) of those that were tried before.
        rows: one line a variable; empty unless the engine is "bookkeeping".
        numbers_per_row: numbers in memory for each example of a chunk.
        alone: (layer, reason) of those that the engine runs one example at a time.
        program: the engine, compiled by XLA; None if it is not.
        not_compiled: why, where that was asked for.
        notes: further lines to print.
        is_reached: for each variable, whether the loss reaches it; () for all.
    """

    engine: str
    refused: tuple[tuple[str, str], ...]
    rows: tuple[bookkeeping.PlanRow, ...]
    numbers_per_row: int
    alone: Alone = ()
    program: Program | None = None
    not_compiled: str = ""
    notes: tuple[str, ...] = ()
    is_reached: tuple[bool, ...] = ()

    @property
    def compute(self) -> Callable[..., Any]:
        """What gives the clipped sum of a chunk."""
        return self.program or ENGINES[self.engine]

    def __str__(self) -> str:
        lines = [f"per-example gradients by engine {self.engine!r}"]
        lines += [f"  not {name!r}: {reason}" for name, reason in self.refused]
        if self.program:
            lines.append(f"  compiled by XLA for {self.program.rows} rows at a time")
        if self.not_compiled:
            lines.append(f"  not compiled by XLA: {self.not_compiled}")
        lines += [
            f"  layer {layer.name!r} one example at a time: {reason}"
            for layer, reason in self.alone
        ]
        lines += [f"  {note}" for note in self.notes]
        lines.append(f"  {4 * self.numbers_per_row:,} bytes for each example")
        if self.rows:
            header = ("variable", "meets data at", "rule", "kept numbers")
            table = [header] + [
                (r.variable, r.sites or "-", r.rule, f"{r.kept_per_row:,}")
                for r in self.rows
            ]
            widths = [max(len(row[i]) for row in table) for i in range(len(header))]
            for row in table:
                cells = (c.ljust(w) for c, w in zip(row, widths, strict=True))
                lines.append("  " + "  ".join(cells).rstrip())
        return "\n".join(lines)


def make_plan(gradients: str, objective: Objective, example: Rows, spec: Rows) -> Plan:
    """The fastest engine that agrees with the loop on made-up rows.

    Args:
        gradients: "auto", or the only engine to consider.
        objective: the loss of one example.
        example: (x, y, sample_weight) of some rows; only shapes and dtypes are read.
        spec: the same with None for sizes that vary.

    Raises:
        NotPrivateError: the engine asked for cannot be used, a weight would get noise
            only that Keras itself would train, or an example alone has no gradient.
    """
    one_copy = dataclasses.replace(objective, copies=1)
    flat_example = flat_specs(example, objective.copies)
    check_loss_is_of_one_example(one_copy, flat_example)
    refused: list[tuple[str, str]] = []
    for name in ENGINES if gradients == "auto" else [gradients]:
        try:
            rows: tuple[bookkeeping.PlanRow, ...] = ()
            alone: Alone = ()
            if name == "bookkeeping":
                rows, alone = plan_rows(objective, spec)
                objective = dataclasses.replace(
                    objective, alone=[layer for layer, _ in alone]
                )
            if name != "loop":
                certify(ENGINES[name], objective, example)
        except (UnsupportedSiteError, NotCertifiedError) as error:
            refused.append((name, reason_of(error)))
            continue
        reached = reached_weights(one_copy, flat_example, rows)
        numbers = _numbers_per_row(name, objective, rows)
        return Plan(name, tuple(refused), rows, numbers, alone, is_reached=reached)
    ((name, reason),) = refused
    raise NotPrivateError(
        f"gradients={name!r} cannot be used for this model: {reason}. Its clipped sums "
        "would not be bounded as promised. Use gradients='auto'."
    )


def reached_weights(
    objective: Objective, example: Rows, rows: Sequence[bookkeeping.PlanRow]
) -> tuple[bool, ...]:
    """For each weight, whether the loss of an example reaches it.

    Others are left alone, as Keras does, and refused if Keras would train them.

    Weights are tensors in our loss. What looks for a tf.Variable instead finds none.

    Args:
        objective: the loss of one example.
        example: (x, y, sample_weight) of some rows; only shapes and dtypes are read.
        rows: of the plan of book-keeping; empty if another engine was chosen.

    Raises:
        NotPrivateError: Keras would train one of the others, which is named; or the
            loss reaches none.
    """
    ours = [row.rule != bookkeeping.NOT_REACHED for row in rows]
    keras_own: list[bool] = []
    in_functions: list[str] = []

    def trace_ours(rows: Rows) -> tf.Tensor:
        keys = [key[0] for key in objective.example_keys(tf.constant(1))]
        weights = weight_values(objective.variables)
        row = map_rows(lambda t: t[0], rows)
        gradients, _ = objective.differentiated(weights, row, keys)
        ours[:] = [g is not None for g in gradients]
        return tf.zeros([])

    def trace_keras_own(rows: Rows) -> tf.Tensor:
        keras_own[:] = objective.reached_by_autodiff(rows)
        graph = tf.compat.v1.get_default_graph()
        for v in objective.variables:
            if any("PartitionedCall" in op.type for op in host.users_of(v, graph)):
                in_functions.append(v.path)
        return tf.zeros([])

    one = map_rows(lambda t: tf.TensorSpec([1, *t.shape[1:]], t.dtype), example)
    if not ours:
        tf.function(trace_ours, autograph=False).get_concrete_function(one)
    if all(ours):
        return tuple(ours)
    tf.function(trace_keras_own, autograph=False).get_concrete_function(one)
    lost = [
        v.path
        for v, is_ours, is_keras_own in zip(
            objective.variables, ours, keras_own, strict=True
        )
        if is_keras_own and not is_ours
    ]
    cached = [path for path in lost if path in in_functions]
    if cached:
        raise NotPrivateError(
            f"Keras would train {', '.join(cached)}, but the weights are read by a "
            "function under tf.function, as a method of a layer, which was traced "
            "before. It goes on reading the variables themselves, where each example's "
            "gradient cannot be found. Call it without tf.function: the training step "
            "is compiled anyway."
        )
    if lost:
        raise NotPrivateError(
            f"Keras would train {', '.join(lost)}, but an example's gradient does not "
            "reach there, so that private training would leave them as they are. A "
            "function with a gradient of its own, as tf.custom_gradient, that reads a "
            "weight from outside does that. Hand it the weights as arguments."
        )
    if not any(ours):
        raise NotPrivateError(
            f"The loss reaches none of the {len(ours)} trainable weights. Nothing "
            "would be trained, though every step is charged. Look for a stop_gradient, "
            "or for predictions that were rounded, between weights and loss."
        )
    return tuple(ours)


def compiled(plan: Plan, objective: Objective, example: Rows, rows: int) -> Plan:
    """The plan with its engine compiled by XLA, or with the reason why it is not.

    Args:
        plan: of make_plan.
        objective: the loss of one example.
        example: (x, y, sample_weight) of some rows; only shapes and dtypes are read.
        rows: of a chunk.
    """
    program = Program(ENGINES[plan.engine], rows)
    try:
        certify(program, objective, example)
    except (UnsupportedSiteError, NotCertifiedError, tf.errors.OpError) as error:
        why = reason_of(error)
        warnings.warn(
            f"jit_compile=True is not used for the gradients of this model: {why}. "
            "They are computed without XLA, as private and as exact. Leave "
            "jit_compile out.",
            UserWarning,
            stacklevel=2,
        )
        return dataclasses.replace(plan, program=None, not_compiled=why)
    return dataclasses.replace(plan, program=program, not_compiled="")


def plan_rows(
    objective: Objective, spec: Rows
) -> tuple[tuple[bookkeeping.PlanRow, ...], Alone]:
    """Traces the book-keeping engine for a batch of unknown size.

    Returns:
        A row for each variable, and the layers that must run alone, with the reason.
    """
    found: list[bookkeeping.PlanRow] = []
    alone: dict[keras.layers.Layer, str] = {}
    like = map_rows(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), spec)

    def trace(rows: Rows) -> tf.Tensor:
        found[:] = bookkeeping.plan(
            dataclasses.replace(objective, alone=list(alone)), rows
        )
        return tf.zeros([])

    while True:
        try:
            tf.function(trace, autograph=False).get_concrete_function(like)
            return tuple(found), tuple(alone.items())
        except UnsupportedSiteError as error:
            layer = error.layer
            if layer is None or layer in alone:
                raise
            alone[layer] = reason_of(error)
            # What two layers of a class need, the others most likely need too.
            same = [
                s for s in host.sublayers(objective.model) if type(s) is type(layer)
            ]
            if sum(s in alone for s in same) > 1:
                alone |= dict.fromkeys(same, alone[layer])


def _numbers_per_row(
    engine: str, objective: Objective, rows: tuple[bookkeeping.PlanRow, ...]
) -> int:
    """Numbers in memory for each example of a chunk."""
    if engine == "bookkeeping":
        kept = sum(row.kept_per_row for row in rows)
        return kept + max(row.scratch_per_row for row in rows)
    if engine == "vectorized":
        return objective.copies * sum(math.prod(v.shape) for v in objective.variables)
    return 0


def microbatch_rows(
    microbatch_size: int | str, numbers_per_row: int, expected_batch_size: float
) -> int | None:
    """Rows of a chunk, or None where the whole batch is one chunk.

    Args:
        microbatch_size: rows, or "auto" to keep the per-example gradients of a chunk
            within MEMORY_BUDGET.
        numbers_per_row: of the plan.
        expected_batch_size: B; a Poisson batch exceeds B + 6 sqrt(B) + 6 with
            probability below 1e-6, and then merely takes more memory.

    Raises:
        ValueError: not "auto" and not a positive integer.
    """
    if microbatch_size == "auto":
        rows = max(1, MEMORY_BUDGET // max(1, 4 * numbers_per_row))
        largest = expected_batch_size + 6 * math.sqrt(expected_batch_size) + 6
        return None if largest <= rows else rows
    if (
        isinstance(microbatch_size, bool)
        or not isinstance(microbatch_size, int)
        or microbatch_size < 1
    ):
        raise ValueError(
            f"microbatch_size must be 'auto' or a positive integer. Received: "
            f"microbatch_size={microbatch_size!r}. It is the number of rows whose "
            "gradients are in memory at once and changes no result. Use 'auto'."
        )
    return microbatch_size


def clipped_sum(
    compute: Callable[..., Any],
    objective: Objective,
    rows: Rows,
    l2_norm_clip: float,
    microbatch: int | None,
) -> tuple[list[tf.Tensor], Outputs]:
    """Sum over the rows of gradients clipped to l2 norm at most l2_norm_clip.

    Args:
        compute: of the plan.
        objective: the loss of one example.
        rows: (x, y, sample_weight), [n, ...]; n may be 0. With K > 1 copies x is
            [n, K, ...].
        l2_norm_clip: C > 0.
        microbatch: most rows of a chunk, or None for one chunk.

    Returns:
        (sums, outputs): one tensor a variable; losses [n], predictions [n, ...], or
        [n, K, ...].
    """
    count = row_count(rows)
    given = map_rows(tf.convert_to_tensor, (rows, objective.example_keys(count)))

    def part(given: Any, size: tf.Tensor) -> tuple[list[tf.Tensor], Outputs]:
        # Apart: what draws from the keys must not seem to come from the rows.
        part_rows, part_keys = (_padded_to_fewest(part, size) for part in given)
        is_real = tf.range(tf.maximum(size, _FEWEST_ROWS)) < size
        sums, outputs = compute(objective, part_rows, part_keys, l2_norm_clip, is_real)
        return sums, map_rows(lambda t: t[:size], outputs)

    if microbatch is None:
        return part(given, count)
    chunks = -(-count // microbatch)
    size, more = count // tf.maximum(chunks, 1), count % tf.maximum(chunks, 1)

    def start(i: tf.Tensor) -> tf.Tensor:
        return i * size + tf.minimum(i, more)

    def chunk(i: tf.Tensor) -> tuple[list[tf.Tensor], Outputs]:
        # As equal as can be: no chunk is padded to the size of another.
        first, end = start(i), start(i + 1)
        return part(map_rows(lambda t: t[first:end], given), end - first)

    return accumulate(chunk, chunks)


def _padded_to_fewest(given: Any, size: tf.Tensor) -> Any:
    """Rows of zeros behind an empty batch or a single row."""
    every = tensors(given)
    if not every:
        return given

    def padded() -> list[tf.Tensor]:
        missing = _FEWEST_ROWS - size
        return [
            tf.pad(t, [[0, missing]] + [[0, 0]] * (t.shape.rank - 1)) for t in every
        ]

    enough = tf.cond(size < _FEWEST_ROWS, padded, lambda: every)
    return restored(
        given,
        [
            tf.ensure_shape(t, [None, *like.shape[1:]])
            for t, like in zip(enough, every, strict=True)
        ],
    )
