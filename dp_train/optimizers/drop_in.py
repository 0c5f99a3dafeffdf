"""Private training without make_private: a plain Keras model, a DP optimizer, fit.

Keras hands an optimizer averaged gradients, which are of no use. But the step that
called it was traced into a graph, and that graph holds the forward pass: what
book-keeping needs. The averaged gradients stay behind as dead code.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import keras
import tensorflow as tf

from accounting import Ledger
from dp_train import effects, host, last_values, looking
from dp_train.announcement import steps_of
from dp_train.clipped_sum import Contents
from dp_train.digests import digest_of
from dp_train.errors import NotPrivateError
from dp_train.gradients.bookkeeping import clipped_sum_of_call
from dp_train.gradients.coupled import check_loss_is_of_one_example
from dp_train.gradients.objective import (
    Objective,
    check_losses,
    data_free_gradients,
)
from dp_train.gradients.separation import ancestors
from dp_train.gradients.structures import check_dense, map_rows, tensors
from dp_train.kernels.contribution import UnsupportedSiteError
from dp_train.made_up import ROWS
from dp_train.noise.draw import secret_keys
from dp_train.owner import Owner
from dp_train.sizes import FixedSizes

_FEEDS = frozenset(["IteratorGetNext", "OptionalFromValue", "OptionalHasValue"])
"""Ops by which Keras gets the batch."""


class _Keys:
    """Keys for random layers that no seed decides, new at every step.

    They lie in a variable, of which each step takes the keys and leaves new ones: a
    call of the host would have to follow what its keys are needed for.

    Args:
        states: of seed generators. Whatever reads them in the graph reads a key.
        graph: of the step.

    Attributes:
        values: the keys.
        state: the variable.
    """

    def __init__(self, states: Sequence[keras.Variable], graph: Any) -> None:
        count = sum(len(host.reads_of(state, graph)) for state in states)
        self.state = host.outside_of_tracing(
            lambda: tf.Variable(secret_keys(count), trainable=False)
        )
        fresh = iter(tf.unstack(self.state.value(), num=count) if count else [])
        self.values: list[tf.Tensor] = []
        for state in states:
            self.values += host.redirect_reads(
                state, graph, functools.partial(_next_key, fresh, state.dtype)
            )

    def renew(self) -> None:
        """Leaves keys for the next step."""
        self.state.assign(secret_keys(len(self.values)))


def _next_key(fresh: Iterator[tf.Tensor], dtype: str) -> tf.Tensor:
    return tf.cast(next(fresh), dtype)


class StepInFit(NamedTuple):
    """A step of plain fit that is being traced, up to its clipped sum.

    Attributes:
        contents: of the release.
        rows: the batch; the charge has to wait for its draw.
        metrics: what metrics write.
        keys: of random layers.
        model: that fits.
        start, end: numbers of ops before and after the clipped sum was made.
    """

    contents: Contents
    rows: Any
    metrics: list[keras.Variable]
    keys: _Keys
    model: keras.Model
    start: int
    end: int

    def check(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Refuses a release that does more than to update weights and optimizer.

        Raises:
            NotPrivateError: it writes to something else, or reads what metrics wrote.
        """
        operations, contents = _graph().get_operations(), self.contents
        summed = (contents.gradients, contents.data_free_gradients)
        effects.check(
            operations[self.start :],
            what=lambda _: "The loss, the inner optimizer, its rate or a constraint",
            may_write=[
                *contents.variables,
                *optimizer.variables,
                *last_values.kept_of([*contents.variables, *optimizer.slots]),
                self.keys.state,
            ],
            may_not_read=self.metrics,
            readers=ancestors(tensors(summed)) | set(map(id, operations[self.end :])),
        )
        rows, allowed = self.rows, [*contents.gradients, contents.digest]
        effects.check_free_of(contents.data_free_gradients, rows)
        effects.check_inputs(
            operations[self.end :], rows, allowed=allowed, before=self.end
        )


