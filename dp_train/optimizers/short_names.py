"""Short names: DPSGD is keras.optimizers.SGD inside a DPOptimizer, and so on."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from dp_train.optimizers.arguments import REFUSED_INNER_ARGUMENTS, refuse_foreign
from dp_train.optimizers.dp_optimizer import DPOptimizer


class _ShortName(DPOptimizer):
    """`DPX(<arguments of keras.optimizers.X>, *, <arguments of DPOptimizer>)`."""

    keras_class: type[keras.optimizers.Optimizer]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keras_signature = inspect.signature(cls.keras_class.__init__)
        own = inspect.signature(DPOptimizer.__init__).parameters
        refused = {*REFUSED_INNER_ARGUMENTS, "kwargs", "name"}
        cls.__signature__ = inspect.Signature(
            [
                *(p for n, p in keras_signature.parameters.items() if n not in refused),
                *(p for p in own.values() if p.kind is p.KEYWORD_ONLY),
            ][1:]
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_foreign(kwargs)
        own = {
            name: kwargs.pop(name)
            for name, parameter in inspect.signature(
                DPOptimizer.__init__
            ).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name in kwargs
        }
        if "l2_norm_clip" not in own:
            raise TypeError(
                f"{type(self).__name__} needs l2_norm_clip, the most that one example "
                "may move the summed gradient (l2 norm). Without it nothing bounds an "
                "example's influence. Start from l2_norm_clip=1.0."
            )
        super().__init__(self.keras_class(*args, **kwargs), **own)


@keras.saving.register_keras_serializable(package="dp_train")
class DPSGD(_ShortName):
    """DP-SGD: the arguments of keras.optimizers.SGD and of DPOptimizer."""

    keras_class = keras.optimizers.SGD


@keras.saving.register_keras_serializable(package="dp_train")
class DPAdam(_ShortName):
    """DP-Adam: the arguments of keras.optimizers.Adam and of DPOptimizer."""

    keras_class = keras.optimizers.Adam


@keras.saving.register_keras_serializable(package="dp_train")
class DPAdamW(_ShortName):
    """DP-AdamW: the arguments of keras.optimizers.AdamW and of DPOptimizer."""

    keras_class = keras.optimizers.AdamW


@keras.saving.register_keras_serializable(package="dp_train")
class DPAdagrad(_ShortName):
    """DP-Adagrad: the arguments of keras.optimizers.Adagrad and of DPOptimizer."""

    keras_class = keras.optimizers.Adagrad


@keras.saving.register_keras_serializable(package="dp_train")
class DPRMSprop(_ShortName):
    """DP-RMSprop: the arguments of keras.optimizers.RMSprop and of DPOptimizer."""

    keras_class = keras.optimizers.RMSprop
