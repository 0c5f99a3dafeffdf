"""Gradients that are products of inputs and cotangents: kept, or only measured.

Index letters: b example, t position, i in, o out, k entry of the operand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, final

import tensorflow as tf

from dp_train.kernels import factored
from dp_train.kernels.contribution import (
    Contribution,
    select,
    squared_norms,
    weighted_sum_of,
    wide,
)

OUTER, KEPT, GRAM, BLOCKS = "outer product", "kept product", "Gram", "recomputed"
"""Rules of a product."""
KEPT_NUMBERS = 2**22
"""Most numbers of a gradient that is kept: 64 MiB for a chunk of 4 examples."""


def cheapest(width_in: int, width_out: int, positions: int | None) -> str:
    """The rule with the least work, beyond the sum, for one example.

        kept        28 i o (1 + i o / 2^24)   three passes over it, and three over the
                                              sum for each chunk of 64 MiB
        Gram        (4 t + 180) t (i + o)     in float64, and casts to it
        recomputed  (1.5 t + 28) i o

    in multiplications of a large float32 matmul, fitted to 21 shapes of 4 to 512
    positions on one core with AVX-512. What is kept is the weight's backward pass too;
    the others do it after the norms. One position is an outer product. A gradient above
    KEPT_NUMBERS is kept only where t varies: bounds on rounding would vary with it.

    Args:
        width_in: i.
        width_out: o.
        positions: t, if known.
    """
    if positions == 1:
        return OUTER
    if positions is None:
        return KEPT
    size = width_in * width_out
    costs = {
        KEPT: 28 * size * (1 + size / 2**24) if size <= KEPT_NUMBERS else math.inf,
        GRAM: (4 * positions + 180) * positions * (width_in + width_out),
        BLOCKS: (1.5 * positions + 28) * size,
    }
    return min(costs, key=lambda rule: costs[rule])


@final
class Product(Contribution):
    """gradient_b = sum_t a_bt g_bt^T, by the cheapest rule.

    Kept, it replaces the weight's backward pass. Otherwise it is never formed: its norm
    comes from a and g, and then one matmul gives the sum of all examples.

        ||a g^T||^2 = ||a||^2 ||g||^2               Goodfellow 2015 (arXiv:1510.01799)
        ||sum_t a_t g_t^T||^2 = sum_{t,s} (a_t . a_s) (g_t . g_s)
                                                    Li et al. 2021 (arXiv:2110.05679)
    """

    def __init__(
        self,
        inputs: tf.Tensor,
        cotangents: tf.Tensor,
        positions: int | None,
        shape: Sequence[int] | None = None,
        made_per_row: int = 0,
    ) -> None:
        """Chooses the rule.

        Args:
            inputs: [b, t, i].
            cotangents: [b, t, o].
            positions: t if known.
            shape: of the operand, with i o entries; None: (i, o).
            made_per_row: numbers of the inputs that exist for this product only.
        """
        self._inputs = wide(inputs)
        self._cotangents = wide(cotangents)
        self._positions = positions
        widths = inputs.shape[-1] or 0, cotangents.shape[-1] or 0
        self._shape = list(widths if shape is None else shape)
        self._made_per_row = made_per_row
        self.rule = cheapest(*widths, positions)
        self.kept_per_row = made_per_row
        operands = (positions or 0) * sum(widths)
        if self.rule == KEPT:
            self.kept_per_row, self.scratch_per_row = math.prod(widths), made_per_row
        elif self.rule == GRAM:
            self.kept_per_row = operands
            self.scratch_per_row = 2 * operands + 6 * (positions or 0) ** 2
        elif self.rule == BLOCKS:
            self.kept_per_row = operands
            self.scratch_per_row = operands + 2 * factored.block_size(*widths)

    @functools.cached_property
    def _gradients(self) -> tf.Tensor:
        """[b, i, o], computed once: it replaces the weight's backward pass."""
        return tf.matmul(self._inputs, self._cotangents, transpose_a=True)

    @functools.cached_property
    def _by_gram(self) -> tf.Tensor:
        return factored.gram(self._inputs, self._cotangents)

    def squared_norms(self, is_wide: bool) -> tf.Tensor:
        if self.rule == KEPT:
            return squared_norms(self._gradients, is_wide)
        if self.rule == GRAM:
            return self._by_gram
        if self.rule == BLOCKS:
            return factored.blocks(self._inputs, self._cotangents, is_wide)
        inputs = squared_norms(self._inputs, is_wide)
        return inputs * squared_norms(self._cotangents, is_wide)

    def weighted_sum(self, factors: tf.Tensor, keeps: tf.Tensor | None) -> tf.Tensor:
        if self.rule == KEPT:
            total = weighted_sum_of(self._gradients, factors, keeps)
            return tf.reshape(total, self._shape)
        inputs, cotangents = self._inputs, self._cotangents
        # The factor goes to the smaller of the two.
        if inputs.shape[-1] < cotangents.shape[-1]:
            inputs = select(inputs, factors, keeps)
        else:
            cotangents = select(cotangents, factors, keeps)
        if keeps is not None:
            ones = tf.ones_like(factors)
            inputs = select(inputs, ones, keeps)
            cotangents = select(cotangents, ones, keeps)
        if self.rule == OUTER:
            total = tf.matmul(inputs[:, 0], cotangents[:, 0], transpose_a=True)
        else:
            total = factored.total(inputs, cotangents)
        return tf.reshape(total, self._shape)

    def kept(self) -> tf.Tensor:
        batch = tf.shape(self._gradients)[0]
        gradients = tf.reshape(self._gradients, tf.stack([batch, *self._shape]))
        return tf.ensure_shape(gradients, [None, *self._shape])

    def added(self, batch: tf.Tensor, several: int) -> Product:
        positions = self._positions and self._positions * several
        inputs, cotangents = (
            tf.reshape(t, tf.stack([batch, positions or -1, t.shape[-1]]))
            for t in (self._inputs, self._cotangents)
        )
        made = several * self._made_per_row
        return Product(inputs, cotangents, positions, self._shape, made)

    def plus(self, others: Sequence[Product]) -> Contribution:
        every = [self, *others]
        counts = [p._positions for p in every if p._positions is not None]
        return Product(
            joined([p._inputs for p in every]),
            joined([p._cotangents for p in every]),
            sum(counts) if len(counts) == len(every) else None,
            self._shape,
            sum(p._made_per_row for p in every),
        )


def joined(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """The parts one after the other along axis 1; the same parts only once a graph.

    The weights of an unrolled recurrent layer share their cotangents: 64 steps of an
    LSTM would be copied once for each weight.
    """
    # Kept by the graph, so that both are freed together.
    kept = tf.compat.v1.get_default_graph().get_collection_ref("dp_train_joined")
    known: dict[Any, Any] = kept[0] if kept else {}
    kept[:] = [known]
    key = tuple(id(p) for p in parts)
    if key not in known:
        known[key] = tf.concat(parts, axis=1), parts  # alive, so that ids stay theirs
    return known[key][0]
