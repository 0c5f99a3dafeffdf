"""A ledger from a file: what `Ledger.to_json` wrote, or a model that was saved.

Keras's `.keras` files are archives, or folders, with weights as HDF5; dp_train keeps
the ledger beside the weights, and in the configuration of the optimizer. All that is
found counts.
Nothing in the file is run, and no model is built.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from typing import IO, Any

from accounting.events import Ledger

_HDF5 = b"\x89HDF\r\n\x1a\n"
_SIDECAR = ".ledger.json"
# Far above what any ledger takes; a file may claim to be larger than memory.
_MOST_BYTES = 1 << 28


class LedgerFileError(ValueError):
    """A file holds no ledger that can be read; three sentences."""


def read_ledger(path: str) -> Ledger:
    """The ledger in a file, or in the file of a model with what lies beside it.

    Args:
        path: of a `.ledger.json`, `.keras` or HDF5 file, or of a `.keras` folder.

    Raises:
        LedgerFileError: nothing in it is a ledger.
        ValueError: a ledger in it is damaged.
        OSError: the file cannot be read.
    """
    if os.path.isdir(path):
        texts = list(_in_folder(path))
    elif zipfile.is_zipfile(path):
        texts = list(_in_archive(path))
    elif _starts(path) == _HDF5:
        texts = list(_in_hdf5(path, path))
    else:
        with open(path, encoding="utf-8") as text_file:
            return Ledger.from_json(text_file.read())
    beside = os.path.normpath(path) + _SIDECAR
    if os.path.exists(beside):
        with open(beside, encoding="utf-8") as text_file:
            texts.append(text_file.read())
    if not texts:
        raise LedgerFileError(
            f"{path!r} is a saved model without a ledger. It was trained without"
            " dp_train, or nothing was released yet. Name the file of a private model."
        )
    ledger = Ledger()
    for text in texts:
        ledger.merge(Ledger.from_json(text))
    return ledger


def _starts(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(_HDF5))


def _in_archive(path: str) -> Iterator[str]:
    """Ledgers in a `.keras` file, as JSON."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as part:
                yield from _in_part(entry.filename, part, entry.file_size, path)


def _in_folder(path: str) -> Iterator[str]:
    """Ledgers in a `.keras` file that Keras left as a folder (zipped=False)."""
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise LedgerFileError(
            f"{path!r} is a folder, and not one that model.save(..., zipped=False) of"
            " Keras wrote: it has no config.json. No ledger is looked for in other"
            " folders. Name the .ledger.json file, or the file or folder of a model."
        )
    for folder, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as part:
                size = os.fstat(part.fileno()).st_size
                yield from _in_part(name, part, size, path)


def _in_part(name: str, part: IO[bytes], size: int, path: str) -> Iterator[str]:
    """Ledgers in a part of a saved model, as JSON."""
    if name.endswith(".h5"):
        yield from _in_hdf5(io.BytesIO(part.read()), path)
    elif name.endswith(".json") and size <= _MOST_BYTES:
        yield from _in_json(part.read().decode("utf-8"), path)


def _in_json(text: str, path: str) -> Iterator[str]:
    """Texts under the name "ledger", however deep."""
    try:
        todo: list[Any] = [json.loads(text)]
    except (RecursionError, json.JSONDecodeError) as error:
        raise LedgerFileError(
            f"A part of {path!r} is not JSON ({error}). The ledger may lie in it, and"
            " what was released would be missing. Restore the file from a copy."
        ) from None
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            found = value.get("ledger")
            if isinstance(found, str):
                yield found
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _in_hdf5(file: Any, path: str) -> Iterator[str]:
    """Data sets with the name "ledger"."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise LedgerFileError(
            f"{path!r} holds weights as HDF5, which needs h5py to be read. The ledger"
            " lies among them. Type pip install h5py, or name the .ledger.json file"
            " that was written beside the model."
        ) from None
    found: list[bytes] = []

    def look(name: str, item: Any) -> None:
        is_named = name.rsplit("/", 1)[-1] == "ledger"
        if is_named and isinstance(item, h5py.Dataset) and item.nbytes <= _MOST_BYTES:
            found.append(item[()].tobytes())

    try:
        with h5py.File(file, "r") as weights:
            weights.visititems(look)
    except (OSError, RuntimeError) as error:
        raise LedgerFileError(
            f"The weights in {path!r} cannot be read ({error}). The ledger lies among"
            " them, and what was released would be missing. Restore the file from a"
            " copy."
        ) from None
    for data in found:
        yield data.decode()
