"""Augmentation of drawn examples, whose randomness is secret and each copy's own.

What an example is turned into may depend on the example and on numbers that nobody
knows. If it followed from a seed or from how many rows were drawn, one example more
would change what others become, and clipping bounds only what an example adds itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import keras
import numpy as np
import tensorflow as tf

from dp_train import effects, host
from dp_train.errors import NotPrivateError
from dp_train.gradients.structures import (
    check_dense,
    map_rows,
    restored,
    row_count,
    tensors,
)

Augment = Callable[[Any, tf.Tensor], Any]
"""augment(x, seed): an example without its batch axis, and int32 [2], to a new x."""


@final
class Augmentation:
    """A function of one example, traced once, and how many copies it makes of each.

    Args:
        augment: of an example's x and a seed, for tf.random.stateless_*.
        copies: K >= 1.
        x: arrays [N, ...], nested; only shapes and dtypes are read.

    Attributes:
        copies: K.
        specs: of what it makes of x: [None, ...], or [None, K, ...] if K > 1.

    Raises:
        ValueError: K is no positive integer, or the result is not of fixed shapes.
        NotPrivateError: the function has an effect, or reads what may change.
    """

    def __init__(self, augment: Augment, copies: int, x: Any) -> None:
        self.copies = check_multiplicity(augment, copies)
        if not callable(augment):
            raise ValueError(
                f"augment must be a function of an example and a seed. Received: "
                f"augment={augment!r}. It is called for each drawn example. Pass "
                "augment=lambda x, seed: ..., or leave it out."
            )
        specs = map_rows(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), x)
        made: list[Any] = []
        converted = tf.function(augment)

        def one(seed: tf.Tensor, *leaves: tf.Tensor) -> list[tf.Tensor]:
            result = _checked(converted(restored(specs, leaves), seed))
            made[:] = [result]
            return tensors(result)

        self._function = tf.function(one, autograph=False).get_concrete_function(
            tf.TensorSpec([2], tf.int32), *tensors(specs)
        )
        _check_effects(self._function.graph)
        axes = [None] if copies == 1 else [None, copies]
        self.specs = map_rows(
            lambda t: tf.TensorSpec([*axes, *t.shape], t.dtype), made[0]
        )
        self._of_arrays = host.graph_of_rows(lambda rows: self(*rows))

    def __call__(self, x: Any, seeds: tf.Tensor) -> Any:
        """Augmented copies of rows: [n, ...], or [n, K, ...] if K > 1.

        Args:
            x: rows [n, ...].
            seeds: [n * K, 2] int32, secret and never used before.
        """
        leaves, count = tensors(x), row_count(x)

        def one(i: tf.Tensor) -> list[tf.Tensor]:
            row = [t[i // self.copies] for t in leaves]
            return list(self._function(seeds[i], *row))

        specs = tensors(self.specs)
        like = [tf.TensorSpec(t.shape, t.dtype) for t in self._function.outputs]
        made = tf.map_fn(one, tf.range(count * self.copies), fn_output_signature=like)
        shaped = [
            tf.ensure_shape(tf.reshape(t, [count, *spec.shape[1:]]), spec.shape)
            for t, spec in zip(made, specs, strict=True)
        ]
        return restored(self.specs, shaped)

    def of_arrays(self, x: Any, seeds: Any) -> Any:
        """The same at once, as arrays."""
        rows = map_rows(tf.convert_to_tensor, (x, seeds))
        return map_rows(np.asarray, self._of_arrays(rows))


def check_multiplicity(augment: Any, multiplicity: Any) -> int:
    """The number of copies of each example.

    Raises:
        ValueError: not a positive integer, or several copies that would be equal.
    """
    is_integer = isinstance(multiplicity, int) and not isinstance(multiplicity, bool)
    if not is_integer or multiplicity < 1:
        raise ValueError(
            f"augmentation_multiplicity must be a positive integer. Received: "
            f"augmentation_multiplicity={multiplicity!r}. It is the number of "
            "augmented copies over which the gradient of an example is averaged. "
            "Pass 1, or 4 to 16 where steps may take so many times longer."
        )
    if multiplicity > 1 and augment is None:
        raise ValueError(
            f"augmentation_multiplicity={multiplicity} was given without augment. All "
            "copies of an example would be equal, and so would their mean. Pass "
            "augment, a function of an example and a seed."
        )
    return multiplicity


def _checked(result: Any) -> Any:
    """Tensors of fixed shapes, in dicts and tuples.

    Raises:
        ValueError: there is something else; what, and what to do.
    """
    check_dense(result)
    # tf.data knows no lists.
    result = keras.tree.lists_to_tuples(result)
    leaves = keras.tree.flatten(result)
    if not leaves or any(t is None for t in leaves):
        raise ValueError(
            f"augment returned {result!r}. What it returns takes the place of an "
            "example's x, and nothing can be trained on None. Return the example, "
            "changed or not, in every case."
        )
    result = map_rows(tf.convert_to_tensor, result)
    for t in tensors(result):
        if not t.shape.is_fully_defined():
            raise ValueError(
                f"augment returned a tensor of shape {t.shape}, of which some sizes "
                "depend on the example or on its seed. Examples of a batch must have "
                "one shape. Crop or pad to a fixed size, as "
                "tf.image.resize_with_crop_or_pad does, or state a size that you know "
                "with tf.ensure_shape."
            )
    return result


def _check_effects(graph: Any) -> None:
    """Refuses a function that does, or reads, more than its arguments show.

    Raises:
        NotPrivateError: the op is named.
    """
    for effect in effects.beyond_checks(graph.get_operations()):
        raise NotPrivateError(
            f"augment has an op that keeps a state, runs Python, or reads a variable "
            f"({effect.type}, {effect.name}). What it draws would follow from a seed "
            "and from how many examples came before, so that one example more would "
            "change what others become. Draw by tf.random.stateless_* or "
            "tf.image.stateless_random_* with the seed that augment is given."
        )
