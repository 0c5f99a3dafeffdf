"""The README keeps its word: its code runs and its printed output is real."""

import re
import shlex
from pathlib import Path

import pytest

from accounting import compute_dp_sgd_privacy

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = "compute_dp_sgd_privacy"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def console_commands():
    """(arguments, printed output) of each command in a console block."""
    commands = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            # A command may go on behind a backslash; its output begins after that.
            typed = re.match(r"([^\n]*\\\n)*[^\n]*\n", part).group()
            output = part[len(typed) :]
            commands.append((shlex.split(typed.replace("\\\n", " ")), output))
    return commands


def test_readme_has_both_kinds_of_blocks():
    assert len(blocks("python")) >= 2
    assert any(arguments[0] == COMMAND for arguments, _ in console_commands())


@pytest.mark.parametrize("block", blocks("python"))
def test_python_block_runs_as_it_is(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_ten_line_example_reports_what_it_spent(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    exec(compile(blocks("python")[0], "README.md", "exec"), {"__name__": "readme"})

    printed = capsys.readouterr().out
    assert "epsilon: " in printed  # the column of the progress bar
    assert "60 x Gaussian noise, multiplier 1.1, Poisson-sampled" in printed
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("arguments", "output"),
    [command for command in console_commands() if command[0][0] == COMMAND],
)
def test_console_block_shows_the_real_output(arguments, output, capsys):
    assert compute_dp_sgd_privacy.main(arguments[1:]) == 0

    assert capsys.readouterr().out == output


def test_links_lead_to_files_and_headings():
    headings = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (ROOT / target).is_file(), target


def test_picture_is_small():
    assert (ROOT / "docs" / "accuracy_against_epsilon.png").stat().st_size < 150_000


def test_first_heading_of_each_version_in_the_changelog_is_privacy():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]

    assert versions
    for version in versions:
        assert re.findall(r"^### (.*)$", version, re.MULTILINE)[0] == "Privacy"


def test_lazy_example_owes_noise(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = [b for b in blocks("python") if "lazy_noise=True" in b]
    (promised,) = re.findall(r"print\(.*\)  # (.*)", block)

    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})

    assert promised in capsys.readouterr().out
