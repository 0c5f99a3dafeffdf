"""What users hand over as data, as dense arrays of numbers, rows first."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

Array = np.ndarray[Any, Any]


def dense(structure: Any, name: str) -> Any:
    """Dense arrays in dicts and tuples, since tf.data knows no lists; None stays None.

    Args:
        structure: arrays, tables, or dicts, lists and tuples of them.
        name: how errors call it: "x", "y".

    Raises:
        ValueError: something is not a dense array of numbers.
    """
    if isinstance(structure, dict):
        return {k: dense(value, f"{name}[{k!r}]") for k, value in structure.items()}
    if isinstance(structure, tuple) or (
        isinstance(structure, list)
        and any(len(getattr(a, "shape", ())) for a in structure)
    ):
        return tuple(dense(value, f"{name}[{i}]") for i, value in enumerate(structure))
    if structure is None:
        return None
    for column, values in _columns(structure):
        _check_numbers(np.asarray(values), f"{name}[{column!r}]", values)
    return _dense_array(structure, name)


def _columns(table: Any) -> Iterator[tuple[Any, Any]]:
    """Columns of a data frame; of anything else none."""
    if hasattr(table, "columns") and hasattr(table, "dtypes"):
        yield from ((column, table[column]) for column in table.columns)


def _dense_array(array: Any, name: str) -> Array:
    """A dense numeric array, floats in Keras's floatx, as Keras's own adapter does."""
    found = np.asarray(array)
    _check_numbers(found, name, array)
    # TensorFlow has numbers in the byte order of the machine only.
    found = found.astype(found.dtype.newbyteorder("="), copy=False)
    is_floating = np.issubdtype(found.dtype, np.floating)
    if is_floating and found.dtype.name != keras.config.floatx():
        found = found.astype(keras.config.floatx())
    return found


def _check_numbers(found: Array, name: str, given: Any) -> None:
    is_number = found.dtype.kind in "biufc" or found.dtype.name == "bfloat16"
    if not is_number or found.ndim == 0:
        raise ValueError(
            f"{name} is no array of numbers: dtype {found.dtype}, rank {found.ndim} "
            f"(from {type(given).__name__}). Poisson sampling picks rows of dense "
            "arrays. Convert it to a NumPy array of numbers, [examples, ...]: text by "
            "keras.layers.StringLookup with a vocabulary that is public, categories by "
            "their codes, lists of unequal length by padding; or leave it out."
        )


def warn_of_rows_without_gradient(arrays: Any) -> None:
    """Counts and tells examples that can add nothing: NaN or infinity in a float.

    Args:
        arrays: dense arrays of equal first axes, nested; None is skipped.
    """
    floats = [
        a for a in keras.tree.flatten(arrays) if a is not None and a.dtype.kind == "f"
    ]
    # A sum is finite where all numbers are; only others are looked at by row.
    open_ones = [a for a in floats if not np.isfinite(a.sum(dtype=np.float64))]
    if not open_ones:
        return
    is_lost = np.zeros(len(open_ones[0]), bool)
    for a in open_ones:
        is_lost |= ~np.isfinite(a.reshape(len(a), -1)).all(axis=1)
    if is_lost.any():
        warnings.warn(
            f"{np.count_nonzero(is_lost)} of {len(is_lost)} examples hold NaN or "
            "infinity. An example whose gradient is not finite adds nothing to a "
            "step, and the sum is divided by the expected batch size all the same. "
            "Fill these values (np.nan_to_num), or drop the rows.",
            stacklevel=4,
        )
