"""Per-example clipping read off the traced graph: one forward, one backward pass.

1. Run the unmodified model on the whole batch with each weight replaced by an identity
   of it, and the model's own loss on each example's predictions alone.
2. Follow each identity through ops that read no data to the ops that mix it with data:
   its sites (dp_train/kernels has one rule for each family of ops). A layer with ops
   that no rule knows is run one example at a time (gradients/alone.py).
3. One backward pass gives the cotangents of the sites' outputs; operand and cotangent
   give each example's gradient norm, and then the clipped sum.

Lee and Kifer 2020 (arXiv:2009.03106) and Bu et al. 2023 (arXiv:2210.00038) do this with
rules for each class of layers; on the graph a handful of ops covers most layers.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dp_train import clipping, host
from dp_train.gradients import separation
from dp_train.gradients.alone import AloneCall, owner, recorded_spans, run_alone
from dp_train.gradients.claims import checked_at_run_time
from dp_train.gradients.copies import by_example, flat, flat_rows, mean_of_copies
from dp_train.gradients.objective import Objective, Outputs, Rows, weight_values
from dp_train.gradients.structures import map_rows, restored, row_count, tensors
from dp_train.gradients.tables import TableCall, read_by_row
from dp_train.kernels.contribution import (
    Contribution,
    Kept,
    RowsRead,
    UnsupportedSiteError,
    together,
)
from dp_train.kernels.registry import KERNELS, ONE_ROW_AN_EXAMPLE

Call = AloneCall | TableCall

NOT_REACHED = "left as it is"
"""The rule of a weight that the loss does not reach."""
_REARRANGING = frozenset(
    ["Identity", "Cast", "Reshape", "ExpandDims", "Squeeze", "Transpose", "Neg"]
)
"""Ops that permute entries or change a sign, so that norms stay."""


@dataclass(frozen=True)
class Site:
    """Where a weight meets data: `op` reads it as input number `operand`.

    Attributes:
        is_rearranged: the operand is the weight itself, entries permuted or negated;
            False where it was computed from weights.
    """

    op: tf.Operation
    operand: int
    is_rearranged: bool

    @property
    def weight(self) -> tf.Tensor:
        """The weight as the op sees it."""
        return self.op.inputs[self.operand]


def clipped_sum(
    objective: Objective,
    rows: Rows,
    keys: list[tf.Tensor],
    l2_norm_clip: float,
    is_real: tf.Tensor | None = None,
) -> tuple[list[tf.Tensor], Outputs]:
    """Sum of clipped gradients, and what the metrics need; as in `vectorized`.

    Only while tracing a graph.

    Raises:
        UnsupportedSiteError: a weight is used in a way that no kernel knows.
    """
    traced, outputs = _traced(objective, rows, keys)
    return traced.clipped_sum(l2_norm_clip, is_real), outputs


def clipped_sum_of_call(
    objective: Objective,
    rows: Rows,
    y_pred: Any,
    reads: Sequence[Sequence[tf.Tensor]],
    keys: Sequence[tf.Tensor],
    l2_norm_clip: float,
) -> tuple[list[tf.Tensor], tuple[bool, ...]]:
    """Sum of clipped gradients of a forward pass that somebody else traced.

    Args:
        objective: the loss of one example.
        rows: (x, y, sample_weight) that the model was called on, [b, ...] with an
            unknown b.
        y_pred: what the call returned.
        reads: for each variable, the tensors that its values were read to.
        keys: what its random layers draw from: secret, and new at every step.
        l2_norm_clip: C > 0.

    Returns:
        (sums, is_reached): for each variable, the sum, and whether the loss reaches it.

    Raises:
        UnsupportedSiteError: a weight is used in a way that no kernel knows.
    """
    predictions = tensors((y_pred, host.hidden_on(y_pred)))
    kinds = separation.check(tensors(rows[0]), predictions, keys=keys)
    with (
        host.without_regularization_losses(objective.model),
        keras.StatelessScope(),
    ):
        losses = _losses(objective, rows, y_pred)
    losses = checked_at_run_time(losses, predictions, keys)
    traced = _PerExample(
        losses, reads, tensors(rows[0]), kinds, separation.ancestors(predictions)
    )
    # Rows of weight 0 are no examples: they fill up batches of less than two.
    weights = [tf.reshape(w, [tf.shape(w)[0], -1]) for w in tensors(rows[2])]
    is_real = None
    if weights:
        is_real = tf.reduce_any(tf.concat([tf.not_equal(w, 0) for w in weights], 1), 1)
    is_reached = tuple(c is not None for c in traced.contributions)
    return traced.clipped_sum(l2_norm_clip, is_real), is_reached


@dataclass(frozen=True)
class PlanRow:
    """How one variable's per-example gradients are computed.

    Attributes:
        variable: its path.
        sites: ops at which it meets data.
        rule: of the kernel; NOT_REACHED where the loss does not reach it.
        kept_per_row: numbers in memory for each example until the sum.
        scratch_per_row: numbers in memory for each example while they are computed.
    """

    variable: str
    sites: str
    rule: str
    kept_per_row: int
    scratch_per_row: int


def plan(objective: Objective, rows: Rows) -> list[PlanRow]:
    """What clipped_sum would do for each variable.

    Raises:
        UnsupportedSiteError: a weight is used in a way that no kernel knows; its
            `layer` is the one to run alone, if any.
    """
    keys = objective.example_keys(row_count(rows))
    with recorded_spans(objective.model) as spans:
        try:
            traced, _ = _traced(objective, rows, keys)
        except UnsupportedSiteError as error:
            if error.op is not None:
                error.layer = owner(error.op, spans)
            raise
    found = []
    for variable, sites, contribution in zip(
        objective.variables, traced.sites, traced.contributions, strict=True
    ):
        places = collections.Counter(sites)
        found.append(
            PlanRow(
                variable.path,
                ", ".join(f"{n} x {op}" if n > 1 else op for op, n in places.items()),
                NOT_REACHED if contribution is None else contribution.rule,
                0 if contribution is None else contribution.kept_per_row,
                0 if contribution is None else contribution.scratch_per_row,
            )
        )
    return found


def _traced(
    objective: Objective, rows: Rows, keys: Sequence[tf.Tensor]
) -> tuple[_PerExample, Outputs]:
    """One forward and one backward pass of the unmodified model on all rows."""
    if objective.copies > 1 and (objective.alone or objective.tables):
        raise UnsupportedSiteError(
            "a layer that must run one example at a time, where each has several "
            "augmented copies"
        )
    rows = map_rows(_with_unknown_size, rows)
    weights = weight_values(objective.variables)
    reads = [[weight] for weight in weights]
    calls: list[Call] = []
    with host.without_recomputation():
        with run_alone(objective, keys, calls), read_by_row(objective, calls):
            outputs, kinds = _forward(objective, weights, rows, keys, calls)
        # Layers that run alone are called once more.
        traced = _PerExample(outputs[0], reads, tensors(rows), kinds, None, calls)
    traced.read_by_row([table.index for table in objective.tables])
    return traced, outputs


class _PerExample:
    """One backward pass, and what it says about every weight.

    Attributes:
        contributions: per-example gradients of each weight; None if not reached.
        sites: for each weight, the names of what reads it.
    """

    def __init__(
        self,
        losses: tf.Tensor,
        reads: Sequence[Sequence[tf.Tensor]],
        data: Sequence[tf.Tensor],
        kinds: separation.Kinds,
        forward: set[int] | None,
        calls: Sequence[Call] = (),
    ) -> None:
        """Finds the sites, differentiates, and asks the kernels.

        Args:
            losses: [b].
            reads: for each weight, the tensors that hold its value.
            data: what the losses depend on besides.
            kinds: where each tensor of the forward pass holds the examples.
            forward: ids of the ops of the forward pass; None: all.
            calls: of layers that were mapped over examples, or read by row.
        """
        batch = self._batch = tf.shape(losses)[0]
        self._weights = [weight for weight, *_ in reads]
        with_data = _ops_with_data(data)
        # In the order of creation: two weights of a recurrent cell then have the
        # cotangents of their uses joined in one order, hence once.
        places = {id(op): i for i, op in enumerate(losses.graph.get_operations())}
        found = [_sites(of_weight, with_data, forward) for of_weight in reads]
        for sites in found:
            sites.sort(key=lambda site: places[id(site.op)])
        outputs = {id(s.op.outputs[0]): s.op.outputs[0] for ss in found for s in ss}
        outputs |= {
            id(t): t for call in calls for t in call.outputs if t.dtype.is_floating
        }

        def have_equal_rows(x: tf.Tensor, y: tf.Tensor) -> bool:
            kind = kinds.get(id(x))
            is_along_rows = isinstance(kind, separation.Examples) and kind.axis == 0
            return is_along_rows and kind == kinds.get(id(y))

        with host.rows_known(have_equal_rows):
            gradients = tf.gradients(losses, list(outputs.values()))
        cotangents = {
            output: tf.convert_to_tensor(gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None
        }
        reached = [
            [s for s in sites if id(s.op.outputs[0]) in cotangents] for sites in found
        ]
        blocks = {
            id(s.op): _rows_an_example(s.op, kinds) for sites in reached for s in sites
        }
        from_calls = [call.contributions(cotangents) for call in calls]
        self.sites = [[s.op.type for s in sites] for sites in reached]
        for call, contributions in zip(calls, from_calls, strict=True):
            for names, contribution in zip(self.sites, contributions, strict=True):
                if contribution is not None:
                    names.append(call.layer.name)
        self._by_row: frozenset[int] = frozenset()
        self.contributions, self._operands = zip(
            *(
                _contribution(
                    of_weight,
                    sites,
                    cotangents,
                    batch,
                    blocks,
                    [k for k in kept if k is not None],
                )
                for of_weight, sites, *kept in zip(
                    reads, reached, *from_calls, strict=True
                )
            ),
            strict=True,
        )

    def read_by_row(self, tables: Sequence[int]) -> None:
        """Sums over these weights hold the rows that were read, as IndexedSlices.

        Raises:
            UnsupportedSiteError: something else reads one of them.
        """
        self._by_row = frozenset(tables)
        for i in tables:
            is_by_row = isinstance(self.contributions[i], RowsRead | None)
            if self._weights[i].consumers() or not is_by_row:
                raise UnsupportedSiteError("more than its layer reads the table")

    def clipped_sum(
        self, l2_norm_clip: float, is_real: tf.Tensor | None
    ) -> list[tf.Tensor | tf.IndexedSlices]:
        """Sum of the gradients, each clipped, in the shapes of the weights."""
        if all(c is None for c in self.contributions):
            raise UnsupportedSiteError("the loss reaches no weight")

        def sums_of(norms: tf.Tensor, is_finite: tf.Tensor | None) -> list[tf.Tensor]:
            factors = clipping.clip_factors(norms, l2_norm_clip)
            keeps = is_finite
            if is_real is not None:
                factors = tf.where(is_real, factors, tf.zeros_like(factors))
                keeps = None if keeps is None else tf.logical_and(keeps, is_real)
            return self._weighted_sums(factors, keeps)

        if host.is_compiled():
            # XLA squares while it sums, so float64 is no second pass; and its float32
            # sums are sequential, in which a large entry would hide many small ones.
            # It compiles anew for each value of what it needs inside a branch.
            norms = self._norms(is_wide=True)
            return sums_of(norms, tf.math.is_finite(norms))
        quick = self._norms(is_wide=False)
        is_finite = tf.math.is_finite(quick)

        def carefully() -> list[tf.Tensor]:
            # Wide only where needed: the roundings of the two differ, and those of an
            # example may not depend on the others.
            norms = tf.where(is_finite, quick, self._norms(is_wide=True))
            return sums_of(norms, tf.math.is_finite(norms))

        # A finite norm has finite entries only; then nothing need be left unread.
        sums = tf.cond(
            tf.reduce_all(is_finite), lambda: sums_of(quick, None), carefully
        )
        for i in self._by_row:
            shape = self._weights[i].shape
            of_table = self.contributions[i]
            ids = tf.zeros([0], tf.int32) if of_table is None else of_table.flat_ids
            sums[i] = tf.IndexedSlices(sums[i], ids, tf.constant(shape.as_list()))
        return sums

    def _norms(self, is_wide: bool) -> tf.Tensor:
        """[b] float64 norms, from squares in float64 or in float32 (inf above 1e19)."""
        reached = [c for c in self.contributions if c is not None]
        norms = tf.sqrt(tf.add_n([c.squared_norms(is_wide) for c in reached]))
        # Not one norm a position: each example has one.
        return tf.reshape(norms, tf.reshape(self._batch, [1]))

    def _weighted_sums(
        self, factors: tf.Tensor, keeps: tf.Tensor | None
    ) -> list[tf.Tensor]:
        """sum_b factors_b * gradient_b, in the shape of each weight."""
        sums = []
        for i, contribution in enumerate(self.contributions):
            weight, operand = self._weights[i], self._operands[i]
            if i not in self._by_row:
                total = _in_shape_of_weight(
                    weight, contribution, operand, factors, keeps
                )
            elif contribution is None:
                total = tf.zeros([0, weight.shape[1]], weight.dtype)
            else:
                total = contribution.weighted_rows(factors, keeps)
            sums.append(total)
        return sums


def _with_unknown_size(t: tf.Tensor) -> tf.Tensor:
    """The tensor with its batch size hidden: no other axis is mistaken for it."""
    shape = [None, *t.shape[1:]]
    return tf.compat.v1.placeholder_with_default(t, shape)


def _forward(
    objective: Objective,
    weights: Sequence[tf.Tensor],
    rows: Rows,
    keys: Sequence[tf.Tensor],
    calls: Sequence[Call],
) -> tuple[Outputs, separation.Kinds]:
    """Losses [b] of each example alone, predictions and what is hidden on them.

    Copies of an example are K rows of the model's batch, one after the other.

    Args:
        keys: [b, 2] for each seed state, or [b, K, 2].
        calls: those made around layers, once the model has been called.
    """
    copies = objective.copies
    of_copies = flat_rows(rows, copies)
    x, keys = of_copies[0], flat(keys, copies)
    # Random layers draw per example by themselves, in order: the key of the first row
    # serves them all, and tells nothing about how many there are.
    batch_keys = [key[0] for key in keys]
    model = objective.model
    if host.recurrent_layers(model) and not all(
        t.shape[1:].is_fully_defined() for t in tensors(x)
    ):
        raise UnsupportedSiteError("a recurrent layer over an unknown number of steps")
    mapping = [
        *zip(objective.variables, weights, strict=True),
        *zip(objective.seed_states, batch_keys, strict=True),
    ]
    with (
        host.without_regularization_losses(model),
        host.unrolled_recurrence(model),
        host.inlined_convolutions(model),
        host.dilations_by_example(),
        keras.StatelessScope(mapping, collect_losses=True) as scope,
    ):
        y_pred = host.call_model(model, x, objective.training)
        if scope.losses:
            raise UnsupportedSiteError("a layer adds a loss of its own (add_loss)")
        predicted = y_pred, host.hidden_on(y_pred)
        by_rows = by_example(predicted, copies)
        outputs = [
            *tensors(by_rows),
            *(t for c in calls for t in c.elements),
        ]
        apart = [t for c in calls for t in c.outputs]
        secret = [*batch_keys, *keys]
        kinds = separation.check(tensors(rows[0]), outputs, apart, secret)
        losses = mean_of_copies(_losses(objective, of_copies, y_pred), copies)
    losses = checked_at_run_time(losses, outputs, [*apart, *secret])
    return (losses, *by_rows), kinds


def _losses(objective: Objective, rows: Rows, y_pred: Any) -> tf.Tensor:
    """[b] the model's own loss on each example alone."""
    if names := host.foreign_attributes(y_pred):
        raise UnsupportedSiteError(f"predictions carry {', '.join(names)}, no tensors")
    given = (*rows, y_pred, host.hidden_on(y_pred))
    graph = tensors(y_pred)[0].graph
    forward = {id(op) for op in graph.get_operations()}

    elements = [tf.identity(t) for t in tensors(given)]
    first = len(tensors(rows))
    is_asked = [i >= first and t.dtype.is_floating for i, t in enumerate(elements)]

    def one(elements: list[tf.Tensor]) -> list[tf.Tensor]:
        x, y, weight, y_pred, hidden = restored(given, [e[None] for e in elements])
        y_pred = host.with_hidden(y_pred, hidden)
        body = tf.compat.v1.get_default_graph()
        before = len(body.get_operations())
        loss = host.compute_loss(objective.model, x, y, y_pred, weight)
        made = body.get_operations()[before:]
        if any(map(host.has_foreign_gradient, made)):
            raise UnsupportedSiteError("the loss has a gradient of its own")
        total = tf.reduce_sum(loss)
        if not any(map(host.has_own_gradient, made)):
            return [total]
        # Behind the map it would not be asked: what the map did is differentiated.
        asked = list(itertools.compress(elements, is_asked))
        found = tf.gradients(total, asked, unconnected_gradients="zero")
        return [total, *map(tf.convert_to_tensor, found)]

    # Only by the elements may the loss reach the batch.
    try:
        losses, *cotangents = host.vectorized_map(one, elements)
    except NotImplementedError as error:
        raise UnsupportedSiteError(f"the loss cannot be mapped ({error})") from error
    ends = {t.op for t in elements}
    found = separation.ancestors([losses, *cotangents], map(id, ends))
    needed = found - set(map(id, ends))
    if needed & forward & _ops_with_data(tensors(rows)):
        raise UnsupportedSiteError(
            "the loss reads what the layers computed, other than the predictions"
        )
    reads = [
        op
        for op in graph.get_operations()
        if id(op) in needed - forward and op.type == "ReadVariableOp"
    ]
    if reads:
        raise UnsupportedSiteError("the loss reads a variable")
    if cotangents:
        asked = itertools.compress(elements, is_asked)
        losses = _with_gradient(losses, list(asked), cotangents)
    return losses


