"""What the benchmarks share: clocks, processes with a time limit, the table.

Imports no framework, so that every peer can use it in its own environment.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

Times = tuple[float, float]
"""(wall, CPU of all threads) milliseconds a step."""


class Clock:
    """Wall time, and CPU time of all threads of the process."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def milliseconds(self, steps: int) -> Times:
        """Since the start, a step."""
        wall, cpu = self._start
        return (
            1e3 * (time.perf_counter() - wall) / steps,
            1e3 * (time.process_time() - cpu) / steps,
        )


def interleaved(
    blocks: Mapping[str, Callable[[], Times]], rounds: int, optional: Sequence[str] = ()
) -> dict[str, list[Times]]:
    """Runs the blocks in turn, so that whatever disturbs one disturbs all alike.

    Args:
        blocks: name -> what runs some steps and says how long one took.
        rounds: how often each of them runs.
        optional: alternatives to the first block, left out once they are clearly slower
            than it.
    """
    times: dict[str, list[Times]] = {name: [] for name in blocks}
    first = next(iter(blocks))
    for i in range(rounds):
        for name, block in blocks.items():
            is_slower = i >= 2 and _wall(times[name]) > 1.5 * _wall(times[first])
            if not (name in optional and is_slower):
                times[name].append(block())
    return times


def _wall(times: Sequence[Times]) -> float:
    """Median wall time."""
    return statistics.median(wall for wall, _ in times)


def compared(
    times: dict[str, list[Times]], plain: Sequence[str], private: str
) -> dict[str, Any]:
    """Medians, and the ratios of private to the fastest plain variant, pair by pair."""
    best = min(plain, key=lambda name: _wall(times[name]))
    pairs = list(zip(times[private], times[best], strict=True))
    return {
        "plain": best,
        "plain_ms": _wall(times[best]),
        "private_ms": _wall(times[private]),
        "wall": statistics.median(p[0] / q[0] for p, q in pairs),
        "cpu": statistics.median(p[1] / q[1] for p, q in pairs),
    }


def in_process(
    python: str, script: Path, arguments: Iterable[str], seconds: float
) -> dict[str, Any]:
    """What a measurement prints as JSON on its last line, run in its own process.

    Returns:
        That dictionary; or {"failed": reason} where it took too long or broke down.
    """
    process = subprocess.Popen(
        [python, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"},
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"failed": f"> {seconds:g} s"}
    lines = output.strip().splitlines()
    if process.returncode == 0 and lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    return {"failed": _reason(errors, process.returncode)}


def _reason(errors: str, returncode: int) -> str:
    """The line that names the exception, or how the process ended."""
    if returncode < 0:
        return f"ended by {signal.Signals(-returncode).name}"
    named = [
        line
        for line in errors.splitlines()
        if line[:1].isalpha() and ("Error" in line.split(":")[0])
    ]
    return (named or errors.strip().splitlines() or [f"exit code {returncode}"])[-1]


def peak_mib() -> float:
    """Most memory that this process ever held, MiB.

    Linux's VmHWM belongs to the program that runs; ru_maxrss, the fallback, starts
    from that of the process which started it.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> str:
    """The processor that the figures belong to."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [
            v.strip()
            for k, _, v in (n.partition(":") for n in lines)
            if k.strip() == "model name"
        ]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {name}, {platform.system()}"


def load() -> str:
    """How busy the machine is."""
    return f"load {os.getloadavg()[0]:.1f}"


class Table:
    """A Markdown table, printed row by row as it is measured."""

    def __init__(self, *columns: str) -> None:
        self._width = len(columns)
        print("| " + " | ".join(columns) + " |")
        print("|" + "---|" * self._width, flush=True)

    def row(self, *cells: str) -> None:
        """Prints one row; missing cells stay empty."""
        padded = [*cells, *[""] * (self._width - len(cells))]
        print("| " + " | ".join(padded) + " |", flush=True)


def figure(value: float) -> str:
    """Three significant digits, without an exponent from 0.01 up."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 10 else f"{value:.2f}"
