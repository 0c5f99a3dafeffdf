"""The benchmark runs from the command line, as a reader runs it."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "accountants.py"


def test_benchmark_prints_its_tables(tmp_path) -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--no-peers"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "brackets that miss the truth: 0" in result.stdout
    assert "| S18 |" in result.stdout