class PlainFits:
    """What an optimizer keeps of the steps of plain models, beyond its ledger."""

    def __init__(self) -> None:
        # A variable lives as long as somebody knows it.
        self._keys: list[_Keys] = []
        self._model: keras.Model | None = None
        self._is_looked_at, self._made = False, 0
        self._outside = last_values.Outside()

    def add(self, step: StepInFit, optimizer: keras.optimizers.Optimizer) -> None:
        """A step was traced; its graph is still open."""
        model, graph = step.model, _graph()
        known = [
            *model.variables,
            *step.metrics,
            *optimizer.variables,
            *last_values.kept_of([*model.weights, *optimizer.slots]),
            *host.seed_states(model),
            step.keys.state,
        ]
        self._keys.append(step.keys)
        self._is_looked_at = True
        self._model = model
        self._outside.add(graph.get_operations(), graph, known)
        with tf.init_scope():
            last_values.record_unknown(model.non_trainable_weights)

    def end(self, owner: Owner) -> None:
        """A fit has ended: looks for what moved beside its releases."""
        if self._model is not None:
            owner.look(self._model.non_trainable_weights, "in a fit")
            last_values.record(self._model.weights)
        if not self._outside.are_as_left():
            owner.note_change("in a fit, in a variable that the step reads")
        self._outside.begin()
        fit, ledger = host.running_fit(), owner.ledger
        if fit is None or self._model is None:
            return
        before, self._made = self._made, ledger.total
        made, planned = ledger.total - before, steps_of(fit)
        # A fit that was interrupted has no end of its own.
        if before or (planned is not None and made > planned):
            looking.note_another_fit(ledger)
        if not self._is_looked_at:
            _look_at(fit, ledger)
        self._is_looked_at = False
        if fit["self"].stop_training and made and (planned is None or made < planned):
            looking.note_stop(ledger, made, planned)


def clipped_sum_in_fit(
    optimizer: Any,
    variables: Sequence[keras.Variable],
    sizes: FixedSizes,
) -> StepInFit:
    """The clipped sum of the step of a plain model's fit that is being traced.

    Args:
        optimizer: a DP optimizer, which the step applies.
        variables: trainable variables of the model.
        sizes: those of the first batch.

    Raises:
        NotPrivateError: the graph does not show what each example contributes; the
            message names the reason and both ways out.
    """
    if tf.executing_eagerly():
        _refuse(
            "the gradients come from eager execution, which leaves no graph to find "
            "each example in"
        )
    step = host.stock_train_step()
    if step is None:
        _refuse("the gradients do not come from the train_step of Keras")
    model, rows, y_pred = step
    _check_is_alone(model, variables, optimizer)
    if optimizer.expected_batch_size is None:
        _refuse(
            "expected_batch_size is missing: the noised sum needs a public divisor, "
            "and an optimizer does not see how batches are drawn",
            "give the optimizer expected_batch_size, or a PoissonLoader "
            "(loader.dataset_for(optimizer))",
        )
    check_dense(rows)
    sizes.check(rows)
    looking.warn_of_adapted_layers(model, optimizer.ledger)
    _look_at(host.running_fit(), optimizer.ledger)
    metrics = _check_step(model, rows, y_pred)
    clip = optimizer.l2_norm_clip
    optimizer._account.owner.own(model.weights)
    start = len(_graph().get_operations())
    objective = Objective(model, variables, [])
    reads = [host.reads_of(v, _graph()) or [_not_read(v)] for v in variables]
    keys = _Keys(host.seed_states(model), _graph())
    try:
        gradients, is_reached = clipped_sum_of_call(
            objective, rows, y_pred, reads, keys.values, clip
        )
    except UnsupportedSiteError as error:
        _refuse(f"the graph does not show what each example contributes ({error})")
    example = map_rows(_spec_of_some_size, rows)
    host.outside_of_tracing(lambda: check_loss_is_of_one_example(objective, example))
    contents = Contents(
        gradients=tuple(gradients),
        l2_norm_bound=clip,
        expected_batch_size=optimizer.expected_batch_size,
        account=optimizer._account,
        variables=tuple(variables),
        data_free_gradients=tuple(data_free_gradients(model, variables)),
        digest=digest_of(rows),
        is_reached=is_reached,
        fixed=tuple(model.non_trainable_weights),
    )
    end = len(_graph().get_operations())
    keys.renew()
    return StepInFit(contents, rows, metrics, keys, model, start, end)


def _look_at(fit: dict[str, Any] | None, ledger: Ledger) -> None:
    """Warns of what decides in a fit, given its arguments."""
    if fit is not None:
        split = fit["validation_split"]
        looking.warn_of_callbacks(fit["callbacks"], bool(split), ledger)
        looking.warn_of_validation_split(split, ledger)


def _spec_of_some_size(t: tf.Tensor) -> tf.TensorSpec:
    """Of made-up rows like these: sizes that nobody knows may be any."""
    return tf.TensorSpec([ROWS, *(size or ROWS for size in t.shape[1:])], t.dtype)


def _graph() -> Any:
    return tf.compat.v1.get_default_graph()


def _reads(variable: keras.Variable) -> list[tf.Operation]:
    return [t.op for t in host.reads_of(variable, _graph())]


def _not_read(variable: keras.Variable) -> tf.Tensor:
    """A value that nothing reads, for a variable that the step does not read."""
    return tf.identity(tf.convert_to_tensor(variable.value))


