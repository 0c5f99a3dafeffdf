"""Which tables owe their noise during a fit, and who settles them before anyone looks.

Under DPOptimizer(..., lazy_noise=True) an Embedding layer owes (noise/owed.py) in fit
on arrays or a PoissonLoader, if the graph of a step reads its table in that layer only.
Whoever reads the table in Python settles it first, or is refused where that can't be:
inside a step, or in another thread while fit runs. A function that was traced before
reads without Python. So no table owes while a callback is there that could run one
between batches, and the first of all callbacks settles at the end of every epoch. When
fit ends, in whatever way, nothing is owed.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from dp_train import host, last_values
from dp_train.errors import NotPrivateError
from dp_train.gradients import bookkeeping, choose
from dp_train.gradients.copies import for_metrics
from dp_train.gradients.objective import WEIGHTS_SCOPE, Objective, Rows
from dp_train.gradients.structures import map_rows, row_count
from dp_train.gradients.tables import Table
from dp_train.kernels.contribution import UnsupportedSiteError
from dp_train.noise.owed import OwedNoise
from dp_train.owner import owner_of

FEWEST = 1 << 19
"""Numbers of a table from which it owes: the noise of smaller ones is cheaper at once.
"""
_BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
)
_BLIND = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.History,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.TensorBoard,
    keras.callbacks.TerminateOnNaN,
)
"""Keras's own callbacks that read weights in Python, or not at all, after a batch."""


class Owing:
    """Tables that owe.

    Args:
        count: number of trainable variables.
        tables: how the engine reads them.
        debtors: for each table, what it owes.
        reasons: why a layer, or all, do not owe: a line each.

    Attributes:
        tables, reasons: as given.
        debtors: for each trainable variable, its OwedNoise or None.
    """

    def __init__(
        self,
        count: int = 0,
        tables: Sequence[Table] = (),
        debtors: Sequence[OwedNoise] = (),
        reasons: Sequence[str] = (),
    ) -> None:
        self.tables, self.reasons = tuple(tables), tuple(reasons)
        by_index = {t.index: d for t, d in zip(tables, debtors, strict=True)}
        self.debtors = tuple(by_index.get(i) for i in range(count))
        self._thread: int | None = None
        self._is_stepping = False
        self._lock = threading.RLock()
        for debtor in debtors:
            host.guard_reads(debtor.variable, self.before_look)

    def notes(self) -> tuple[str, ...]:
        """What a plan says about them."""
        owe = [
            f"{t.layer.name!r} owes its noise until a row is read" for t in self.tables
        ]
        return *owe, *self.reasons

    @property
    def state(self) -> list[Any]:
        """What a step writes to on their behalf."""
        return [v for d in self.debtors if d is not None for v in d.state]

    def settle(self) -> None:
        """Draws all that is owed; eagerly."""
        with self._lock:
            for debtor in self.debtors:
                if debtor is not None:
                    _settle(debtor)

    def before_look(self) -> None:
        """Settles for somebody who is about to read a table.

        Raises:
            NotPrivateError: a step runs, or could at any moment.
        """
        # Of a function that is being traced, owing_of has seen the step, and whoever
        # runs another one settles then.
        if not self.tables or not tf.executing_eagerly():
            return
        with self._lock:
            if self._thread is not None:
                is_here = self._thread == threading.get_ident()
                if self._is_stepping or not is_here:
                    where = (
                        "inside a step" if is_here else "in another thread than fit's"
                    )
                    raise NotPrivateError(
                        f"A table was read {where} while its noise is owed. What is "
                        "read then would hide less than was accounted. Read weights in "
                        "a callback, or leave lazy_noise out of the optimizer."
                    )
            self.settle()

    @contextmanager
    def fit(self) -> Iterator[None]:
        """Inside the block steps of this thread may owe."""
        with self._lock:
            previous, self._thread = self._thread, threading.get_ident()
        try:
            yield
        finally:
            with self._lock:
                try:
                    self.settle()
                finally:
                    self._thread, self._is_stepping = previous, False

    def callbacks(self, others: Sequence[Any]) -> list[Any]:
        """The callbacks of a fit, with those that settle; as they are if none owes."""
        if not self.tables:
            return list(others)
        return [_Settles(self, others), *others, _Steps(self)]

    def stepping(self, is_stepping: bool) -> None:
        """A step begins, or has ended."""
        self._is_stepping = is_stepping

    def close(self) -> None:
        """Settles for the last time; the tables are as they were before.

        Raises:
            NotPrivateError: steps are under way, which would owe without end.
        """
        if self.tables and self._thread is not None:
            raise NotPrivateError(
                "The model was compiled, or trained in another way, inside a fit whose "
                "tables owe their noise. What they would owe from then on, nobody "
                "would draw. Do it after fit, or leave lazy_noise out of the optimizer."
            )
        self.settle()
        for debtor in self.debtors:
            if debtor is not None:
                host.unguard_reads(debtor.variable, self.before_look)
        self.tables, self.debtors = (), ()


def _settle(debtor: OwedNoise) -> None:
    """Draws what a table owes, and knows what it is then."""
    owner = owner_of([debtor.variable])
    if owner is not None:
        owner.look([debtor.variable], "in a fit, before owed noise was drawn")
    debtor.settle()
    last_values.leave([debtor.variable])


