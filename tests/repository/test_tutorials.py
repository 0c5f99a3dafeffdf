"""Tutorials run from the command line, as a reader runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import quiet

ROOT = Path(__file__).resolve().parents[2]


def run(script, *options, cwd):
    """Standard output of a script; fails the test on a non-zero exit code."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--smoke", *options],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_private_model_trains_compares_and_says_what_to_do_next(tmp_path):
    printed = run("tutorials/01_first_private_model.py", cwd=tmp_path)

    for landmark in (
        "epsilon: 1.0000",
        "with privacy",
        "without privacy",
        "Privacy statement: epsilon between 0.9999 and 1 at delta 1e-05",
        "noise from aes256-ctr",
        "What to do next",
        "--logdir logs",
        "compute_dp_sgd_privacy --N=8000",
    ):
        assert landmark in printed
    assert len(list((tmp_path / "logs").glob("*/run-1/events.out.tfevents.*"))) == 1


def test_custom_loop_counts_its_steps(tmp_path):
    printed = run("tutorials/custom_loop.py", cwd=tmp_path)

    assert "step    3  epsilon between 0.9999 and 1" in printed
    assert "3 x Gaussian noise" in printed


def test_code_for_tensorflow_privacy_trains_a_plain_model(tmp_path):
    printed = run("tutorials/from_tensorflow_privacy.py", cwd=tmp_path)

    assert "epsilon:" in printed
    assert "18 x Gaussian noise, multiplier 4, Poisson-sampled" in printed
    assert "Unit: one example. Relation: add_or_remove_one." in printed


def test_accuracy_against_epsilon_writes_its_picture(tmp_path):
    picture = tmp_path / "picture.png"

    printed = run(
        "tutorials/accuracy_against_epsilon.py", "--output", str(picture), cwd=tmp_path
    )

    assert "infinity" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_choose_a_budget_explains_and_writes_its_picture(tmp_path):
    picture = tmp_path / "picture.png"

    printed = run(
        "tutorials/02_choose_a_budget.py", "--output", str(picture), cwd=tmp_path
    )

    for landmark in (
        "epsilon between 2.696 and 2.697",
        "of the members at   1.0% false alarms",
        "The noise that a promise costs",
        "by cutting a shuffled set   57",
        "How to choose",
    ):
        assert landmark in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_quiet_start_up_hides_the_lines_of_tensorflow_only(capfd):
    with quiet.start_up():
        os.write(2, b"I0000 00:00:1.5 1 port.cc:153] oneDNN\n")
        os.write(2, b"a warning\n")

    assert capfd.readouterr().err == "a warning\n"


def test_quiet_start_up_lets_exceptions_through(capfd):
    with pytest.raises(ImportError, match="no such thing"):
        with quiet.start_up():
            os.write(2, b"what led to it\n")
            raise ImportError("no such thing")

    assert capfd.readouterr().err == "what led to it\n"
