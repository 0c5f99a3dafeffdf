"""What is decided by looking: at figures without noise, or at earlier results.

Epsilon covers the noised updates. It does not cover what a callback decides on the
training loss, nor layers adapted to the data; and it is that of a number of steps and a
noise that were fixed beforehand. Each such thing is warned of, and noted in the ledger,
so that every report of it says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from accounting import Ledger
from dp_train import host
from dp_train.errors import PrivacyWarning


def flat(callbacks: Any) -> list[Any]:
    """Every callback of lists and of Keras's lists of callbacks, in order."""
    found = []
    for callback in keras.tree.flatten(callbacks) if callbacks else []:
        if type(callback) is keras.callbacks.CallbackList:
            found += flat(callback.callbacks)
        elif callback is not None:
            found.append(callback)
    return found


def warn_of_callbacks(
    callbacks: Any, is_validation_private: bool, ledger: Ledger
) -> None:
    """Warns of callbacks that decide, visibly, on private data without noise."""
    for callback in flat(callbacks):
        if isinstance(callback, keras.callbacks.CallbackList):
            warn_of_callbacks(callback.callbacks, is_validation_private, ledger)
        figure = _decides_on(callback)
        if figure is None:
            continue
        if is_validation_private or not figure.startswith("val_"):
            name = type(callback).__name__
            ledger.remark("printed_metrics", f"{name} decided on {figure!r}")
            warnings.warn(
                f"{name} decides on {figure!r}, a figure computed from private data "
                "without noise. That decision is a release that epsilon does not "
                "count. Monitor a metric of public validation data instead.",
                PrivacyWarning,
                stacklevel=3,
            )


def _decides_on(callback: Any) -> str | None:
    """The figure that a callback decides on; None if it is not known to."""
    if isinstance(callback, keras.callbacks.TerminateOnNaN):
        return "loss"
    if not getattr(callback, "save_best_only", True):
        return None
    figure = getattr(callback, "monitor", None)
    return None if figure is None else str(figure)


def warn_of_validation_split(validation_split: float, ledger: Ledger) -> None:
    """Warns of examples that are held back and then shown without noise."""
    if validation_split:
        split = f"validation_split={validation_split:g}"
        ledger.remark("printed_metrics", f"{split} showed figures of held-back rows")
        warnings.warn(
            f"{split} holds back rows of the private data. They train nothing, but "
            "val_loss and the other figures are computed from them without noise, and "
            "epsilon does not cover them. Pass public validation_data instead.",
            PrivacyWarning,
            stacklevel=3,
        )


def warn_of_adapted_layers(model: keras.Model, ledger: Ledger) -> None:
    """Warns of statistics that `adapt` may have put into the model without noise."""
    for layer in host.sublayers(model):
        can_adapt = callable(getattr(layer, "adapt", None))
        if not can_adapt or _is_given(layer) or _is_empty(layer):
            continue
        name = f"{layer.name!r} ({type(layer).__name__})"
        ledger.remark("data_statistics", f"layer {name} has figures from adapt or set")
        warnings.warn(
            f"Layer {name} has figures that its constructor was not given: from adapt, "
            "or set later. They are part of the model and carry no noise, so epsilon "
            "does not cover them if they are those of private data. Adapt it to public "
            "data, or pass them to its constructor.",
            PrivacyWarning,
            stacklevel=4,
        )


def _is_given(layer: keras.layers.Layer) -> bool:
    """Whether a layer has its figures, boundaries or words from its constructor."""
    if isinstance(layer, keras.layers.TextVectorization):
        return layer.get_config()["vocabulary"] is not None
    if isinstance(layer, keras.layers.Discretization):
        return layer.num_bins is None
    given = "input_mean", "input_vocabulary"
    return any(getattr(layer, name, None) is not None for name in given)


_WITH_WORDS = (
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)


