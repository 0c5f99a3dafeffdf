"""Where Keras writes and reads weights: something of ours beside them, in every file.

A layer's own state cannot hold it: a plain model would refuse the file. So it lies in a
place of the file that Keras does not look at, and whatever Keras writes and reads
passes here: `.keras` files and folders, `.weights.h5` whole and in shards, `.h5`,
pickles and copies. A tf.train.Checkpoint, also of a part of a model, holds it beside
each weight. Every private name below was tried on Keras 3.15.1.
"""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.tensorflow import core
from keras.src.legacy.saving import legacy_h5_format
from keras.src.saving import saving_lib
from tensorflow.python.trackable import data_structures

_GROUP, _NAME = "_dp_train", "ledger"

Written = Callable[[Any], bytes | None]
"""What goes beside the weights of a model; None for nothing."""
Reading = Callable[[Any, bytes | None], AbstractContextManager[None]]
"""Around the loading of a model's weights, beside which that was found."""
Check = Callable[[Any, Callable[[], bytes | None], str], AbstractContextManager[None]]
"""Around the saving of a model; then its file, read by the function, has a name."""


def keep_beside_weights(written: Written, reading: Reading, check: Check) -> None:
    """From now on all files of weights are written and read with something beside."""
    save, load = saving_lib._save_state, saving_lib._load_state
    save_h5 = legacy_h5_format.save_weights_to_hdf5_group

    @functools.wraps(save)
    def save_state(
        saveable: Any,
        weights_store: Any,
        assets_store: Any,
        inner_path: str,
        **rest: Any,
    ) -> None:
        save(saveable, weights_store, assets_store, inner_path, **rest)
        if inner_path == "" and weights_store:
            data = written(saveable)
            if data is not None:
                weights_store.make(_GROUP)[_NAME] = np.frombuffer(data, np.uint8)

    @functools.wraps(load)
    def load_state(
        saveable: Any,
        weights_store: Any,
        assets_store: Any,
        inner_path: str,
        **rest: Any,
    ) -> None:
        if inner_path == "" and weights_store:
            with reading(saveable, _in_store(weights_store)):
                load(saveable, weights_store, assets_store, inner_path, **rest)
        else:
            load(saveable, weights_store, assets_store, inner_path, **rest)

    @functools.wraps(save_h5)
    def save_group(group: Any, model: Any) -> None:
        save_h5(group, model)
        data = written(model)
        if data is not None:
            group.create_group(_GROUP)[_NAME] = np.frombuffer(data, np.uint8)

    def load_group(original: Any) -> Any:
        @functools.wraps(original)
        def load(group: Any, model: Any, *args: Any, **kwargs: Any) -> None:
            with reading(model, _in_group(group)):
                original(group, model, *args, **kwargs)

        return load

    def checked(original: Any, find: Callable[[Any, bool], bytes | None]) -> Any:
        @functools.wraps(original)
        def save(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
            if not isinstance(filepath, str | os.PathLike) or "://" in str(filepath):
                return original(model, filepath, *args, **kwargs)
            is_sharded = bool(kwargs.get("max_shard_size"))
            with check(model, lambda: find(filepath, is_sharded), str(filepath)):
                return original(model, filepath, *args, **kwargs)

        return save

    saving_lib._save_state, saving_lib._load_state = save_state, load_state
    legacy_h5_format.save_weights_to_hdf5_group = save_group
    for name in "load_weights_from_hdf5_group", "load_weights_from_hdf5_group_by_name":
        setattr(legacy_h5_format, name, load_group(getattr(legacy_h5_format, name)))
    saving_lib.save_model = checked(saving_lib.save_model, _in_keras_file)
    saving_lib.save_weights_only = checked(saving_lib.save_weights_only, _in_weights)
    legacy_h5_format.save_model_to_hdf5 = checked(
        _with_whole_compile_config(legacy_h5_format.save_model_to_hdf5), _in_h5_file
    )


class _Beside(data_structures.TrackableDataStructure):
    """What a checkpoint holds beside one weight.

    TensorFlow calls a checkpoint that lacks it complete: it takes it for an empty list.
    """

    def __init__(
        self,
        variable: keras.Variable,
        written: Callable[[Any], bytes | None],
        read: Callable[[Any, bytes], None],
    ) -> None:
        super().__init__()
        self._self_variable, self._self_written = variable, written
        self._self_read = read

    @property
    def _values(self) -> list[Any]:
        return []

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {_NAME: tf.constant(self._self_written(self._self_variable) or b"")}

    def _restore_from_tensors(self, restored: dict[str, tf.Tensor]) -> None:
        if tf.executing_eagerly():
            data = restored[_NAME].numpy()
            if data:
                self._self_read(self._self_variable, data)


def keep_in_checkpoints(
    written: Callable[[Any], bytes | None],
    read: Callable[[Any, bytes], None],
    restored: Callable[[Any], None],
) -> None:
    """From now on a tf.train.Checkpoint holds something beside each weight.

    Args:
        written: what goes beside a variable; None for nothing.
        read: a variable, and what was found beside it.
        restored: a variable whose value was read, before or after.
    """
    kind: Any = core.Variable
    restore = kind._restore_from_tensors
    children, lookup = kind._trackable_children, kind._lookup_dependency

    def beside(variable: Any) -> _Beside:
        known = vars(variable)
        if _GROUP not in known:
            known[_GROUP] = _Beside(variable, written, read)
        found: _Beside = known[_GROUP]
        return found

    def trackable_children(
        self: Any, save_type: str = "checkpoint", *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        found = dict(children(self, save_type, *args, **kwargs))
        # An exported model is never trained.
        if save_type == "checkpoint" and written(self) is not None:
            found[_GROUP] = beside(self)
        return found

    def lookup_dependency(self: Any, name: str, *args: Any) -> Any:
        return beside(self) if name == _GROUP else lookup(self, name, *args)

    def restore_from_tensors(self: Any, tensors: dict[str, tf.Tensor]) -> Any:
        result = restore(self, tensors)
        if tf.executing_eagerly():
            restored(self)
        return result

    kind._restore_from_tensors = restore_from_tensors
    kind._trackable_children = trackable_children
    kind._lookup_dependency = lookup_dependency


def model_of_pickle(file: Any) -> Any:
    """The model in what KerasSaveable.__reduce__ wrote."""
    return keras.Model._unpickle_model(file)


def _with_whole_compile_config(original: Any) -> Any:
    """Saving as HDF5 takes the optimizer out of what a later `.keras` file says."""

    @functools.wraps(original)
    def save(model: Any, *args: Any, **kwargs: Any) -> None:
        kept: Any = getattr(model, "_compile_config", None)
        config = dict(kept.config) if kept else {}
        try:
            original(model, *args, **kwargs)
        finally:
            if kept:
                kept.config = config

    return save


def _in_store(store: Any) -> bytes | None:
    found = store.get(_GROUP)
    return np.asarray(found[_NAME]).tobytes() if _NAME in found else None


def _in_group(group: Any) -> bytes | None:
    if _GROUP not in group:
        return None
    place = saving_lib.safe_get_h5_group(group, _GROUP)
    return np.asarray(saving_lib.safe_get_h5_dataset(place, _NAME)).tobytes()


def _in_keras_file(path: Any, is_sharded: bool) -> bytes | None:
    """Of a `.keras` file, or of the folder with the same things in it."""
    del is_sharded
    name = saving_lib._VARS_FNAME_H5
    if os.path.isdir(path):
        return _closing(saving_lib.H5IOStore(os.path.join(path, name)))
    with zipfile.ZipFile(path) as archive:
        return _closing(saving_lib.H5IOStore(name, archive))


def _in_weights(path: Any, is_sharded: bool) -> bytes | None:
    # Beside shards there may be a whole file of another time.
    if is_sharded or str(path).endswith(".json"):
        sharded = os.path.splitext(path)[0] + ".json"
        return _closing(saving_lib.ShardedH5IOStore(sharded))
    return _closing(saving_lib.H5IOStore(path))


def _in_h5_file(path: Any, is_sharded: bool) -> bytes | None:
    del is_sharded
    with saving_lib.h5py.File(path, "r") as file:
        return _in_group(file["model_weights"])


def _closing(store: Any) -> bytes | None:
    try:
        return _in_store(store)
    finally:
        store.close()