def _check_is_alone(
    model: keras.Model, variables: Sequence[keras.Variable], optimizer: Any
) -> None:
    """Refuses to be one of several optimizers: the others see gradients without noise.

    Keras asks the optimizer of the model, and nobody else, for all trainable weights.
    """
    # Whatever it delegates, or a property of the model would answer.
    found = inspect.getattr_static(model, "optimizer", None)
    if isinstance(found, keras.optimizers.LossScaleOptimizer):
        _refuse(
            "the optimizer of the model is a LossScaleOptimizer, which skips a step "
            "where a gradient is not finite, and so releases that fact without noise",
            "compile with the DP optimizer itself and, where a small dtype is wanted, "
            "the mixed_bfloat16 policy",
        )
    if found is not optimizer:
        _refuse(
            f"the optimizer of the model is {type(found).__name__}, which hands "
            "the DP optimizer some of the gradients, and what it does with them "
            "otherwise has no noise",
            "compile with the DP optimizer itself; DPOptimizer(inner) takes "
            "MultiOptimizer too",
        )
    left_out = {id(v): v.path for v in model.trainable_variables}
    for variable in variables:
        left_out.pop(id(variable), None)
    if left_out:
        _refuse(f"it was not given {', '.join(left_out.values())}, which are trained")


def _check_step(model: keras.Model, rows: Any, y_pred: Any) -> list[keras.Variable]:
    """Refuses steps in which examples reach the weights in other ways.

    Returns:
        What its metrics write.
    """
    if model.jit_compile:
        _refuse(
            "the step is compiled by XLA (Keras's own choice where it finds a GPU), "
            "which cannot call the host for secure noise",
            "compile with jit_compile=False",
        )
    if any(t.graph is not _graph() for t in tensors((rows, y_pred))):
        _refuse(
            "the optimizer is applied in another graph than the model was called in"
        )
    if len(model.losses) > len(host.regularization_losses(model)):
        _refuse("a layer adds a loss of its own (add_loss)")
    if type(model).compute_metrics is not keras.Model.compute_metrics:
        _refuse("the model has its own compute_metrics, which may write into weights")
    check_losses(model)
    _check_metrics(model, rows, y_pred)
    forward = ancestors(tensors(y_pred))
    for variable in model.trainable_variables:
        for op in host.users_of(variable, _graph()):
            if id(op) in forward and op.type not in ("ReadVariableOp", "VariableShape"):
                _refuse(
                    f"{op.type} ({op.name}) is handed the variable {variable.path} "
                    "itself, as loops, keras.remat, tf.gather and functions under "
                    "tf.function do, and what it reads is not seen"
                )
    metrics = [v for m in model.metrics for v in m.variables]
    if any(v is w for v in metrics for w in model.weights):
        _refuse("a metric has a weight of the model")
    effects.check(
        _graph().get_operations(),
        what=lambda _: "The forward pass or the loss of the plain model",
        may_write=[*metrics, *host.seed_states(model)],
        may_not_read=metrics,
        readers=forward,
        feeds=_FEEDS,
    )
    return metrics


def _check_metrics(model: keras.Model, rows: Any, y_pred: Any) -> None:
    """Refuses metrics that write into anything but themselves.

    They run behind the optimizer, unseen: so they are traced here, and never run.
    """
    written: list[Any] = []

    def trace(rows: Any, y_pred: Any) -> tf.Tensor:
        x, y, sample_weight = rows
        with keras.StatelessScope() as scope:
            model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        written.extend(scope.state_mapping)
        return tf.zeros([])

    like = map_rows(lambda t: tf.TensorSpec(t.shape, t.dtype), (rows, y_pred))
    graph = tf.function(trace, autograph=False).get_concrete_function(*like).graph
    names = {id(v): v.path for v in model.variables}
    # They may have been built by the call.
    own = {id(v) for v in model.metrics_variables}
    found = [names.get(i, "a variable") for i in written if i not in own]
    effects.check(graph.get_operations(), what=lambda _: "A metric")
    if found:
        _refuse(
            f"a metric writes to {', '.join(found)}, which would release examples "
            "without noise",
            "let metrics write into variables of their own (add_weight, add_variable)",
        )


def _refuse(reason: str, way: str | None = None) -> NoReturn:
    """Both ways out, and a third where there is one."""
    ways = "call model = dp_train.make_private(model) before compile and fit; in a "
    ways += "custom loop use "
    ways += "optimizer.apply_clipped_sum(dp_train.clipped_gradients(...))"
    first = "" if way is None else f"{way[0].upper()}{way[1:]}; or "
    raise NotPrivateError(
        "A DP optimizer received gradients that were not clipped per example, and "
        f"cannot clip them here: {reason}. Noise on an average bounds nothing about "
        f"one example. {first}{ways if first else ways[0].upper() + ways[1:]}."
    )
