"""Battery: what one DP optimizer cannot cover is refused before anything is trained.

Weights that another optimizer trains on raw gradients, and numbers of which clipping
and noise would see a part only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import dp_train
from tests.batteries.training import private

EXAMPLES = 40


def _rows() -> tuple[Any, Any]:
    x = np.random.default_rng(0).standard_normal((EXAMPLES, 3)).astype("float32")
    return x, x[:, :1]


def _dp() -> dp_train.DPSGD:
    return dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)


class Beside(keras.optimizers.SGD):
    """An optimizer that asks the DP optimizer first, and then trains on its own."""

    def __init__(self, first: Any) -> None:
        super().__init__(0.1)
        self.first = first

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        self.first.apply(grads, trainable_variables)
        super().apply(grads, trainable_variables)


def _several(is_dp_first: bool) -> Callable[[Any], Any]:
    def make(dp: Any) -> Any:
        sgd = keras.optimizers.SGD(0.1)
        first, second = (dp, sgd) if is_dp_first else (sgd, dp)
        parts = keras.optimizers.OptimizerMap(second, {".*first/.*": first})
        return keras.optimizers.MultiOptimizer(parts)

    return make


PARTS: dict[str, Callable[[Any], Any]] = {
    "the first layer": _several(True),
    "the last layer": _several(False),
    "all, and another all again": Beside,
}


def assert_no_weight_is_trained_beside_the_dp_optimizer(part: str) -> None:
    """A plain model whose optimizer hands a DP optimizer some gradients trains nothing.

    Args:
        part: key of PARTS.
    """
    optimizer = _dp()
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, name="first"),
            keras.layers.Dense(1, name="second"),
        ]
    )
    model.compile(PARTS[part](optimizer), loss="mse")
    before = model.get_weights()
    loader = dp_train.PoissonLoader(*_rows(), batch_size=10)
    refusal = ""
    try:
        model.fit(loader.dataset_for(optimizer), shuffle=False, verbose=0)
    except dp_train.NotPrivateError as error:
        refusal = str(error)
    moved = max(
        float(np.abs(a - b).max())
        for a, b in zip(before, model.get_weights(), strict=True)
    )
    assert moved == 0, f"Weights moved by {moved:.3g} on gradients without noise."
    assert "compile with the DP optimizer itself" in refusal.replace(
        "Compile", "compile"
    )


class Spectral(keras.layers.Layer):
    """Multiplies by complex weights and takes the imaginary part."""

    def build(self, input_shape: Any) -> None:
        self.factors = self.add_weight(
            shape=(3,), dtype="complex64", initializer="zeros"
        )

    def call(self, x: Any) -> Any:
        factors = tf.convert_to_tensor(self.factors.value)
        product = tf.cast(x, tf.complex64) * factors
        return tf.reduce_sum(tf.math.imag(product), 1, keepdims=True)


class Squared(Spectral):
    """The same without an op that the plain fit could stumble over."""

    def call(self, x: Any) -> Any:
        factors = tf.convert_to_tensor(self.factors.value)
        product = tf.cast(x, tf.complex64) * factors
        return tf.reduce_sum(tf.cast(product * product, tf.float32), 1, keepdims=True)


PATHS = ("auto", "bookkeeping", "vectorized", "loop", "plain fit", "custom loop")


def assert_complex_weights_are_refused(path: str) -> None:
    """No path trains them: the imaginary part would be neither clipped nor noised.

    Args:
        path: one of PATHS.
    """
    x, y = 1000 * _rows()[0], 1000 * _rows()[1]
    layer = Squared() if path == "plain fit" else Spectral()
    model = keras.Sequential([keras.Input((3,)), layer])
    loader = dp_train.PoissonLoader(x, y, batch_size=10)
    refusal = ""
    try:
        if path == "plain fit":
            optimizer = _dp()
            model.compile(optimizer, loss="mse")
            model.fit(loader.dataset_for(optimizer), shuffle=False, verbose=0)
        elif path == "custom loop":
            private(model, noise_multiplier=1.0)
            clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
            model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)
        else:
            private(model, noise_multiplier=1.0, engine=path)
            model.fit(x, y, batch_size=10, verbose=0)
    except dp_train.NotPrivateError as error:
        refusal = str(error)
    (weight,) = model.get_weights()
    moved = float(np.abs(weight).max())
    assert moved == 0, f"Complex weights moved by {moved:.3g}, noised in one part only."
    assert "is complex64" in refusal, refusal or "Nothing was refused."
