"""What one example's gradient is the gradient of: the model's own loss on it alone.

Batch-of-one semantics by construction: custom losses, several outputs, sample weights
and Keras masks mean for an example in a batch what they mean for it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from dp_train import host
from dp_train.errors import NotPrivateError
from dp_train.gradients.copies import by_example
from dp_train.gradients.structures import map_rows
from dp_train.noise.draw import secret_keys

Rows = tuple[Any, Any, Any]
"""(x, y, sample_weight): nested structures of tensors with a common first axis."""


WEIGHTS_SCOPE = "dp_train_weights/"
"""Names of the ops that read the weights for all of a step begin so."""
_OF_COMPLEX = (
    "Clipping and noise are proved for real numbers: of complex ones they would bound "
    "and hide the real part only. Keep real and imaginary part as two real weights and "
    "join them in call (tf.complex), or set trainable=False."
)
_OF_WHOLE = (
    "Such a weight has no gradient: nothing would train it, and noise cannot be added "
    "to it. Make it a float weight, or set trainable=False."
)
Outputs = tuple[tf.Tensor, Any, Any]
"""(loss, predictions, host.hidden_on them) of one example or stacked, for metrics."""


@dataclass(frozen=True)
class Objective:
    """The loss of a model on one example, as a function of weights and random keys.

    Attributes:
        model: built and compiled (or with losses of its own).
        variables: the trainable variables, in the model's order.
        seed_states: state variables of the seed generators that a training call moves.
        training: False switches random layers off, to compare engines.
        alone: layers that book-keeping runs one example at a time.
        tables: gradients.tables.Table of layers that it reads row by row.
        copies: K; if it is above 1, x of the engines' rows is [n, K, ...], and the loss
            of an example is the mean over its copies of that of each alone.
    """

    model: keras.Model
    variables: Sequence[keras.Variable]
    seed_states: Sequence[keras.Variable]
    training: bool = True
    alone: Sequence[keras.layers.Layer] = ()
    tables: Sequence[Any] = ()
    copies: int = 1

    def __post_init__(self) -> None:
        """Refuses weights whose gradients have no norm here.

        Raises:
            NotPrivateError: a variable is complex, or no floating-point number.
        """
        for variable in self.variables:
            dtype = tf.as_dtype(variable.dtype)
            if not dtype.is_floating:
                reason = _OF_COMPLEX if dtype.is_complex else _OF_WHOLE
                raise NotPrivateError(
                    f"The trainable weight {variable.path!r} is {dtype.name}. {reason}"
                )

    def example_keys(self, count: tf.Tensor) -> list[tf.Tensor]:
        """A key for every example and seed state, new at every step and secret.

        Whoever knew the keys, or could reckon them from a seed or from the number of
        rows, would know what one example more does to the masks of others. Row i of the
        keys depends on i and on the process's keystream alone.

        Returns:
            One [count, 2] tensor for each seed state, [count, K, 2] for K > 1 copies.
        """
        if not self.seed_states:
            return []
        secret = secret_keys(len(self.seed_states))
        keys = []
        for i, state in enumerate(self.seed_states):
            key = tf.random.stateless_uniform(
                [count * self.copies, 2],
                seed=secret[i],
                minval=None,
                maxval=None,
                dtype=tf.int32,
                alg="philox",
            )
            keys.append(tf.cast(key, state.dtype))
        return by_example(keys, self.copies)

    def example(
        self, weights: Sequence[tf.Tensor], row: Rows, keys: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor], Outputs]:
        """Gradient, loss and predictions of one example, by plain autodiff.

        Of one copy, where there are several.

        Args:
            weights: values of `variables`.
            row: the example, without a batch axis.
            keys: one [2] state for each seed state.

        Returns:
            Gradients in the shapes of the weights (zero where the loss does not reach
            a weight), a scalar loss, and predictions without a batch axis.
        """
        gradients, outputs = self.differentiated(weights, row, keys)
        # Layers of open sizes may leave the shape of a gradient open.
        return [
            tf.ensure_shape(tf.zeros_like(w) if g is None else g, v.shape)
            for g, w, v in zip(gradients, weights, self.variables, strict=True)
        ], outputs

    def differentiated(
        self, weights: Sequence[tf.Tensor], row: Rows, keys: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor | None], Outputs]:
        """As `example`, but None where the loss does not reach a weight."""
        one = map_rows(lambda t: t[None], row)
        gradients, total, y_pred = self.of_rows(weights, one, keys)
        hidden = host.hidden_on(y_pred)
        return gradients, (total, *map_rows(lambda t: t[0], (y_pred, hidden)))

    def of_rows(
        self, weights: Sequence[tf.Tensor], rows: Rows, keys: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor | None], tf.Tensor, Any]:
        """Gradients, loss and predictions of some rows together, [n, ...]."""
        x, y, sample_weight = rows
        mapping = [
            *zip(self.variables, weights, strict=True),
            *zip(self.seed_states, keys, strict=True),
        ]
        with (
            host.without_regularization_losses(self.model),
            host.without_recomputation(),
            tf.GradientTape(watch_accessed_variables=False) as tape,
        ):
            tape.watch(weights)
            with keras.StatelessScope(mapping, collect_losses=True):
                y_pred = host.call_model(self.model, x, self.training)
                loss = host.compute_loss(self.model, x, y, y_pred, sample_weight)
                total = tf.reduce_sum(tf.convert_to_tensor(loss))
        found = tape.gradient(total, weights)
        gradients = [None if g is None else tf.convert_to_tensor(g) for g in found]
        return gradients, total, y_pred

    def reached_by_autodiff(self, rows: Rows) -> list[bool]:
        """For each weight, whether a training step of Keras itself would train it.

        Only while tracing a graph: nothing need be run to know.
        """
        x, y, sample_weight = rows
        with (
            host.without_regularization_losses(self.model),
            host.unrolled_recurrence(self.model),
            tf.GradientTape() as tape,
            keras.StatelessScope(collect_losses=True),
        ):
            y_pred = host.call_model(self.model, x, self.training)
            loss = host.compute_loss(self.model, x, y, y_pred, sample_weight)
            total = tf.reduce_sum(tf.convert_to_tensor(loss))
        found = tape.gradient(total, [v.value for v in self.variables])
        return [g is not None for g in found]


def weight_values(variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
    """The current values, as tensors that a tape can watch."""
    with tf.name_scope(WEIGHTS_SCOPE):
        return [tf.identity(tf.convert_to_tensor(v.value)) for v in variables]


def data_free_gradients(
    model: keras.Model, variables: Sequence[keras.Variable]
) -> list[tf.Tensor | None]:
    """Gradients of the weight regularisers, which read no data; None where none is."""
    with tf.GradientTape() as tape:
        penalties = host.regularization_losses(model)
        penalty = tf.add_n([tf.reduce_sum(p) for p in penalties]) if penalties else None
    if penalty is None:
        return [None] * len(variables)
    return tape.gradient(penalty, [v.value for v in variables])


def check_losses(model: keras.Model) -> None:
    """Refuses losses that are normalised by the data of the whole batch.

    Raises:
        NotPrivateError: reduction "mean_with_sample_weight".
    """
    for loss in host.losses(model):
        if getattr(loss, "reduction", None) == "mean_with_sample_weight":
            raise NotPrivateError(
                f"The loss {loss.name!r} has reduction='mean_with_sample_weight'. It "
                "divides by the sum of the batch's weights, which couples examples; on "
                "one example alone the weight would cancel. Use "
                "reduction='sum_over_batch_size'."
            )
