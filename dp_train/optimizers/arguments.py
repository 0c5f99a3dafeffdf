"""Arguments of a DP optimizer: what is refused, why, and what to type instead."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any, Generic, TypeVar, cast

import keras

_CLIPS_TOO_LATE = (
    "it clips the noised average, not each example; l2_norm_clip bounds the examples"
)
REFUSED_INNER_ARGUMENTS = {
    "clipnorm": _CLIPS_TOO_LATE,
    "clipvalue": _CLIPS_TOO_LATE,
    "global_clipnorm": _CLIPS_TOO_LATE,
    "gradient_accumulation_steps": "it averages gradients that are already noised, and "
    "so pays for several releases to get one; raise batch_size, and bound memory with "
    "make_private(..., microbatch_size=...)",
    "loss_scale_factor": "it divides the noised gradient by a factor that was never "
    "multiplied in; use the mixed_bfloat16 policy, which needs no loss scale",
}

FOREIGN_ARGUMENTS = {
    "num_microbatches": "TensorFlow Privacy cuts a batch into so many parts and clips "
    "the mean gradient of each; here every example is clipped by itself, as with "
    "num_microbatches=batch_size, at the cost of one pass. Leave it out; "
    "make_private(..., microbatch_size=...) bounds memory",
}


def refuse_foreign(arguments: Iterable[str]) -> None:
    """Tells what to do without an argument that another library has."""
    for name in arguments:
        if name in FOREIGN_ARGUMENTS:
            raise TypeError(f"{name} is no argument here. {FOREIGN_ARGUMENTS[name]}.")


T = TypeVar("T")


class Fixed(Generic[T]):
    """An argument of the constructor that is read, and never set, afterwards.

    Its value is kept under the same name with an underscore.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> T:
        if optimizer is None:  # of the class: inspection, autospec
            return cast(T, self)
        return cast(T, vars(optimizer)[f"_{self._name}"])

    def __set__(self, optimizer: Any, value: Any) -> None:
        name, kept = self._name, self.__get__(optimizer)
        raise AttributeError(
            f"{name} cannot be set to {value!r}. A step that was compiled, or a budget "
            f"that was computed, keeps {name}={kept!r} and would not notice. Make a "
            f"new optimizer with {name}={value!r} and compile again; a model from "
            "make_private goes on with its ledger."
        )


def checked_inner(inner: Any) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.get(inner)
    check_inner(optimizer)
    return optimizer


def check_inner(optimizer: keras.optimizers.Optimizer) -> None:
    """Refuses what does more with noised gradients than to update, in any part of it.

    MultiOptimizer with a function asks for its parts when it is built.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "The inner optimizer is a LossScaleOptimizer. Its decision to skip a step "
            "reads whether private gradients are finite, which is a release without "
            "noise. Use the mixed_bfloat16 policy, which needs no loss scale."
        )
    if hasattr(optimizer, "apply_clipped_sum"):
        raise ValueError(
            f"The inner optimizer is already a {type(optimizer).__name__}. Its noise "
            "would be added twice and charged once. Pass the plain Keras optimizer."
        )
    for argument, reason in REFUSED_INNER_ARGUMENTS.items():
        value = getattr(optimizer, argument, None)
        if value is not None:
            raise ValueError(
                f"The inner optimizer sets {argument}={value}. In private training "
                f"{reason}. Remove {argument}."
            )
    for part in _parts(optimizer):
        if hasattr(part, "apply_clipped_sum"):
            raise ValueError(
                f"The inner optimizer holds a {type(part).__name__}. What would reach "
                "it is noised already, and its noise would be added twice and charged "
                "once. Give MultiOptimizer plain Keras optimizers, and DPOptimizer the "
                "MultiOptimizer."
            )
        check_inner(part)


def _parts(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    held = [*vars(optimizer).values(), *getattr(optimizer, "optimizers", ())]
    return [part for part in held if isinstance(part, keras.optimizers.Optimizer)]


def checked_noise_multiplier(noise_multiplier: float | None) -> float | None:
    if noise_multiplier is None:
        return None
    value = float(noise_multiplier)
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(
            f"noise_multiplier must be finite and at least 0. Received: "
            f"noise_multiplier={noise_multiplier!r}. It is the standard deviation of "
            "the noise as a multiple of l2_norm_clip. Typical values are 0.5 to 10; "
            "accounting.calibrate.noise_multiplier finds the one for a target epsilon."
        )
    return value


def checked_target(
    noise_multiplier: float | None,
    target_epsilon: float | None,
    target_delta: float | None,
) -> tuple[float | None, float | None]:
    if (noise_multiplier is None) == (target_epsilon is None):
        raise ValueError(
            "Give either noise_multiplier or target_epsilon with target_delta. "
            f"Received: noise_multiplier={noise_multiplier!r}, "
            f"target_epsilon={target_epsilon!r}. One determines the other. For example "
            "DPAdam(1e-3, l2_norm_clip=1.0, target_epsilon=3.0, target_delta=1e-5)."
        )
    if target_epsilon is None:
        if target_delta is not None:
            raise ValueError(
                f"target_delta={target_delta!r} has no meaning with noise_multiplier. "
                "The delta of a report is chosen when it is read. Remove target_delta, "
                "or give target_epsilon instead of noise_multiplier."
            )
        return None, None
    if not 0 < float(target_epsilon) < math.inf:
        raise ValueError(
            f"target_epsilon must be positive and finite. Received: "
            f"target_epsilon={target_epsilon!r}. It bounds what the model may reveal "
            "about one example. Values from 0.5 to 10 are usual."
        )
    if target_delta is None or not 0 < float(target_delta) < 1:
        raise ValueError(
            f"target_delta must be strictly between 0 and 1. Received: "
            f"target_delta={target_delta!r}. It is the probability by which the "
            "guarantee may fail, so it belongs well below 1 / examples. Use 1e-5 for "
            "up to ten thousands of examples."
        )
    return float(target_epsilon), float(target_delta)


def checked_target_steps(
    target_steps: int | None, target_epsilon: float | None
) -> int | None:
    if target_steps is None:
        return None
    if target_epsilon is None:
        raise ValueError(
            f"target_steps={target_steps!r} was given without target_epsilon. It says "
            "how many steps share a target. Give target_epsilon and target_delta, or "
            "leave it out."
        )
    is_whole = isinstance(target_steps, numbers.Integral)
    if not is_whole or isinstance(target_steps, bool) or target_steps < 1:
        raise ValueError(
            f"target_steps must be a whole number of at least 1. Received: "
            f"target_steps={target_steps!r}. The noise is calibrated for so many steps "
            "of all fits together. Pass steps per epoch times epochs."
        )
    return int(target_steps)


def checked_expected_batch_size(expected_batch_size: float | None) -> float | None:
    if expected_batch_size is None:
        return None
    value = float(expected_batch_size)
    if not 0 < value < math.inf:
        raise ValueError(
            f"expected_batch_size must be positive. Received: "
            f"expected_batch_size={expected_batch_size!r}. The noised sum is divided "
            "by it. Pass the usual number of rows of a batch."
        )
    return value
