"""Small models and data that the tests of dp_train share."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import dp_train

EXAMPLES = 60
FEATURES = 4
CLASSES = 3


def data(examples: int = EXAMPLES) -> tuple[Any, Any]:
    """Features [examples, 4] and labels in {0, 1, 2}."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((examples, FEATURES)).astype("float32")
    return x, generator.integers(0, CLASSES, examples)


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(5, activation="relu"),
            keras.layers.Dense(CLASSES),
        ]
    )


def unbuilt() -> keras.Model:
    return keras.Sequential([keras.layers.Dense(CLASSES)])


def functional() -> keras.Model:
    inputs = keras.Input((FEATURES,))
    hidden = keras.layers.Dense(5, activation="tanh")(inputs)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden))


class Subclassed(keras.Model):
    """A subclass that is not registered."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(CLASSES)

    def call(self, x: Any) -> Any:
        return self.dense(x)


@keras.saving.register_keras_serializable(package="tests")
class Registered(Subclassed):
    """A subclass that Keras can load by its registered name."""


BUILDERS = {
    "sequential": sequential,
    "unbuilt": unbuilt,
    "functional": functional,
    "subclassed": Subclassed,
    "registered": Registered,
}


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(
    model: keras.Model | None = None,
    optimizer: Any = None,
    gradients: str = "auto",
    microbatch_size: int | str = "auto",
    **compile_arguments: Any,
) -> Any:
    """A private model, compiled; noise multiplier 1.0 unless an optimizer is given."""
    private = dp_train.make_private(
        sequential() if model is None else model,
        gradients=gradients,
        microbatch_size=microbatch_size,
    )
    private.compile(
        optimizer or dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0),
        **{"loss": loss(), **compile_arguments},
    )
    return private
