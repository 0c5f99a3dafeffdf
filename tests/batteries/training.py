"""What the batteries share: private models, chosen draws, and the weight change.

Each test double replaces one thing only: who is drawn into a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import keras
import numpy as np

import dp_train
from dp_train.sampling import PoissonSampling

LEARNING_RATE = 2.0**20
"""A power of two, exact in any float, beside which the weights' rounding vanishes."""


@contextmanager
def without_noise() -> Iterator[None]:
    """Expects the warning that noise_multiplier=0 gives."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "noise_multiplier=0", dp_train.PrivacyWarning)
        yield


@contextmanager
def with_lost_rows() -> Iterator[None]:
    """Expects, maybe, the warning that examples hold NaN."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* examples hold NaN", UserWarning)
        yield


@contextmanager
def drawing(*draws: Any) -> Iterator[None]:
    """Makes Poisson sampling return these index arrays in turn, again and again."""
    count = iter(range(10**9))

    def indices(self: PoissonSampling) -> Any:
        return np.asarray(draws[next(count) % len(draws)], np.int64)

    with mock.patch.object(PoissonSampling, "indices", indices):
        yield


def private(
    model: keras.Model,
    *,
    l2_norm_clip: float = 1.0,
    noise_multiplier: float = 0.0,
    learning_rate: float = 1.0,
    engine: str = "auto",
    microbatch_size: int | str = "auto",
    noise_source: str = "aes256-ctr",
    **compile_arguments: Any,
) -> Any:
    """The model, private and compiled with plain DP-SGD."""
    model = dp_train.make_private(
        model, gradients=engine, microbatch_size=microbatch_size
    )
    optimizer = dp_train.DPSGD(
        learning_rate,
        l2_norm_clip=l2_norm_clip,
        noise_multiplier=noise_multiplier,
        noise_source=noise_source,
    )
    model.compile(optimizer, **{"loss": "mse", **compile_arguments})
    return model


def behind_dropout(features: int, engine: str, **options: Any) -> Any:
    """A private model whose loss is a weighted sum of features behind Dropout."""
    model = keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1, use_bias=False),
        ]
    )
    return private(
        model,
        engine=engine,
        loss=lambda y_true, y_pred: keras.ops.sum(y_pred, -1),
        **options,
    )


def weight_change(model: Any, step: Callable[[], Any]) -> list[np.ndarray[Any, Any]]:
    """Change of each trainable weight in float64; the weights are put back after."""
    before = model.get_weights()
    old = [np.asarray(v, np.float64) for v in model.trainable_variables]
    step()
    new = [np.asarray(v, np.float64) for v in model.trainable_variables]
    model.set_weights(before)
    return [b - a for a, b in zip(old, new, strict=True)]


def released_sum(
    model: Any, rows: Any, drawn: Any, batch_size: float
) -> list[np.ndarray[Any, Any]]:
    """(weight change) * B / learning rate of one public fit on the drawn rows.

    The population and B stay the same whoever is drawn, as they do for neighbours.
    """
    x, y, sample_weight = rows

    def step() -> None:
        with drawing(drawn), with_lost_rows():
            model.fit(
                x,
                y,
                sample_weight=sample_weight,
                batch_size=batch_size,
                steps_per_epoch=1,
                epochs=1,
                verbose=0,
            )

    scale = -batch_size / float(np.asarray(model.optimizer.learning_rate))
    return [scale * change for change in weight_change(model, step)]
