"""What a subclass of a DP optimizer may define: arguments and helpers of its own.

Between clip and noise every method and attribute counts, and so does any that
TensorFlow, Keras or Python ask for by themselves: so this is a white list.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from dp_train.errors import NotPrivateError

_MAY_DEFINE = frozenset(
    [
        *("__init__", "get_config", "from_config", "__repr__", "__str__"),
        *("__init_subclass__", "__signature__", "__doc__", "__module__"),
        *("__qualname__", "__annotations__", "__static_attributes__"),
        *("__firstlineno__", "__orig_bases__", "__parameters__", "__type_params__"),
    ]
)
"""Python reads the others of these names to show a class, and calls nothing."""


def check_class(cls: type, base: type) -> None:
    """Refuses a subclass that changes what becomes of gradients.

    Args:
        cls: a subclass of base.
        base: DPOptimizer.

    Raises:
        TypeError: it overrides something of base, or could stand before it.
    """
    for name in _changed_by_class(cls, base):
        raise TypeError(_reason(cls, name))


def check_optimizer(optimizer: Any, base: type) -> None:
    """The same for an optimizer that is in use, whatever was set since it was made.

    Raises:
        NotPrivateError: class or optimizer have another method or attribute of base.
    """
    cls = type(optimizer)
    changed = [*_changed_by_class(cls, base)]
    changed += [name for name in vars(optimizer) if hasattr(base, name)]
    for name in changed:
        raise NotPrivateError(_reason(cls, name))


def _changed_by_class(cls: type, base: type) -> Iterator[str]:
    """What the classes before base in the order of resolution may not define."""
    for kind in cls.__mro__[: cls.__mro__.index(base)]:
        for name, value in vars(kind).items():
            if not _may_define(name, value, base):
                yield name


def _may_define(name: str, value: Any, base: type) -> bool:
    if name in _MAY_DEFINE:
        return True
    if name in ("__dict__", "__weakref__"):  # of classes that are no optimizers
        return isinstance(value, types.GetSetDescriptorType)
    is_new = not hasattr(base, name) and not name.startswith("__")
    # A property would stand before an attribute that the optimizer sets on itself.
    stands_before = any(hasattr(type(value), m) for m in ("__set__", "__delete__"))
    return is_new and not stands_before


def _reason(cls: type, name: str) -> str:
    return (
        f"{cls.__name__} overrides {name}, or defines it as a property. A DP optimizer "
        "is given gradients without noise, and what a method or attribute of another "
        "did with them, or with their clip, no noise would cover. A subclass may have "
        "its own __init__, get_config, from_config, constants and further methods; "
        "write an update as a keras.optimizers.Optimizer and pass it as "
        "DPOptimizer(inner, ...): it gets noised gradients."
    )