def _with_gradient(
    losses: tf.Tensor, inputs: list[tf.Tensor], cotangents: list[tf.Tensor]
) -> tf.Tensor:
    """Losses [b] whose gradients by inputs [b, ...] are known."""

    @tf.custom_gradient
    def known(*_: tf.Tensor) -> Any:
        def gradients(upstream: tf.Tensor) -> list[tf.Tensor]:
            return [
                tf.reshape(tf.cast(upstream, c.dtype), [-1] + [1] * (c.shape.rank - 1))
                * c
                for c in cotangents
            ]

        return tf.identity(losses), gradients

    result: tf.Tensor = known(*inputs)
    return result


def _rows_an_example(op: tf.Operation, kinds: separation.Kinds) -> int:
    """Rows along the first axis that each example has in the inputs of an op."""
    found = [kinds.get(id(t)) for t in op.inputs]
    if not any(isinstance(k, separation.Examples) for k in found):
        found = [kinds.get(id(t)) for t in op.outputs]
    examples = {k for k in found if isinstance(k, separation.Examples)}
    if any(k.axis for k in examples):
        raise UnsupportedSiteError(
            f"{op.type} reads examples that lie along another axis than the first", op
        )
    return max((k.blocks for k in examples), default=1)


def _ops_with_data(data: Sequence[tf.Tensor]) -> set[int]:
    """ids of the ops that depend on the data, downstream of it."""
    found: set[int] = set()
    waiting = [op for t in data for op in t.consumers()]
    while waiting:
        op = waiting.pop()
        is_new = id(op) not in found
        if is_new and not all(separation.known(t) is not None for t in op.outputs):
            found.add(id(op))
            waiting += [c for output in op.outputs for c in output.consumers()]
    return found


