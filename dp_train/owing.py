"""Which tables owe their noise during a fit, and who settles them before anyone looks.

Under DPOptimizer(..., lazy_noise=True) an Embedding layer owes (noise/owed.py) in fit
on arrays or a PoissonLoader. Whoever then reads the table from Python settles it first,
or is refused where that can't be: inside a step, or in another thread while fit runs.
A function that was traced before reads without Python. So the first of all callbacks
settles too: at the end of every epoch, and after every batch if a callback is there
that could run such a function then. When fit ends, in whatever way, nothing is owed.
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

from dp_train import host
from dp_train.errors import NotPrivateError
from dp_train.gradients import bookkeeping, choose
from dp_train.gradients.objective import Objective, Rows
from dp_train.gradients.structures import map_rows
from dp_train.gradients.tables import Table
from dp_train.kernels.contribution import UnsupportedSiteError
from dp_train.noise.owed import OwedNoise

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
    keras.callbacks.History,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.TensorBoard,
    keras.callbacks.TerminateOnNaN,
)
"""Keras's own callbacks that do not look at weights after a batch."""


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
        self._is_stepping = self._is_traced = False
        for debtor in debtors:
            host.guard_reads(debtor.variable, self.before_look)

    def notes(self) -> tuple[str, ...]:
        """What a plan says about them."""
        owe = [
            f"{t.layer.name!r} owes its noise until a row is read" for t in self.tables
        ]
        return *owe, *self.reasons

    def settle(self) -> None:
        """Draws all that is owed; eagerly."""
        for debtor in self.debtors:
            if debtor is not None:
                debtor.settle()

    def before_look(self) -> None:
        """Settles for somebody who is about to read a table.

        Raises:
            NotPrivateError: a step is being traced, or runs, or could at any moment.
        """
        if not self.tables:
            return
        if not tf.executing_eagerly():
            # Whoever runs another function than the step settles then.
            if self._is_traced:
                raise NotPrivateError(_REFUSED.format("A metric reads a table"))
            return
        if self._thread is not None:
            if self._is_stepping:
                raise NotPrivateError(_REFUSED.format("A table was read inside a step"))
            if self._thread != threading.get_ident():
                raise NotPrivateError(
                    _REFUSED.format("A table was read in another thread than fit's")
                )
        self.settle()

    @contextmanager
    def fit(self) -> Iterator[None]:
        """Inside the block steps of this thread may owe."""
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread, self._is_stepping = None, False
            self.settle()

    @contextmanager
    def no_reads_traced(self) -> Iterator[None]:
        """Inside the block, a part of the step is traced that may not read a table."""
        self._is_traced = True
        try:
            yield
        finally:
            self._is_traced = False

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
                host.unguard_reads(debtor.variable)
        self.tables, self.debtors = (), ()


_REFUSED = (
    "{} while its noise is owed. What is read then would hide less than was accounted. "
    "Read weights in a callback, or leave lazy_noise out of the optimizer."
)


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
    tables, debtors, reasons = [], [], []
    for layer in host.sublayers(model):
        if type(layer) is not keras.layers.Embedding or not layer.built:
            continue
        if id(layer.embeddings) not in places:
            continue
        reason = _why_not(layer, plan)
        if not reason:
            debtor, index = OwedNoise(layer.embeddings), places[id(layer.embeddings)]
            table = Table(layer, index, debtor.read)
            reason = _who_else(dataclasses.replace(objective, tables=[table]), specs)
        if reason:
            reasons.append(f"{layer.name!r} owes no noise: {reason}")
        else:
            tables.append(table)
            debtors.append(debtor)
    return Owing(len(places), tables, debtors, reasons)


def _why_not(layer: keras.layers.Embedding, plan: choose.Plan) -> str:
    """Why a layer's table may not owe; empty if it may."""
    table = layer.embeddings
    if plan.engine != "bookkeeping" or plan.alone:
        return "not every layer is differentiated by book-keeping"
    if not isinstance(table, keras.Variable) or layer.lora_enabled:
        return "its table is made of other weights"
    if table.dtype != "float32":
        return f"its table is {table.dtype}"
    if math.prod(table.shape) < FEWEST:
        return "its table is small"
    if layer.embeddings_constraint or table.regularizer or table.constraint:
        return "a regularizer or constraint reads the table"
    return ""


def _who_else(objective: Objective, specs: Rows) -> str:
    """Who else reads the table, such as tied weights; empty if nobody does."""
    like = map_rows(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), specs)

    def trace(rows: Rows) -> tf.Tensor:
        bookkeeping.plan(objective, rows)
        return tf.zeros([])

    try:
        tf.function(trace, autograph=False).get_concrete_function(like)
    except UnsupportedSiteError as error:
        return str(error)
    return ""


class _Settles(keras.callbacks.Callback):
    """First in line: whoever comes later sees settled tables."""

    def __init__(self, owing: Owing, others: Sequence[Any]) -> None:
        super().__init__()
        self._owing, self._others = owing, others

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Only if somebody could look."""
        self._owing.stepping(False)
        if any(map(_may_look, self._others)):
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
    if any(hook in vars(callback) for hook in _BATCH_HOOKS):
        return True
    if kind in _BLIND or kind.__module__.startswith("dp_train."):
        return False
    return any(
        getattr(kind, hook, None) is not getattr(keras.callbacks.Callback, hook)
        for hook in _BATCH_HOOKS
    )
