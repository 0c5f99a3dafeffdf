"""Where Keras writes and reads weights: something of ours beside them, in every file.

A layer's own state cannot hold it: a plain model would refuse the file. So it lies in a
place of the file that Keras does not look at, and whatever Keras writes and reads
passes here: `.keras` files and folders, `.weights.h5` whole and in shards, `.h5`,
pickles and copies. Every private name below was tried on Keras 3.15.1.
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
from keras.src.legacy.saving import legacy_h5_format
from keras.src.saving import saving_lib

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

    def checked(original: Any, find: Callable[[Any], bytes | None]) -> Any:
        @functools.wraps(original)
        def save(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
            if not isinstance(filepath, str | os.PathLike) or "://" in str(filepath):
                return original(model, filepath, *args, **kwargs)
            with check(model, lambda: find(filepath), str(filepath)):
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


def _in_keras_file(path: Any) -> bytes | None:
    """Of a `.keras` file, or of the folder with the same things in it."""
    name = saving_lib._VARS_FNAME_H5
    if os.path.isdir(path):
        return _closing(saving_lib.H5IOStore(os.path.join(path, name)))
    with zipfile.ZipFile(path) as archive:
        return _closing(saving_lib.H5IOStore(name, archive))


def _in_weights(path: Any) -> bytes | None:
    sharded = os.path.splitext(path)[0] + ".json"
    if str(path).endswith(".json") or not os.path.exists(path):
        return _closing(saving_lib.ShardedH5IOStore(sharded))
    return _closing(saving_lib.H5IOStore(path))


def _in_h5_file(path: Any) -> bytes | None:
    with saving_lib.h5py.File(path, "r") as file:
        return _in_group(file["model_weights"])


def _closing(store: Any) -> bytes | None:
    try:
        return _in_store(store)
    finally:
        store.close()
