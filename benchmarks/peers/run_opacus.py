"""Opacus on one model: prints medians as JSON. Run by peer_ratio.py.

    python benchmarks/peers/run_opacus.py MODEL hooks|functorch|ghost --rounds 9

The models are those of models.py in PyTorch. Both train on batches of a fixed size,
drawn by index. Where Opacus has its own layers (LSTM, attention), its validator puts
them in place of PyTorch's in the private model only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)
# Threads that spin at a barrier stop each other wherever another process runs too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from opacus import PrivacyEngine  # noqa: E402
from opacus.validators import ModuleValidator  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from benchmarks import measure  # noqa: E402
from benchmarks.models import CASES  # noqa: E402

MODES = ("hooks", "functorch", "ghost")
CLIP, NOISE_MULTIPLIER = 1.0, 1.1


def mlp() -> nn.Module:
    """784-256-256-10."""
    return nn.Sequential(
        nn.Linear(784, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def cnn() -> nn.Module:
    """The network of the MNIST tutorials; padding 3 is "same" for 8 x 8 by 2."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


class Encoder(nn.Module):
    """Attention and a two-layer network, each added and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.first = nn.LayerNorm(64)
        self.network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
        self.second = nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, position, 64]."""
        attended, _ = self.attention(x, x, x, need_weights=False)
        x = self.first(x + attended)
        return self.second(x + self.network(x))


class Transformer(nn.Module):
    """Two encoders; positions are looked up in a second table."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10_000, 64)
        self.positions = nn.Embedding(64, 64)
        self.encoders = nn.Sequential(Encoder(), Encoder())
        self.head = nn.Linear(64, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[batch, position] ids."""
        places = torch.arange(64).repeat(len(ids), 1)
        x = self.encoders(self.tokens(ids) + self.positions(places))
        return self.head(x.mean(1))


class Pooled(nn.Module):
    """The mean of looked-up vectors, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100_000, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[batch, 32] ids."""
        return self.head(self.table(ids).mean(1))


class Block(nn.Module):
    """Pre-activated residual block."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(16, before), nn.GroupNorm(16, width)])
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = (
            None if before == width else nn.Conv2d(before, width, 1, stride, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width]."""
        y = functional.relu(self.norms[0](x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.second(functional.relu(self.norms[1](self.first(y))))
        return shortcut + y


class WideResNet(nn.Module):
    """WRN-16-4 with GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(
            Block(16, 64, 1),
            Block(64, 64, 1),
            Block(64, 128, 2),
            Block(128, 128, 1),
            Block(128, 256, 2),
            Block(256, 256, 1),
        )
        self.norm = nn.GroupNorm(16, 256)
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 3, 32, 32]."""
        x = functional.relu(self.norm(self.blocks(self.first(x))))
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    """An LSTM and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 64, 32]."""
        return self.head(self.lstm(x)[0][:, -1])


MODELS = {
    "mlp": mlp,
    "cnn": cnn,
    "transformer": Transformer,
    "embedding": Pooled,
    "embedding_adam": Pooled,
    "wrn": WideResNet,
    "lstm": Recurrent,
}


def trained(case: Any, name: str, mode: str, data: Any) -> Any:
    """(model, optimizer, loss), plain or in a mode of Opacus."""
    model = MODELS[name]()
    if mode != "plain":
        model = ModuleValidator.fix(model)
    classes = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = classes[case.optimizer](model.parameters(), 1e-3)
    criterion = nn.CrossEntropyLoss()
    if mode == "plain":
        return model, optimizer, criterion
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data), batch_size=case.batch_size
    )
    model, optimizer, *wrapped, _ = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        criterion=criterion,
        data_loader=loader,
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    return model, optimizer, wrapped[0] if wrapped else criterion


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    case = CASES[options.model]
    rows = case.steps * case.batch_size
    x, y = case.data(rows)
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    data = torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
    if not data[0].is_floating_point():
        data = data[0].long(), data[1]
    generator = np.random.default_rng(0)

    def block_of(mode: str) -> measure.Block:
        model, optimizer, criterion = trained(case, options.model, mode, data)
        model.train()

        def block(steps: int) -> measure.Times:
            clock = measure.Clock()
            for _ in range(steps):
                indices = torch.from_numpy(
                    generator.choice(rows, case.batch_size, shuffle=False)
                )
                optimizer.zero_grad()
                loss = criterion(model(data[0][indices]), data[1][indices])
                loss.backward()
                optimizer.step()
            return clock.milliseconds(steps)

        return block

    blocks = {mode: block_of(mode) for mode in ("plain", options.mode)}
    found = measure.race(blocks, ["plain"], case.steps, options.rounds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
