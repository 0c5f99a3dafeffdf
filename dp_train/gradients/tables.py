"""Embedding layers whose table is read row by row, and never as a whole.

Their noise is owed (noise/owed.py): a row is settled when the layer reads it, and the
clipped sum holds the rows that were read only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from dp_train import host
from dp_train.gradients.objective import Objective
from dp_train.kernels.contribution import RowsRead, UnsupportedSiteError


@dataclass(frozen=True)
class Table:
    """An Embedding layer and how its rows are read.

    Attributes:
        layer: the layer.
        index: place of its table among the trainable variables.
        read: ids [n] -> rows [n, width], up to date.
    """

    layer: keras.layers.Layer
    index: int
    read: Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class TableCall:
    """One call of such a layer; as AloneCall to those who differentiate.

    Attributes:
        table: whose rows were read.
        ids: [b, ...].
        outputs: [b, ..., width] the rows, in a list.
        count: number of trainable variables.
    """

    table: Table
    ids: tf.Tensor
    outputs: list[tf.Tensor]
    count: int

    @property
    def layer(self) -> keras.layers.Layer:
        """The layer that was called."""
        return self.table.layer

    @property
    def elements(self) -> list[tf.Tensor]:
        """What it read of the examples."""
        return [self.ids]

    def contributions(self, cotangents: dict[int, tf.Tensor]) -> list[RowsRead | None]:
        """Gradients of the table, at its place; None for all other weights.

        Args:
            cotangents: by id of an output.
        """
        found: list[RowsRead | None] = [None] * self.count
        (output,) = self.outputs
        if id(output) in cotangents:
            rows, width = self.layer.embeddings.shape
            batch = tf.shape(self.ids)[0]
            ids = tf.reshape(self.ids, tf.stack([batch, -1]))
            cotangent = tf.reshape(cotangents[id(output)], tf.stack([batch, -1, width]))
            found[self.table.index] = RowsRead(ids, cotangent, rows)
        return found


@contextmanager
def read_by_row(objective: Objective, calls: list[Any]) -> Iterator[None]:
    """Inside the block the objective's `tables` are read row by row.

    Args:
        objective: its `tables` say which and how.
        calls: each call is added.
    """
    tables = {id(table.layer): table for table in objective.tables}

    def around(layer: keras.layers.Layer, call: Any) -> Any:
        del call
        table = tables[id(layer)]
        rows, width = layer.embeddings.shape

        def by_row(inputs: Any) -> Any:
            if not tf.is_tensor(inputs) or not inputs.shape.rank:
                raise UnsupportedSiteError(f"{layer.name!r} reads ids without an axis")
            if inputs.shape[0] is not None:
                raise UnsupportedSiteError(f"{layer.name!r} reads ids of no example")
            ids = inputs
            if ids.dtype not in (tf.int32, tf.int64):
                ids = tf.cast(ids, tf.int32)
            # Negative ids count from the end, as in Keras.
            ids = tf.where(ids < 0, ids + rows, ids)
            output = tf.reshape(
                table.read(tf.reshape(ids, [-1])),
                tf.concat([tf.shape(ids), [width]], axis=0),
            )
            output = tf.ensure_shape(output, [*ids.shape, width])
            calls.append(TableCall(table, ids, [output], len(objective.variables)))
            return tf.cast(output, layer.compute_dtype)

        return by_row

    with host.replaced_calls([table.layer for table in objective.tables], around):
        yield
