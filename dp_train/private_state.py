"""What private training keeps and does beside the model: checks, state, one sum."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import keras
import numpy as np
import tensorflow as tf

from dp_train import effects, host, last_values, looking, model_checks
from dp_train.account import Account
from dp_train.errors import NotPrivateError
from dp_train.gradients import choose
from dp_train.gradients.compiled import fixed_rows
from dp_train.gradients.copies import flat_specs
from dp_train.gradients.objective import (
    Objective,
    Outputs,
    Rows,
    data_free_gradients,
)
from dp_train.gradients.separation import ancestors
from dp_train.gradients.structures import tensors
from dp_train.optimizers.dp_optimizer import DPOptimizer
from dp_train.optimizers.subclasses import check_optimizer
from dp_train.owing import Owing, owing_of, who_may_look
from dp_train.owner import Owner
from dp_train.replicas import check_strategy
from dp_train.sampling import UnverifiedSampling
from dp_train.sizes import FixedSizes
from dp_train.values import Sampling

_NO_LIMIT = np.iinfo(np.int64).max
_who_trains = threading.Lock()
_Method = TypeVar("_Method", bound=Callable[..., Any])


class PrivacyState:
    """What private training keeps beside the model: never saved, found by reference."""

    def __init__(self, gradients: str, microbatch_size: int | str) -> None:
        self.owing, self.owing_for = Owing(), ()
        self.set_options(gradients, microbatch_size)
        self.account = Account(Owner())
        self.population: int | None = None
        self.seed_states: list[keras.Variable] = []
        self.traces, self.copies = 0, 1
        self.thread: int | None = None
        self.wants_xla = self.is_stale = False
        self.plan = choose.Plan("loop", (), (), 0)
        # What a fit decides lives in variables: the compiled step outlives the fit.
        self.releases = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.limit = tf.Variable(_NO_LIMIT, dtype=tf.int64, trainable=False)
        self.expected_batch_size = tf.Variable(1.0, dtype=tf.float64, trainable=False)

    def set_options(self, gradients: str, microbatch_size: int | str) -> None:
        """Checks and sets the options of make_private."""
        self.gradients = choose.check_engine_name(gradients)
        choose.microbatch_rows(microbatch_size, 0, 1.0)
        self.microbatch_size = microbatch_size
        self.forget()

    def known_variables(self, model: Any) -> list[Any]:
        """What a step may read, and whose changes are looked for, or do not matter."""
        return [
            *model.variables,
            *model_checks.metric_variables(model),
            *model.optimizer.variables,
            *last_values.kept_of([*model.weights, *model.optimizer.slots]),
            *self.owing.state,
            *(self.releases, self.limit, self.expected_batch_size),
        ]

    def forget(self) -> None:
        """Drops what was traced: model, loss or options are others now."""
        self.owing.close()
        self.owing, self.owing_for = Owing(), ()
        self.sizes = FixedSizes()
        self.outside = last_values.Outside()
        self.functions: dict[Any, Any] = {}
        self.checked: tuple[Any, ...] = ()
        self.microbatch: int | None = None

    def restrict(self, steps: int) -> None:
        """Lets the current fit make at most `steps` releases from its start."""
        self.limit.assign(min(int(self.limit), steps))

    @property
    def is_exhausted(self) -> bool:
        """Whether the current fit may release no more."""
        return int(self.releases) >= int(self.limit)


def clipped_sum_of(
    model: Any, rows: Rows, l2_norm_clip: float, owing: Owing | None = None
) -> tuple[list[Any], list[tf.Tensor | None], Outputs]:
    """Clipped sum over rows, gradients of the regularisers, and what metrics need."""
    state = model._privacy
    tables = owing.tables if owing else ()
    objective = dataclasses.replace(_objective(model), tables=tables)
    gradients, outputs = choose.clipped_sum(
        state.plan.compute, objective, rows, l2_norm_clip, state.microbatch
    )
    data_free = data_free_gradients(model, model.trainable_variables)
    return gradients, data_free, outputs


def _objective(model: Any) -> Objective:
    """What the plan of a checked model differentiates."""
    state = model._privacy
    alone = [layer for layer, _ in state.plan.alone]
    return Objective(
        model,
        model.trainable_variables,
        state.seed_states,
        alone=alone,
        copies=state.copies,
    )


def check_sum(
    model: Any,
    operations: Sequence[tf.Operation],
    gradients: Any,
    data_free: Any,
    rows: Any,
    **kwargs: Any,
) -> None:
    """Refuses a clipped sum that does more than to compute.

    Args:
        model: a private model.
        operations: that made the sum.
        gradients: clipped and summed.
        data_free: gradients of the penalties.
        rows: that the step was given.
        kwargs: of effects.check.

    Raises:
        NotPrivateError: it changes something, or reads what metrics wrote, or a penalty
            depends on the rows.
    """
    effects.check(
        operations,
        what=lambda _: "The forward pass, the loss or a penalty",
        may_write=model._privacy.owing.state,
        may_not_read=model_checks.metric_variables(model),
        readers=ancestors(tensors((gradients, data_free))),
        **kwargs,
    )
    effects.check_free_of(data_free, rows)


def check_step(model: Any, release: Any, metrics: Any) -> None:
    """Refuses a traced step whose release or metrics do more than they should.

    Args:
        model: a private model.
        release: ops behind the clipped sum, up to the update of the weights.
        metrics: ops behind these.

    Raises:
        NotPrivateError: the release reads what metrics wrote, or changes more than
            weights and optimizer; or metrics change more than themselves.
    """
    state = model._privacy
    written = model_checks.metric_variables(model)
    effects.check(
        release,
        what=lambda _: "The inner optimizer, its learning rate or a constraint",
        may_write=[
            *model.trainable_variables,
            *model.optimizer.variables,
            *state.owing.state,
            *last_values.kept_of([*model.trainable_variables, *model.optimizer.slots]),
            state.releases,
        ],
        may_not_read=written,
    )
    effects.check(metrics, what=lambda _: "A metric", may_write=written)


def adopt_optimizer(model: Any) -> None:
    """One ledger for model and optimizer; what either spent before is kept."""
    optimizer = model.optimizer
    if isinstance(optimizer, DPOptimizer):
        model._privacy.account.owner.join(optimizer._account.owner)


def own_weights(model: Any) -> None:
    """One ledger for all models that share a weight, or ever shared one."""
    owner = model._privacy.account.owner
    for part in host.sublayers(model):
        state = vars(part).get("_privacy_state")
        if state is not None:
            owner.join(state.account.owner)
    owner.own(model.weights)


@contextmanager
def recorded(model: Any, is_step: bool = False) -> Iterator[None]:
    """Sees what else changed the weights before the block, and knows them after it.

    Args:
        model: a private model.
        is_step: the block makes a single release.
    """
    state = model._privacy
    owner = state.account.owner
    if is_step:
        owner.look(model.trainable_variables, "before a step", with_samples=False)
        yield
        return
    watched = [*model.weights, *model.optimizer.slots]
    owner.look(watched, "between two fits")
    last_values.record_unknown(watched)
    state.outside.begin()
    try:
        yield
    finally:
        owner.look(watched, "in a fit")
        if not state.outside.are_as_left():
            owner.note_change("in a fit, in a variable that the step reads")
        last_values.record(model.weights)


def check_ready(model: Any) -> None:
    """Refuses to train what is not compiled for private training."""
    if not model.compiled:
        raise ValueError(
            "The model is not compiled. Private training needs a loss and a DP "
            "optimizer. Call model.compile(dp_train.DPAdam(...), loss=...) first."
        )
    model_checks.check_train_step(model)
    model_checks.check_precision(model, model.optimizer)
    if not isinstance(model.optimizer, DPOptimizer):
        raise NotPrivateError(
            f"The model is private, but its optimizer is "
            f"{type(model.optimizer).__name__}, which adds no noise. Training with it "
            "would reveal the data. Compile with dp_train.DPAdam(...) or "
            "dp_train.DPOptimizer(optimizer, ...)."
        )
    check_optimizer(model.optimizer, DPOptimizer)
    check_strategy(model.distribute_strategy)
    if host.is_trainable_state_changed(model):
        raise NotPrivateError(
            "`trainable` of a layer was changed after compile. The clipped gradients "
            "and the optimizer's variables would no longer belong together. Call "
            "model.compile again."
        )
    adopt_optimizer(model)


@host.while_tracing
def prepare(
    model: Any,
    example: Any,
    sampling: Sampling,
    spec: Any = None,
    copies: int = 1,
) -> Any:
    """Builds and checks the model, and chooses the rows of a chunk.

    Args:
        model: a private model.
        example: (x, y, sample_weight) of some rows; only shapes and dtypes are read.
        sampling: how batches will be drawn.
        spec: the same with None for sizes that vary; None where that is not known.
        copies: K; if it is above 1, x is [n, K, ...].

    Returns:
        Specs of its batches.

    Raises:
        NotPrivateError: the model cannot be private, or ready-made batches vary in more
            than the number of their rows.
    """
    state = model._privacy
    model_checks.check_recurrence(model)
    is_ready_made = isinstance(sampling, UnverifiedSampling)
    if is_ready_made:
        state.sizes.check(example if spec is None else spec)
    batches = host.batch_specs(example if spec is None else spec)
    flat_batches = flat_specs(batches, copies)
    host.symbolic_build(model, *flat_batches)
    own_weights(model)
    variables = model.trainable_variables
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, DPOptimizer):
        if not optimizer.built:
            optimizer.build(variables)
        elif [id(v) for v in host.optimizer_of_build(optimizer)] != [
            id(v) for v in variables
        ]:
            raise NotPrivateError(
                "The trainable weights changed after compile. The clipped gradients "
                "and the optimizer's variables would no longer belong together. Call "
                "model.compile again, with a new optimizer."
            )
    layers = host.sublayers(model)
    fingerprint = (
        # One that was assigned, without compile, is not in the step that was traced.
        optimizer,
        copies,
        *(str(t) for t in tensors(batches)),
        *map(id, model.variables),
        *((id(v), v.trainable) for v in layers),
    )
    is_new = state.checked != fingerprint
    if is_new:
        looking.warn_of_adapted_layers(model, state.account.ledger)
        state.copies = copies
        state.seed_states = model_checks.check_state_updates(model, *flat_batches)
        objective = Objective(model, variables, state.seed_states, copies=copies)
        model_checks.check_examples_are_separate(model, flat_specs(example, copies)[0])
        state.plan = choose.make_plan(state.gradients, objective, example, batches)
        # Traced again, for these shapes: a step for several would know none of them.
        state.microbatch = None
        _trace_again(model)
        state.checked = fingerprint
    _choose_chunks(model, example, sampling.expected_batch_size)
    return batches


@host.while_tracing
def choose_tables(model: Any, specs: Any, others: Sequence[Any]) -> None:
    """Lets tables owe their noise in the coming fit, or no longer.

    Args:
        model: prepared.
        specs: of its batches.
        others: callbacks, and whatever else runs code between batches.
    """
    state = model._privacy
    who, reason = who_may_look(others), ""
    if who:
        reason = f"no noise is owed: {who} could look between batches"
    elif host.has_own_train_function(model):
        reason = "no noise is owed: the model makes its own train_function"
    elif state.microbatch is not None:
        reason = "no noise is owed: gradients are summed in chunks"
    wanted = model.optimizer.lazy_noise, reason, state.checked
    if state.owing_for != wanted:
        had_tables = bool(state.owing.tables)
        state.owing.close()
        state.owing, state.owing_for = Owing(), wanted
        if model.optimizer.lazy_noise and reason:
            state.owing = Owing(reasons=[reason])
        elif model.optimizer.lazy_noise:
            state.owing = owing_of(model, state.plan, _objective(model), specs)
        if had_tables or state.owing.tables:
            _trace_again(model)


def _trace_again(model: Any) -> None:
    """Drops what was traced; a fit that is under way keeps its step to the end."""
    state = model._privacy
    state.functions.clear()
    state.is_stale = True
    _drop_stale_step(model)


def _drop_stale_step(model: Any) -> None:
    state = model._privacy
    if state.is_stale and state.account.sampling is None:
        model.train_function, state.is_stale = None, False


def _choose_chunks(model: Any, example: Any, expected_batch_size: float) -> None:
    """Rows of a chunk, and the XLA program for so many where one is wanted."""
    state = model._privacy
    microbatch = choose.microbatch_rows(
        state.microbatch_size, state.plan.numbers_per_row, expected_batch_size
    )
    # A loop over chunks is right for any batch, so a traced one stays.
    is_kept = state.microbatch_size == "auto" and state.microbatch is not None
    if state.wants_xla and not state.plan.not_compiled:
        rows = fixed_rows(microbatch, expected_batch_size)
        program = state.plan.program
        is_kept = program is not None and rows / 4 <= program.rows <= 4 * rows
        if not is_kept:
            state.plan = choose.compiled(state.plan, _objective(model), example, rows)
        if state.plan.program:
            microbatch = state.plan.program.rows
    if microbatch != state.microbatch and not is_kept:
        state.microbatch = microbatch
        _trace_again(model)


@contextmanager
def running(
    model: Any, sampling: Sampling, planned_steps: Callable[[], int | None]
) -> Iterator[Callable[[], None]]:
    """Inside the block releases may be made, drawn as `sampling` says.

    Args:
        model: a private model.
        sampling: how batches will be drawn.
        planned_steps: number of steps to come, asked when it matters; None if unknown.

    Yields:
        A function to call when training begins: other callbacks may have restored a
        checkpoint by then, and with it releases of an earlier process.
    """
    state = model._privacy
    counted: tuple[int, int | None] = -1, -1

    def start() -> None:
        nonlocal counted
        ledger = state.account.ledger
        now = ledger.total, planned_steps()
        if now != counted:
            counted = now
            allowed = model.optimizer.prepare(ledger, sampling, now[1])
            state.limit.assign(_NO_LIMIT if allowed is None else allowed)

    account = state.account
    before = account.sampling, account.least_noise_multiplier
    variables = state.releases, state.limit, state.expected_batch_size
    values = [variable.numpy() for variable in variables]
    if account.sampling is not None and values[1] != _NO_LIMIT:
        raise NotPrivateError(
            f"A fit that keeps to a budget of {values[1]} steps is under way, and "
            "another fit or train_on_batch of the model was called inside it, as from "
            "a callback. Its releases would exceed the budget. Train after fit."
        )
    account.refusal = None
    try:
        start()
        state.releases.assign(0)
        state.expected_batch_size.assign(sampling.expected_batch_size)
        account.sampling = sampling
        model_checks.warn_of_large_delta(model.optimizer.target_delta, state.population)
        with state.owing.fit():
            yield start
    except tf.errors.OpError as error:
        if account.refusal is None:
            raise
        # TensorFlow says it in a page of its own.
        raise account.refusal from error
    finally:
        # What called from inside another fit leaves that as it was.
        account.sampling, account.least_noise_multiplier = before
        if account.sampling is not None:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        _drop_stale_step(model)


def once_at_a_time(method: _Method) -> _Method:
    """Decorator: while a method of a private model trains it, no other thread may.

    Raises:
        NotPrivateError: another thread does. What a step is charged as belongs to the
            fit that runs, so that batches of one would pay as those of the other.
    """

    @functools.wraps(method)
    def alone(model: Any, *args: Any, **kwargs: Any) -> Any:
        state, here = model._privacy, threading.get_ident()
        with _who_trains:
            before = state.thread
            if before not in (None, here):
                raise NotPrivateError(
                    f"Another thread is training model {model.name!r}. Two fits of one "
                    "model at once would charge the batches of one as those of the "
                    "other. Train it once at a time, or train copies (copy.deepcopy)."
                )
            state.thread = here
        try:
            return method(model, *args, **kwargs)
        finally:
            state.thread = before

    return cast(_Method, alone)
