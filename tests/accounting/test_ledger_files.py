"""Ledgers read from what a training leaves behind, with and without a model."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest

from accounting import GaussianEvent, Ledger, PoissonSampledEvent
from accounting.cli.ledger_files import LedgerFileError, read_ledger
from accounting.compute_dp_sgd_privacy import main

EVENT = PoissonSampledEvent(0.01, GaussianEvent(1.0))


def ledger_of(count: int) -> Ledger:
    ledger = Ledger()
    ledger.charge(EVENT, l2_norm_clip=1.0, noise_source="secure/x", count=count)
    return ledger


def weights_with(data: bytes | None, place: str = "dp_train/vars/ledger") -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as weights:
        weights["layers/dense/vars/0"] = np.zeros(3)
        if data is not None:
            weights[place] = np.frombuffer(data, np.uint8)
    return file.getvalue()


def write_model(path, config=None, weights: bytes | None = None) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(config or {"config": {}}))
        archive.writestr("model.weights.h5", weights or weights_with(None))
    return str(path)


def test_ledger_beside_the_weights_is_found(tmp_path) -> None:
    data = ledger_of(5).to_json().encode()
    path = write_model(tmp_path / "a.keras", weights=weights_with(data))
    assert read_ledger(path).total == 5
    alone = tmp_path / "a.weights.h5"
    alone.write_bytes(weights_with(data))
    assert read_ledger(str(alone)).total == 5


def test_all_places_count_and_the_same_run_counts_once(tmp_path) -> None:
    ledger = ledger_of(5)
    before = ledger.to_json()
    ledger.charge(EVENT, l2_norm_clip=1.0, noise_source="secure/x", count=2)
    config = {"compile_config": {"optimizer": {"config": {"ledger": before}}}}
    weights = weights_with(ledger.to_json().encode())
    path = write_model(tmp_path / "a.keras", config, weights)
    assert read_ledger(path).total == 7
    assert read_ledger(write_model(tmp_path / "b.keras", config)).total == 5
    other = ledger_of(10)
    (tmp_path / "a.keras.ledger.json").write_text(other.to_json(), encoding="utf-8")
    assert read_ledger(path).total == 17


def test_model_that_was_saved_as_a_folder_is_read(tmp_path) -> None:
    weights = weights_with(ledger_of(5).to_json().encode())
    with zipfile.ZipFile(write_model(tmp_path / "a.keras", weights=weights)) as archive:
        archive.extractall(tmp_path / "folder")
    assert read_ledger(str(tmp_path / "folder")).total == 5
    assert read_ledger(f"{tmp_path / 'folder'}/").total == 5
    beside = tmp_path / "folder.ledger.json"
    beside.write_text(ledger_of(10).to_json(), encoding="utf-8")
    assert read_ledger(f"{tmp_path / 'folder'}/").total == 15


def test_folder_that_holds_no_model_is_refused(tmp_path, capsys) -> None:
    assert main([f"--ledger={tmp_path}", "--delta=1e-5"]) != 0
    said = " ".join(capsys.readouterr().err.split())
    for part in ("is a folder", "No ledger is looked for", "Name the .ledger.json"):
        assert part in said


def test_model_without_a_ledger_is_refused(tmp_path) -> None:
    with pytest.raises(LedgerFileError, match="without a ledger"):
        read_ledger(write_model(tmp_path / "a.keras"))


@pytest.mark.parametrize(
    "weights", [b"\x89HDF\r\n\x1a\n and no more", weights_with(b'{"runs": 3}')]
)
def test_damaged_model_is_refused_in_one_line(capsys, tmp_path, weights) -> None:
    path = write_model(tmp_path / "a.keras", weights=weights)
    assert main([f"--ledger={path}", "--delta=1e-6"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "Restore the file from a copy" in captured.err
    with open(path, "r+b") as file:
        file.truncate(60)
    assert main([f"--ledger={path}", "--delta=1e-6"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_several_ledgers_are_added_up(capsys, tmp_path) -> None:
    paths = []
    for number, count in enumerate((100, 250)):
        path = tmp_path / f"{number}.json"
        path.write_text(ledger_of(count).to_json(), encoding="utf-8")
        paths.append(f"--ledger={path}")

    def upper(*options: str) -> float:
        assert main([*options, "--delta=1e-6", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["epsilon"]["upper"]

    together = tmp_path / "together.json"
    together.write_text(ledger_of(350).to_json(), encoding="utf-8")
    both = upper(*paths)
    assert both == upper(*reversed(paths)) == upper(f"--ledger={together}")
    assert both > max(upper(path) for path in paths)
    # One file named twice is one training.
    assert upper(paths[0], paths[0]) == upper(paths[0])


def test_ledger_file_says_what_is_known_beside_the_releases(capsys, tmp_path) -> None:
    about = {"model": "net", "examples": 1000, "saved_at": "2026-01-31T12:00:00+00:00"}
    path = tmp_path / "ledger.json"
    path.write_text(ledger_of(5).to_json(about=about), encoding="utf-8")
    known = read_ledger(str(path))
    assert known.about == about
    assert Ledger.from_json(known.to_json()).about == about
    options = [f"--ledger={path}", "--delta=1e-2", "--json"]
    assert main(options) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["population"] == 1000
    assert "delta_too_large" in [caveat["id"] for caveat in result["caveats"]]
    assert main([*options, "--N=999"]) == 2
    assert "Leave out --N" in capsys.readouterr().err
    # Of two trainings only what they share; files without it are read as before.
    other = Ledger.from_json(ledger_of(3).to_json(about=about | {"model": "other"}))
    known.merge(other)
    assert known.about == {k: v for k, v in about.items() if k != "model"}
    known.merge(ledger_of(1))
    assert known.about == {}


@pytest.mark.parametrize("about", [[], {"examples": [1]}, {"model": None}])
def test_damaged_facts_beside_the_releases_are_refused(about) -> None:
    content = json.loads(ledger_of(5).to_json()) | {"about": about}
    with pytest.raises(ValueError, match="about is"):
        Ledger.from_json(json.dumps(content))
