"""Sizes that no batch may decide: all but the number of its rows.

Where somebody else makes the batches, their longest example may decide the length to
which all others are padded. It then moves the gradients of the others too, by up to the
clip norm each, and clipping bounds only its own. Sizes that were fixed beforehand do
not depend on any example. Batches of our own loaders are rows of arrays: only the
number of rows varies.
"""

from __future__ import annotations

from typing import Any

import keras

from dp_train.errors import NotPrivateError


class FixedSizes:
    """Sizes of the first ready-made batch; every later one must have the same."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, ...]] | None = None

    def check(self, rows: Any) -> None:
        """Compares a batch, or what is known of it while tracing, with the first.

        Args:
            rows: (x, y, sample_weight) of arrays, tensors or specs, [n, ...].

        Raises:
            NotPrivateError: a size is open, or other than in the first batch.
        """
        found = {}
        for name, tensor in _named(rows):
            shape = tuple(tensor.shape) if _rank(tensor) is not None else (None, None)
            for axis, size in enumerate(shape[1:], 1):
                if size is None:
                    _refuse(f"Axis {axis} of {name} has no fixed size in this data")
            found[name] = tuple(int(size) for size in shape[1:])
        if self._known is None:
            self._known = found
        for name in found.keys() & self._known.keys():
            before = self._known[name]
            if found[name] != before:
                _refuse(
                    f"An example of {name} has the shape {found[name]} in this batch "
                    f"and {before} in an earlier one"
                )


def _rank(tensor: Any) -> int | None:
    shape = tensor.shape
    return getattr(shape, "rank", len(shape) if isinstance(shape, tuple) else None)


def _named(rows: Any) -> list[tuple[str, Any]]:
    """Every tensor of (x, y, sample_weight) with its name: x, y['label']."""
    found = []
    for part, value in zip(("x", "y", "sample_weight"), rows, strict=True):
        for path, tensor in keras.tree.flatten_with_path(value):
            if tensor is not None:
                found.append((part + "".join(f"[{key!r}]" for key in path), tensor))
    return found


def _refuse(what: str) -> None:
    raise NotPrivateError(
        f"{what}. Where a batch is padded to its longest example, that one decides the "
        "length of all others and moves their gradients, which clipping does not "
        "bound. Cut and pad every example to one size that was chosen beforehand "
        "(x[:100], padded_batch with padded_shapes), or say that all have it "
        "(tf.ensure_shape in dataset.map), or pass arrays; before batches of another "
        "fixed size compile again, with a new optimizer."
    )
