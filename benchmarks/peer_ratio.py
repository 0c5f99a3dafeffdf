"""What a private step costs with the peers, each over its own plain framework.

    python benchmarks/peer_ratio.py [--models mlp cnn] [--peers opacus jax-privacy]

Makes a virtual environment for each peer (downloads some gigabytes, once), and runs the
same models at the same batch sizes there, plain and private steps in alternating
blocks. Opacus and JAX-Privacy train on ready batches of a fixed size, without sampling;
TensorFlow Privacy through fit, on shuffled batches. A mode that takes too long, takes
too much memory or does not know a model has the reason in place of its figures.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # from a checkout, whether or not it is installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure  # noqa: E402
from benchmarks.models import CASES  # noqa: E402


@dataclass(frozen=True)
class Peer:
    """A library to compare with.

    Attributes:
        script: in peers/.
        requirements: what pip installs.
        shown: packages whose versions are printed.
        modes: its ways to per-example gradients.
    """

    script: str
    requirements: tuple[str, ...]
    shown: tuple[str, ...]
    modes: tuple[str, ...]


PEERS = {
    "opacus": Peer(
        "run_opacus.py",
        ("opacus==1.6.0", "torch>=2.13"),
        ("opacus", "torch"),
        ("hooks", "functorch", "ghost"),
    ),
    "jax-privacy": Peer(
        "run_jax_privacy.py",
        ("jax-privacy==2.0.0", "jax==0.10.2", "keras==3.15.1"),
        ("jax-privacy", "jax"),
        ("vmap", "microbatched"),
    ),
    "tensorflow-privacy": Peer(
        "run_tf_privacy.py",
        ("tensorflow-privacy==0.9.0", "tensorflow==2.15.1"),
        ("tensorflow-privacy", "tensorflow"),
        ("fast", "fast-xla", "model", "vectorized", "loop"),
    ),
}


def environment(name: str, folder: Path) -> tuple[str, str]:
    """(interpreter, versions) of a peer's environment, made if it is not there."""
    peer, place = PEERS[name], folder / name
    python = str(place / "bin" / "python")
    stamp = place / "installed"
    wanted = "\n".join(peer.requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Installing {', '.join(peer.requirements)} (once)", file=sys.stderr)
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(place)], check=True
        )
        pip = [python, "-m", "pip", "install", "--quiet", *peer.requirements]
        subprocess.run(pip, check=True)
        stamp.write_text(wanted)
    version = "from importlib.metadata import version; import sys;"
    version += "print(', '.join(f'{p} {version(p)}' for p in sys.argv[1:]))"
    done = subprocess.run(
        [python, "-c", version, *peer.shown], check=True, capture_output=True, text=True
    )
    return python, done.stdout.strip()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    # The peers' scripts compute the loss from logits.
    names = [name for name, case in CASES.items() if case.has_logits]
    add("--models", nargs="+", default=names, choices=names)
    add("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    add("--modes", nargs="+", help="only these")
    add("--rounds", type=int, default=5, help="blocks of each kind")
    add("--limit", type=float, default=180, help="seconds for each measurement")
    add("--memory", type=float, default=12, help="GiB for each measurement")
    add("--environments", type=Path, default=measure.ROOT / ".venv-peers")
    options = parser.parse_args()
    found: dict[str, tuple[str, str] | str] = {}
    for name in options.peers:
        try:
            found[name] = environment(name, options.environments)
        except subprocess.CalledProcessError as error:
            found[name] = f"could not be installed (exit code {error.returncode})"
        text = found[name] if isinstance(found[name], str) else found[name][1]
        print(f"{name}: {text}")
    print(f"{measure.machine()}, {measure.load()}; times are milliseconds a step\n")
    table = measure.Table(
        "model (batch)", "peer", "mode", "plain", "private", "wall ratio", "CPU ratio"
    )
    best: dict[str, dict[str, tuple[float, str]]] = {}
    for model in options.models:
        case = CASES[model]
        title = f"{case.title} ({case.batch_size})"
        fastest = best.setdefault(title, {})
        for name in options.peers:
            if isinstance(found[name], str):
                continue
            python, _ = found[name]
            script = Path(__file__).resolve().parent / "peers" / PEERS[name].script
            for mode in PEERS[name].modes:
                if options.modes and mode not in options.modes:
                    continue
                times = measure.in_process(
                    python,
                    script,
                    [model, mode, "--rounds", str(options.rounds)],
                    options.limit,
                    options.memory,
                )
                table.row(title, name, mode, *measure.speed_cells(times))
                if "failed" not in times:
                    private = measure.figure(times["private_ms"])
                    text = f"{measure.figure(times['wall'])} ({mode}, {private} ms)"
                    candidate = times["wall"], text
                    fastest[name] = min(fastest.get(name, candidate), candidate)
    print("\nthe best mode of each: wall ratio (mode, private milliseconds)\n")
    table = measure.Table("model (batch)", *options.peers)
    for title, fastest in best.items():
        cells = (fastest.get(name, (0.0, "none"))[1] for name in options.peers)
        table.row(title, *cells)


if __name__ == "__main__":
    main()
