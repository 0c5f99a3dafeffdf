"""Benchmarks run from the command line, and what they share measures rightly."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measure

ROOT = Path(__file__).resolve().parents[2]


def test_step_ratio_prints_every_column_for_a_model(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/step_ratio.py"), "--smoke"]
        + ["--models", "cnn", "--engines", "auto", "loop"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    header, _, *rows = (
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in done.stdout.splitlines()
        if line.startswith("|")
    )
    assert [row[:2] for row in rows] == [["CNN (250)", "auto"], ["CNN (250)", "loop"]]
    for row in rows:
        assert len(row) == len(header)
        figures = dict(zip(header, row, strict=True))
        assert float(figures["private"]) > float(figures["plain"].split()[0]) > 0
        assert float(figures["wall ratio"]) > 1
        errors = [float(e) for e in figures["error float32, float64"].split(",")]
        assert errors[0] < 1e-5 and errors[1] < 1e-10


def test_a_measurement_that_takes_too_long_ends_with_its_limit(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text("import time\ntime.sleep(60)")

    assert measure.in_process(sys.executable, script, [], 0.5) == {"failed": "> 0.5 s"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ValueError('no such layer')", "ValueError: no such layer"),
        ("import os\nos.kill(os.getpid(), 9)", "ended by SIGKILL"),
    ],
)
def test_a_measurement_that_breaks_down_says_why(tmp_path, source, reason):
    script = tmp_path / "broken.py"
    script.write_text(source)

    assert measure.in_process(sys.executable, script, [], 60) == {"failed": reason}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it may be the parent's")
def test_peak_memory_is_that_of_the_measurement_and_not_of_its_parent(tmp_path):
    script = tmp_path / "peak.py"
    script.write_text(
        "import json, sys\n"
        f"sys.path[0] = {str(ROOT)!r}\n"
        "from benchmarks import measure\n"
        "block = bytes([1]) * (int(sys.argv[1]) << 20)\n"
        "del block\n"
        "print(json.dumps({'mib': measure.peak_mib()}))"
    )
    parent = bytes([1]) * (200 << 20)

    small, large = (
        measure.in_process(sys.executable, script, [mib], 60)["mib"]
        for mib in ("0", "100")
    )

    assert len(parent) >> 20 > small
    assert 95 < large - small < 105


def test_ratio_is_that_of_neighbours_to_the_faster_plain_variant():
    times = {
        "plain": [(2.0, 4.0), (20.0, 40.0), (2.0, 4.0)],
        "plain XLA": [(1.0, 2.0), (10.0, 20.0), (1.0, 2.0)],
        "private": [(3.0, 8.0), (30.0, 80.0), (3.5, 9.0)],
    }

    found = measure.compared(times, ("plain", "plain XLA"), "private")

    assert found == {
        "plain": "plain XLA",
        "plain_ms": 1.0,
        "private_ms": 3.5,
        "wall": 3.0,
        "cpu": 4.0,
    }


def test_a_clearly_slower_alternative_is_left_out_after_two_rounds():
    times = {"plain": (1.0, 1.0), "slow": (9.0, 9.0), "private": (9.0, 9.0)}
    blocks = {name: lambda name=name: times[name] for name in times}

    found = measure.interleaved(blocks, 5, optional=["slow"])

    assert [len(found[name]) for name in times] == [5, 2, 5]