def _sites(
    reads: Sequence[tf.Tensor], with_data: set[int], forward: set[int] | None
) -> list[Site]:
    """Every op that mixes the weight, or what is made of weights alone, with data.

    Each once, by however many ways the weight gets there.

    Args:
        reads: tensors that hold the weight's value.
        with_data: ids of the ops that depend on the data.
        forward: ids of the ops to look at; None: all.
    """
    found: dict[tuple[int, int], Site] = {}
    made_of_it = {id(t): t for t in reads}
    waiting = list(reads)
    while waiting:
        tensor = waiting.pop()
        meeting: list[tf.Operation] = []
        for op in tensor.consumers():
            if forward is not None and id(op) not in forward:
                continue
            if id(op) in with_data:
                meeting.append(op)
                continue
            new = [t for t in op.outputs if id(t) not in made_of_it]
            made_of_it |= {id(t): t for t in new}
            waiting += new
        is_rearranged = _is_rearranged(tensor, reads)
        if meeting and (is_rearranged or _is_differentiable(tensor, reads)):
            for op in meeting:
                operands = [i for i, t in enumerate(op.inputs) if t is tensor]
                found |= {(id(op), i): Site(op, i, is_rearranged) for i in operands}
    return list(found.values())


def _is_differentiable(tensor: tf.Tensor, reads: Sequence[tf.Tensor]) -> bool:
    """Whether a gradient goes from the tensor back to a weight that it is made of."""
    if not tensor.dtype.is_floating:
        return False
    return any(g is not None for g in tf.gradients(tensor, list(reads)))