def _is_empty(layer: keras.layers.Layer) -> bool:
    """Whether a layer of Keras is known to be as before any adapt."""
    if isinstance(layer, keras.layers.Discretization):
        return layer.bin_boundaries is None
    if isinstance(layer, _WITH_WORDS):
        return not host.outside_of_tracing(
            lambda: layer.get_vocabulary(include_special_tokens=False)
        )
    if isinstance(layer, keras.layers.Normalization):
        if layer.mean is None:
            return True
        figures = zip((layer.mean, layer.variance), (0.0, 1.0), strict=True)
        return all(np.all(tf.get_static_value(t) == at) for t, at in figures)
    return False


class Stops(keras.callbacks.Callback):
    """Notes a fit that ended before its plan was done, as a callback and a context.

    Args:
        ledger: of the model, asked when it matters: owners of weights may join.
        planned_steps: number of steps, asked when training begins; None if unknown.
        is_exhausted: whether a budget holds back what is left.
    """

    def __init__(
        self,
        ledger: Callable[[], Ledger],
        planned_steps: Callable[[], int | None],
        is_exhausted: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._ledger, self._planned_steps = ledger, planned_steps
        self._is_exhausted = is_exhausted
        self._before, self._is_asked = 0, False
        self._planned: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Other callbacks have restored a checkpoint by then."""
        self._before, self._planned = self._ledger().total, self._planned_steps()

    def on_train_end(self, logs: Any = None) -> None:
        """Somebody has asked for an end, or the data have come to theirs."""
        self._is_asked = bool(self.model.stop_training)

    def __enter__(self) -> Stops:
        return self

    def __exit__(self, kind: type | None, error: Any, trace: Any) -> None:
        ledger, planned = self._ledger(), self._planned
        made = ledger.total - self._before
        is_early = self._is_asked if planned is None else made < planned
        if made == 0 or not is_early or self._is_exhausted():
            return
        note_stop(ledger, made, planned, "" if kind is None else kind.__name__)


def note_stop(ledger: Ledger, made: int, planned: int | None, by: str = "") -> None:
    """Warns of a fit that ended before its plan was done.

    Args:
        ledger: to be noted in.
        made: steps that were made.
        planned: steps of the plan, None if it did not say.
        by: the error that ended it, which is told anyway.
    """
    of = "an unknown number of" if planned is None else f"{planned}"
    what = f"a fit ended after {made} of {of} steps"
    named = f"{what}, by {by}" if by else what
    if planned is None:
        ledger.remark("chosen_by_looking", named)
    else:
        ledger.forgo(planned - made, named)
    if not by:
        warnings.warn(
            f"{what[0].upper()}{what[1:]}. If that was decided on earlier results, "
            "as EarlyStopping does, the epsilon of the steps that were made is too "
            "small. The report names what holds: the epsilon of the whole plan, where "
            "there was one, and the odometer's.",
            PrivacyWarning,
            stacklevel=4,
        )


def note_another_fit(ledger: Ledger) -> None:
    """Warns that a fit goes on where another, or another model's, has ended."""
    if ledger.total:
        ledger.remark("chosen_by_looking", "a fit went on after another had ended")
        warnings.warn(
            f"Training goes on after {ledger.total} releases of earlier fits. If that, "
            "or its settings, were decided on their results, the epsilon of all steps "
            "together is too small; the report then gives the odometer's. Plan all "
            "steps before the first: one fit, or target_epsilon with target_steps, "
            "which several fits share.",
            PrivacyWarning,
            stacklevel=4,
        )


def note_new_noise(noise_multiplier: float, ledger: Ledger) -> None:
    """Warns that noise is no longer what it was when the releases began."""
    if ledger.total:
        ledger.remark(
            "chosen_by_looking", "noise_multiplier was set between two releases"
        )
        warnings.warn(
            f"noise_multiplier was set to {noise_multiplier:g} after {ledger.total} "
            "releases. Epsilon holds if that was planned before the first; if it was "
            "decided on their results, it is too small. The report then gives the "
            "odometer's, and accounting.RenyiFilter keeps a budget.",
            PrivacyWarning,
            stacklevel=4,
        )
