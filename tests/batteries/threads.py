"""Battery: a model trains in one thread at a time, and batches pay as what they are."""

from __future__ import annotations

import threading
from typing import Any

import keras
import numpy as np

import dp_train
from tests.batteries.training import private

EXAMPLES = 40


class _Waits(keras.callbacks.Callback):
    """Holds the fit after its first step until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.started, self.go_on = threading.Event(), threading.Event()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.started.set()
        self.go_on.wait(60)


def assert_one_model_trains_once_at_a_time() -> None:
    """A fit of samples of 1 / 40 begins while one of batches of all rows is held.

    It is refused, so that both steps of the first are charged in full.
    """
    model = private(
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]),
        noise_multiplier=1.0,
    )
    x, y = np.ones((EXAMPLES, 3), "float32"), np.ones((EXAMPLES, 1), "float32")
    waits, raised = _Waits(), []

    def first() -> None:
        model.fit(x, y, batch_size=EXAMPLES, epochs=2, verbose=0, callbacks=[waits])

    thread = threading.Thread(target=first)
    thread.start()
    try:
        waits.started.wait(60)
        model.fit(x, y, batch_size=1, steps_per_epoch=1, verbose=0)
    except dp_train.NotPrivateError as error:
        raised.append(error)
    finally:
        waits.go_on.set()
        thread.join()
    assert raised, "Two fits of one model ran at once."
    counts = [
        (r.event.sampling_probability, r.count) for r in model.privacy_ledger.releases
    ]
    assert counts == [(1.0, 2)], f"Two steps on all rows were charged as {counts}."