def _is_rearranged(tensor: tf.Tensor, reads: Sequence[tf.Tensor]) -> bool:
    """Whether it is one of the reads, entries permuted or negated."""
    while not any(tensor is read for read in reads):
        op = tensor.op
        if op.type not in _REARRANGING or not tensor.dtype.is_floating:
            return False
        if host.has_foreign_gradient(op):
            return False
        tensor = op.inputs[0]
    return True


def _contribution(
    reads: Sequence[tf.Tensor],
    sites: list[Site],
    cotangents: dict[int, tf.Tensor],
    batch: tf.Tensor,
    blocks: dict[int, int],
    alone: list[Contribution],
) -> tuple[Contribution | None, tf.Tensor]:
    """The per-example gradients of one weight over its sites, and of which tensor.

    They stay in the shape of the sites' common operand where that is the weight
    rearranged; else every example's gradient is moved back to the weight.

    Args:
        reads: tensors that hold the weight's value.
        blocks: by id of an op, the rows of its inputs for each example.
        alone: gradients in the weight's shape, from calls of layers.
    """
    groups: list[tuple[Site, list[Contribution]]] = []
    for site in sites:
        kernel = KERNELS.get(site.op.type)
        if kernel is None:
            raise UnsupportedSiteError(f"no kernel reads {site.op.type}", site.op)
        cotangent = cotangents[id(site.op.outputs[0])]
        several = blocks[id(site.op)] if site.op.type in ONE_ROW_AN_EXAMPLE else 1
        try:
            one = kernel(site.op, site.operand, cotangent, batch * several)
        except UnsupportedSiteError as error:
            error.op = site.op
            raise
        if several > 1:
            one = one.added(batch, several)
        for first, uses in groups:
            if type(one) is type(uses[0]) and _is_same(site.weight, first.weight):
                uses.append(one)
                break
        else:
            groups.append((site, [one]))
    weight = reads[0]
    if not groups and not alone:
        return None, weight
    if len(groups) == 1 and groups[0][0].is_rearranged and not alone:
        ((site, uses),) = groups
        return together(uses), site.weight
    moved = [
        _moved_to_weight(reads, site.weight, together(uses)) for site, uses in groups
    ]
    every = [*moved, *alone]
    if len({type(c) for c in every}) > 1:
        raise UnsupportedSiteError("more than its layer reads the table")
    return together(every), weight


