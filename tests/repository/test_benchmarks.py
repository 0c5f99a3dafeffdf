"""Benchmarks run from the command line, and what they share measures rightly."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measure, peer_ratio

ROOT = Path(__file__).resolve().parents[2]


def test_step_ratio_prints_every_column_for_a_model(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/step_ratio.py"), "--smoke"]
        + ["--models", "cnn"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    header, _, row = (
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in done.stdout.splitlines()
        if line.startswith("|")
    )
    assert row[:2] == ["CNN (250)", "auto"]
    assert len(row) == len(header)
    figures = dict(zip(header, row, strict=True))
    private, plain = float(figures["private"]), float(figures["plain"].split()[0])
    # One pair, so the median of the ratios is the ratio, but for its rounding.
    assert float(figures["wall ratio"]) == pytest.approx(private / plain, rel=0.02)
    assert float(figures["CPU ratio"]) > 0
    for column in header[6:8]:
        assert all(float(cell) > 0 for cell in figures[column].split("/"))
    single, double = map(float, figures["error float32, float64"].split(","))
    assert single < 1e-5 and double < 1e-10


def test_a_measurement_that_takes_too_long_ends_with_its_limit(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        "import time\nprint('{\"known\": 1}', flush=True)\ntime.sleep(60)"
    )

    found = measure.in_process(sys.executable, script, [], 0.5)

    assert found == {"known": 1, "failed": "> 0.5 s"}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_measurement_that_takes_too_much_memory_is_ended(tmp_path):
    script = tmp_path / "large.py"
    script.write_text("import time\nlarge = bytes([1]) * (300 << 20)\ntime.sleep(60)")

    found = measure.in_process(sys.executable, script, [], 60, gibibytes=0.2)

    assert found == {"failed": "> 0.2 GiB"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ValueError('no such layer')", "ValueError: no such layer"),
        (
            "raise TypeError('in user code:\\n\\n    TypeError: int | str\\n')",
            "TypeError: int | str",
        ),
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


@pytest.mark.parametrize("peer", peer_ratio.PEERS.values(), ids=peer_ratio.PEERS)
def test_modes_of_a_peer_are_those_that_its_script_takes(peer):
    tree = ast.parse((ROOT / "benchmarks/peers" / peer.script).read_text())

    (modes,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODES"
    )

    assert modes == peer.modes


def test_a_peer_that_cannot_be_measured_says_why_in_its_row():
    known = {"plain": "plain XLA", "plain_ms": 1.234, "failed": "> 180 s"}

    assert measure.speed_cells(known) == ["1.23 (XLA)", "> 180 s", "", ""]
    assert measure.speed_cells({"failed": "broken"}) == ["", "broken", "", ""]


def test_a_reason_with_a_bar_in_it_does_not_break_the_table(capsys):
    table = measure.Table("model", "private", "ratio")

    table.row("CNN", "TypeError: int | None")

    assert capsys.readouterr().out.splitlines() == [
        "| model | private | ratio |",
        "|---|---|---|",
        r"| CNN | TypeError: int \| None |  |",
    ]
