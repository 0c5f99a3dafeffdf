"""Which tables owe their noise during a fit, and who settles them before anyone looks.

In fit on arrays or a PoissonLoader nobody but the step sees the weights between two
callbacks, so an Embedding layer under plain SGD may owe (noise/owed.py). The first of
all callbacks settles: at the end of every epoch, before validation and prediction, and
after every batch if a callback is there that could look then. When fit ends, in
whatever way, nothing is owed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from dp_train import host
from dp_train.gradients import bookkeeping, choose
from dp_train.gradients.objective import Objective, Rows
from dp_train.gradients.structures import map_rows
from dp_train.gradients.tables import Table
from dp_train.kernels.contribution import UnsupportedSiteError
from dp_train.noise.draw import NOISE_SOURCES
from dp_train.noise.owed import OwedNoise
from dp_train.optimizers.dp_optimizer import DPOptimizer

FEWEST = 1 << 62
"""Numbers of a table from which it owes: none does yet. Threads, signal handlers and
custom metrics can still look at a table between two callbacks."""
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


@dataclass(frozen=True)
class Owing:
    """Tables that owe.

    Attributes:
        tables: how the engine reads them.
        debtors: for each trainable variable, its OwedNoise or None.
    """

    tables: tuple[Table, ...] = ()
    debtors: tuple[OwedNoise | None, ...] = ()

    def settle(self) -> None:
        """Draws all that is owed; eagerly."""
        for debtor in self.debtors:
            if debtor is not None:
                debtor.settle()


def owing_of(
    model: keras.Model, plan: choose.Plan, objective: Objective, spec: Rows
) -> Owing:
    """The tables of a model that may owe: large, and read by their layer alone.

    Args:
        model: built, compiled with a DP optimizer.
        plan: how its gradients are computed.
        objective: the loss of one example.
        spec: (x, y, sample_weight) of any number of rows.
    """
    optimizer = model.optimizer
    if (
        plan.engine != "bookkeeping"
        or plan.alone
        or not isinstance(optimizer, DPOptimizer)
        or not optimizer.is_plain_sgd
        or optimizer.noise_source != NOISE_SOURCES[0]
    ):
        return Owing()
    places = {id(v): i for i, v in enumerate(objective.variables)}
    debtors: list[OwedNoise | None] = [None] * len(places)
    tables = []
    for layer in host.sublayers(model):
        if not _may_owe(layer) or id(layer.embeddings) not in places:
            continue
        debtor, index = OwedNoise(layer.embeddings), places[id(layer.embeddings)]
        table = Table(layer, index, debtor.read)
        if _is_alone(dataclasses.replace(objective, tables=[table]), spec):
            debtors[index] = debtor
            tables.append(table)
    return Owing(tuple(tables), tuple(debtors)) if tables else Owing()


def _may_owe(layer: keras.layers.Layer) -> bool:
    """A plain Embedding layer, whose table is large and of its own."""
    if type(layer) is not keras.layers.Embedding or not layer.built:
        return False
    table = layer.embeddings
    return (
        isinstance(table, keras.Variable)
        and table.dtype == "float32"
        and math.prod(table.shape) >= FEWEST
        and not layer.lora_enabled
        and layer.embeddings_regularizer is None
        and layer.embeddings_constraint is None
    )


def _is_alone(objective: Objective, spec: Rows) -> bool:
    """Whether nothing else reads the table: tied weights would see what is owed."""
    like = map_rows(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), spec)

    def trace(rows: Rows) -> tf.Tensor:
        bookkeeping.plan(objective, rows)
        return tf.zeros([])

    try:
        tf.function(trace, autograph=False).get_concrete_function(like)
    except UnsupportedSiteError:
        return False
    return True


class Settling(keras.callbacks.Callback):
    """First in line: whoever comes later sees settled tables.

    Args:
        owing: the tables.
        others: all other callbacks of the fit.
    """

    def __init__(self, owing: Owing, others: Sequence[Any]) -> None:
        super().__init__()
        self._owing = owing
        self._after_batches = any(map(_may_look, others))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Only if somebody could look."""
        if self._after_batches:
            self._owing.settle()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checkpoints are written, weights printed and restored."""
        self._owing.settle()

    def on_test_begin(self, logs: Any = None) -> None:
        """Validation."""
        self._owing.settle()

    def on_predict_begin(self, logs: Any = None) -> None:
        """Prediction from within a callback."""
        self._owing.settle()

    def on_train_end(self, logs: Any = None) -> None:
        """Also where training was stopped."""
        self._owing.settle()


def _may_look(callback: Any) -> bool:
    """Whether a callback runs code between batches that is not known to be blind."""
    kind = type(callback)
    if kind in _BLIND or kind.__module__.startswith("dp_train."):
        return False
    return any(
        getattr(kind, hook, None) is not getattr(keras.callbacks.Callback, hook)
        or hook in vars(callback)
        for hook in _BATCH_HOOKS
    )