def _moved_to_weight(
    reads: Sequence[tf.Tensor], operand: tf.Tensor, contribution: Contribution
) -> Kept:
    """Each example's gradient, moved back by all ways on which the operand was made."""

    def one(elements: list[tf.Tensor]) -> tf.Tensor:
        gradient = tf.cast(tf.reshape(elements[0], operand.shape), operand.dtype)
        moved = tf.gradients(operand, list(reads), grad_ys=gradient)
        return tf.add_n([tf.convert_to_tensor(g) for g in moved if g is not None])

    gradients = host.vectorized_map(one, [contribution.kept()])
    return Kept("kept, moved to the weight", gradients)


def _is_same(a: tf.Tensor, b: tf.Tensor) -> bool:
    """Whether two operands are made of a weight in the same way."""
    if a is b:
        return True
    if (a.op.type, a.value_index, a.shape) != (b.op.type, b.value_index, b.shape):
        return False
    if a.op.type == "ReadVariableOp":
        return a.op.inputs[0] is b.op.inputs[0]
    is_made = a.op.inputs and not a.op.op_def.is_stateful
    if not (is_made or a.op.type == "Const"):
        return False
    return a.op.node_def.attr == b.op.node_def.attr and all(
        map(_is_same, a.op.inputs, b.op.inputs)
    )


def _in_shape_of_weight(
    weight: tf.Tensor,
    contribution: Contribution | None,
    operand: tf.Tensor,
    factors: tf.Tensor,
    keeps: tf.Tensor | None,
) -> tf.Tensor:
    """The clipped sum, put back into the order of the weight.

    By hand and in float32: the gradient of a Cast to bfloat16 would round the sum.
    """
    dtype = tf.float32 if weight.dtype.size < 4 else weight.dtype
    if contribution is None:
        return tf.zeros(weight.shape, dtype)
    total = contribution.weighted_sum(factors, keeps)
    while operand is not weight and operand.op.type != "ReadVariableOp":
        op = operand.op
        if op.type == "Transpose":
            total = tf.transpose(total, np.argsort(_static(op.inputs[1])))
        elif op.type == "Neg":
            total = -total
        else:
            total = tf.reshape(total, op.inputs[0].shape)
        operand = op.inputs[0]
    return tf.cast(total, dtype)


def _static(tensor: tf.Tensor) -> Any:
    """The value of a tensor that is known while tracing."""
    value = tf.get_static_value(tensor)
    if value is None:
        raise UnsupportedSiteError("a weight is transposed in an order known only late")
    return value
