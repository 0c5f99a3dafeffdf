"""Battery: whatever steers training beside noised updates is warned of and reported.

Each way trains a small model with something that looked at the data or at earlier
results; the report made from the saved ledger must name it in the caveat it belongs to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import dp_train
from accounting import Ledger, PrivacyReport, privacy_report
from tests.batteries.releases import rows, small_model

DELTA = 1e-5
callbacks = keras.callbacks


class StopAfter(callbacks.Callback):
    """Ends a fit after some batches, whatever it saw."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch + 1 >= self.batches:
            self.model.stop_training = True


class Carries(keras.layers.Layer):
    """Has layers for other inputs, and passes numbers on."""

    def __init__(self, *parts: Any) -> None:
        super().__init__()
        self.parts = list(parts)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, x: Any) -> Any:
        return x


def _fit(*given: Any, **arguments: Any) -> Any:
    model = small_model()
    x, y = rows()
    callbacks = list(given)
    model.fit(x, y, batch_size=4, callbacks=callbacks, verbose=0, **arguments)
    return model


def _in_a_list() -> Any:
    model = small_model()
    x, y = rows()
    prepared = callbacks.CallbackList([callbacks.TerminateOnNaN()], add_history=True)
    model.fit(x, y, batch_size=4, callbacks=prepared, verbose=0)
    return model


def _set_noise() -> Any:
    model = _fit()
    model.optimizer.noise_multiplier = 3.0
    return model


def _again(**settings: Any) -> Any:
    model = _fit()
    if settings:
        model.optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, **settings)
    model.fit(*rows(), batch_size=4, verbose=0)
    return model


def _stopped_stream() -> Any:
    model, data = small_model(), tf.data.Dataset.from_tensor_slices(rows())
    endless = data.batch(4).filter(lambda x, y: True)
    model.fit(endless, callbacks=[StopAfter(3)], verbose=0)
    return model


def _plain_fit(*given: Any, fits: int = 1, first: Any = None) -> Any:
    """A plain model after some fits, the first with other callbacks; made private."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    model.compile(optimizer, loss="mse")
    data = dp_train.PoissonLoader(*rows(), batch_size=4).dataset_for(optimizer)
    for i in range(fits):
        callbacks = list(given if i or first is None else first)
        model.fit(data, callbacks=callbacks, shuffle=False, verbose=0)
    return dp_train.make_private(model)


def _adapted(layer: Any, data: Any) -> Callable[[], Any]:
    def train() -> Any:
        layer.adapt(data)
        model = keras.Sequential(
            [keras.Input((3,)), Carries(layer), keras.layers.Dense(2)]
        )
        model = dp_train.make_private(model)
        model.compile(
            dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0), loss="mse"
        )
        model.fit(*rows(), batch_size=4, verbose=0)
        return model

    return train


@dataclass(frozen=True)
class Way:
    """Something that steers.

    Attributes:
        train: trains a model with it.
        caveat: id of the caveat that must name it.
        said: words of the caveat.
    """

    train: Callable[[], Any]
    caveat: str
    said: str


_numbers = np.arange(12)
_words = np.array(["a", "b", "a c"])
WAYS = {
    "another fit": Way(_again, "chosen_by_looking", "a fit went on after another"),
    "another fit of a plain model": Way(
        lambda: _plain_fit(fits=2), "chosen_by_looking", "a fit went on after another"
    ),
    "another target": Way(
        lambda: _again(target_epsilon=9.0, target_delta=1e-5),
        "chosen_by_looking",
        "a fit went on after another",
    ),
    "stopped, of data of unknown length": Way(
        _stopped_stream, "chosen_by_looking", "a fit ended after 3 of an unknown number"
    ),
    "stopped plain fit": Way(
        lambda: _plain_fit(StopAfter(3)), "chosen_by_looking", "ended after 3 of 10"
    ),
    "TerminateOnNaN in a second plain fit": Way(
        lambda: _plain_fit(callbacks.TerminateOnNaN(), fits=2, first=()),
        "printed_metrics",
        "TerminateOnNaN decided on 'loss'",
    ),
    "TerminateOnNaN": Way(
        lambda: _fit(callbacks.TerminateOnNaN()),
        "printed_metrics",
        "TerminateOnNaN decided on 'loss'",
    ),
    "EarlyStopping": Way(
        lambda: _fit(callbacks.EarlyStopping(monitor="loss")),
        "printed_metrics",
        "EarlyStopping decided on 'loss'",
    ),
    "a list inside a list": Way(
        lambda: _fit(callbacks.CallbackList([callbacks.TerminateOnNaN()])),
        "printed_metrics",
        "TerminateOnNaN decided on 'loss'",
    ),
    "CallbackList": Way(
        _in_a_list, "printed_metrics", "TerminateOnNaN decided on 'loss'"
    ),
    "validation_split": Way(
        lambda: _fit(validation_split=0.2),
        "printed_metrics",
        "validation_split=0.2 showed",
    ),
    "stopped": Way(
        lambda: _fit(StopAfter(3)),
        "chosen_by_looking",
        "a fit ended after 3 of 10 steps",
    ),
    "noise": Way(
        _set_noise,
        "chosen_by_looking",
        "noise_multiplier was set between two releases",
    ),
    "Normalization": Way(
        _adapted(keras.layers.Normalization(), _numbers[:, None]),
        "data_statistics",
        "(Normalization) has figures from adapt or set",
    ),
    "Discretization": Way(
        _adapted(keras.layers.Discretization(num_bins=3), _numbers),
        "data_statistics",
        "(Discretization) has figures from adapt or set",
    ),
    "IntegerLookup": Way(
        _adapted(keras.layers.IntegerLookup(), _numbers),
        "data_statistics",
        "(IntegerLookup) has figures from adapt or set",
    ),
    "StringLookup": Way(
        _adapted(keras.layers.StringLookup(), _words),
        "data_statistics",
        "(StringLookup) has figures from adapt or set",
    ),
    "TextVectorization": Way(
        _adapted(keras.layers.TextVectorization(), _words),
        "data_statistics",
        "(TextVectorization) has figures from adapt or set",
    ),
}


def reported(model: Any) -> PrivacyReport:
    """The report of a ledger that was saved and read again."""
    ledger = model.privacy_ledger
    return privacy_report(Ledger.from_json(ledger.to_json()), DELTA)


def assert_what_steers_is_reported(way: str) -> None:
    """Warned of while training, and named in the report."""
    steering = WAYS[way]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = steering.train()
    told = [w for w in caught if issubclass(w.category, dp_train.PrivacyWarning)]
    assert told, f"Nothing was said of {way}."
    said = {caveat.id: caveat.text for caveat in reported(model).caveats}
    text = said.get(steering.caveat, "")
    assert steering.said in text, f"The report does not name {way}: {text!r}."


def assert_a_stop_is_offered_the_plan() -> None:
    """The report of a fit that was stopped gives the epsilon of all its steps."""
    whole = _fit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dp_train.PrivacyWarning)
        stopped = _fit(StopAfter(3))
    expected = reported(whole).epsilon.upper
    offered = dict(reported(stopped).comparisons).get("plan")
    assert offered == expected, f"A stop was offered {offered}, the plan is {expected}."
