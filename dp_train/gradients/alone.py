"""Layers that run one example at a time inside an engine that runs whole batches.

Where no rule knows an op of a layer, the layer is mapped over the examples: its outputs
then read one example each by construction, and the vector-Jacobian product of the same
map gives each example's gradient of its weights. The rest of the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from dp_train import host
from dp_train.gradients.objective import Objective, weight_values
from dp_train.gradients.structures import restored, tensors
from dp_train.kernels.contribution import Kept, UnsupportedSiteError

_DRAWS_OF_A_CALL = 1 << 16
"""So many draws, at most, a layer makes of one example; more would repeat another's."""


@dataclass(frozen=True)
class AloneCall:
    """One call of a layer, mapped over examples.

    Attributes:
        layer: the layer.
        one: its call on one example: elements without batch axis -> outputs [1, ...].
        elements: [b, ...] tensors that it reads.
        outputs: [b, ...] tensors that it returned.
        weights: the values that it read, one for each trainable variable.
    """

    layer: keras.layers.Layer
    one: Callable[[list[tf.Tensor]], list[tf.Tensor]]
    elements: list[tf.Tensor]
    outputs: list[tf.Tensor]
    weights: list[tf.Tensor]

    def contributions(self, cotangents: dict[int, tf.Tensor]) -> list[Kept | None]:
        """Each example's gradient of each weight; None where a weight is not read.

        Args:
            cotangents: by id of an output.
        """
        given = [
            cotangents.get(id(t), tf.zeros_like(t) if t.dtype.is_floating else None)
            for t in self.outputs
        ]
        is_read: list[bool] = []

        def one(parts: list[tf.Tensor]) -> list[tf.Tensor]:
            # The map's elements are slices of what other calls returned.
            elements = [tf.stop_gradient(t) for t in parts[: len(self.elements)]]
            remaining = iter(parts[len(self.elements) :])
            outputs = [
                t
                for t, g in zip(self.one(elements), given, strict=True)
                if g is not None
            ]
            found = tf.gradients(
                outputs, self.weights, grad_ys=[next(remaining)[None] for _ in outputs]
            )
            is_read[:] = [g is not None for g in found]
            return [tf.convert_to_tensor(g) for g in found if g is not None]

        parts = [*self.elements, *(g for g in given if g is not None)]
        mapped = iter(_mapped(self.layer, one, parts))
        return [Kept("layer alone", next(mapped)) if r else None for r in is_read]


@contextmanager
def run_alone(
    objective: Objective, keys: Sequence[tf.Tensor], calls: list[Any]
) -> Iterator[None]:
    """Inside the block the objective's `alone` layers are mapped over the examples.

    Args:
        objective: its `alone` says which.
        keys: [b, 2] of each seed state: every example draws from its own.
        calls: each call is added.
    """
    is_inside = False
    states = list(objective.seed_states)
    # Not what the rest of the model reads: that is followed op by op.
    values = weight_values(objective.variables)

    def around(layer: keras.layers.Layer, call: Any) -> Any:
        def mapped(*args: Any, **kwargs: Any) -> Any:
            if is_inside:
                return call(*args, **kwargs)
            given = (args, kwargs)
            is_row = [_has_batch_axis(t) for t in tensors(given)]
            rows = [t for t, r in zip(tensors(given), is_row, strict=True) if r]
            hidden = host.hidden_on(rows)
            weights = [tf.identity(t) for t in values]
            # Another call draws other numbers, and the rest of the model does.
            apart = (1 + len(calls)) * _DRAWS_OF_A_CALL
            own_keys = [key + tf.constant([0, apart], key.dtype) for key in keys]
            structure: list[Any] = []

            def one(elements: list[tf.Tensor]) -> list[tf.Tensor]:
                nonlocal is_inside
                given_rows = elements[: len(elements) - len(own_keys)]
                slices = host.with_hidden(
                    *restored((rows, hidden), [e[None] for e in given_rows])
                )
                remaining = iter(slices)
                own_args, own_kwargs = restored(
                    given,
                    [
                        next(remaining) if r else t
                        for t, r in zip(tensors(given), is_row, strict=True)
                    ],
                )
                mapping = zip(
                    [*objective.variables, *states],
                    [*weights, *elements[len(given_rows) :]],
                    strict=True,
                )
                is_inside = True
                try:
                    with keras.StatelessScope(
                        list(mapping), collect_losses=True
                    ) as scope:
                        outputs = call(*own_args, **own_kwargs)
                finally:
                    is_inside = False
                if scope.losses:
                    raise UnsupportedSiteError(f"{layer.name!r} adds a loss of its own")
                structure[:] = [(outputs, host.hidden_on(outputs))]
                return tensors(structure)

            elements = [*tensors((rows, hidden)), *own_keys]
            flat = _mapped(layer, lambda parts: [t[0] for t in one(parts)], elements)
            calls.append(AloneCall(layer, one, elements, list(flat), weights))
            return host.with_hidden(*restored(structure[0], flat))

        return mapped

    with host.replaced_calls(objective.alone, around):
        yield


def _mapped(layer: keras.layers.Layer, function: Any, elements: list[Any]) -> Any:
    """host.vectorized_map, if it can be."""
    try:
        return host.vectorized_map(function, elements)
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UnsupportedSiteError(
            f"{layer.name!r} cannot be mapped over examples ({reason})"
        ) from error


def _has_batch_axis(t: Any) -> bool:
    """Rows of an engine have an unknown count, and nothing else has."""
    return tf.is_tensor(t) and bool(t.shape.rank) and t.shape[0] is None


def owner(
    op: tf.Operation, spans: Sequence[tuple[keras.layers.Layer, int, int]]
) -> keras.layers.Layer | None:
    """The innermost layer whose call made the op.

    Args:
        op: an op of the graph in which the calls were traced.
        spans: (layer, first op, last op + 1) of each call, in the order they ended.
    """
    place = op.graph.get_operations().index(op)
    for layer, start, stop in spans:  # inner calls end before outer ones
        if start <= place < stop:
            return layer
    return None


@contextmanager
def recorded_spans(
    model: keras.Model,
) -> Iterator[list[tuple[keras.layers.Layer, int, int]]]:
    """Inside the block every call of a layer appends the range of ops that it made."""
    spans: list[tuple[keras.layers.Layer, int, int]] = []

    def around(layer: keras.layers.Layer, call: Any) -> Any:
        def recording(*args: Any, **kwargs: Any) -> Any:
            graph = tf.compat.v1.get_default_graph()
            start = len(graph.get_operations())
            outputs = call(*args, **kwargs)
            spans.append((layer, start, len(graph.get_operations())))
            return outputs

        return recording

    with host.replaced_calls(host.sublayers(model), around):
        yield spans