def who_may_look(callbacks: Sequence[Any]) -> str:
    """The first that could run a traced function between batches, or ""."""
    return next((type(c).__name__ for c in callbacks if _may_look(c)), "")


def owing_of(
    model: keras.Model, plan: choose.Plan, objective: Objective, specs: Rows
) -> Owing:
    """The tables of a model that may owe: large, and read by their layer alone.

    Args:
        model: built, compiled with a DP optimizer.
        plan: how its gradients are computed.
        objective: the loss of one example.
        specs: of (x, y, sample_weight), of any number of rows.
    """
    places = {id(v): i for i, v in enumerate(objective.variables)}
    found: list[tuple[Table, OwedNoise]] = []
    reasons = []
    for layer in host.sublayers(model):
        is_embedding = isinstance(layer, keras.layers.Embedding) and layer.built
        if not is_embedding or id(layer.embeddings) not in places:
            continue
        index = places[id(layer.embeddings)]
        reason = _why_not(layer, plan, objective.copies)
        if any(table.index == index for table, _ in found):
            reason = "it shares the table of another layer"
        if reason:
            reasons.append(f"{layer.name!r} owes no noise: {reason}")
            continue
        debtor = OwedNoise(layer.embeddings)
        found.append((Table(layer, index, debtor.read), debtor))
    if _who_else(objective, [table for table, _ in found], specs):
        alone = []
        for table, debtor in found:
            reason = _who_else(objective, [table], specs)
            if reason:
                reasons.append(f"{table.layer.name!r} owes no noise: {reason}")
            else:
                alone.append((table, debtor))
        found = alone
    tables, debtors = zip(*found, strict=True) if found else ((), ())
    return Owing(len(places), tables, debtors, reasons)


def _why_not(layer: keras.layers.Embedding, plan: choose.Plan, copies: int) -> str:
    """Why a layer's table may not owe; empty if it may."""
    table = layer.embeddings
    if plan.engine != "bookkeeping" or plan.alone:
        return "not every layer is differentiated by book-keeping"
    if copies > 1:
        return (
            f"each example has {copies} augmented copies, which may read the same row"
        )
    if type(layer) is not keras.layers.Embedding or "call" in vars(layer):
        return "it has a call of its own"
    if not isinstance(table, keras.Variable) or layer.lora_enabled:
        return "its table is made of other weights"
    if table.dtype != "float32":
        return f"its table is {table.dtype}"
    if math.prod(table.shape) < FEWEST:
        return "its table is small"
    if layer.embeddings_constraint or table.regularizer or table.constraint:
        return "a regularizer or constraint reads the table"
    return ""


def _who_else(objective: Objective, tables: Sequence[Table], specs: Rows) -> str:
    """Who else reads one of the tables in a step, such as tied weights; "" if nobody.

    Losses, metrics and regularizers are part of the step.
    """
    like = map_rows(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), specs)
    objective = dataclasses.replace(objective, tables=tables)

    def trace(rows: Rows) -> tf.Tensor:
        count = row_count(rows)
        keys, is_real = objective.example_keys(count), tf.ones([count], tf.bool)
        _, outputs = bookkeeping.clipped_sum(objective, rows, keys, 1.0, is_real)
        seen = for_metrics(rows, outputs, objective.copies)
        host.update_metrics(objective.model, *seen)
        return tf.zeros([])

    if not tables:
        return ""
    try:
        graph = tf.function(trace, autograph=False).get_concrete_function(like).graph
    except UnsupportedSiteError as error:
        return str(error)
    for table in tables:
        for op in host.users_of(table.layer.embeddings, graph):
            if not op.name.startswith((OwedNoise.SCOPE, WEIGHTS_SCOPE)):
                return f"{op.type} ({op.name}) reads the table too"
    return ""


class _Settles(keras.callbacks.Callback):
    """First in line: whoever comes later sees settled tables."""

    def __init__(self, owing: Owing, others: Sequence[Any]) -> None:
        super().__init__()
        self._owing, self._others = owing, others

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Settles only for a callback whose hook was not there when fit began."""
        self._owing.stepping(False)
        if who_may_look(self._others):
            self._owing.settle()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checkpoints are written, weights printed and restored."""
        self._owing.settle()

    def on_train_end(self, logs: Any = None) -> None:
        """Also where training was stopped."""
        self._owing.settle()


class _Steps(keras.callbacks.Callback):
    """Last in line: what follows is the step."""

    def __init__(self, owing: Owing) -> None:
        super().__init__()
        self._owing = owing

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """The step begins."""
        self._owing.stepping(True)


def _may_look(callback: Any) -> bool:
    """Whether a callback runs code between batches that is not known to be blind."""
    kind = type(callback)
    if not isinstance(callback, keras.callbacks.Callback):
        return True
    if any(hook in vars(callback) for hook in _BATCH_HOOKS):
        return True
    if kind in _BLIND or kind.__module__.startswith("dp_train."):
        return False
    return any(
        getattr(kind, hook, None) is not getattr(keras.callbacks.Callback, hook)
        for hook in _BATCH_HOOKS
    )
