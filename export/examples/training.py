"""One course for every example: train each network alike, export it, run it in pyclattn, compare on the whole test set.

A network that has been trained is kept beside its curve and not trained again; ``--again`` does.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Arrays = dict[str, np.ndarray]
Batch = tuple[Arrays, np.ndarray]  # what the network takes, by name and in its order; labels

SEED = 0
WARM_UP = 0.1  # of all steps
MOST_NORM = 1.0
N_LOOKS = 10  # at the test set while training
# Test sequences a look takes, and a batch of the comparison.
LOOK, AT_ONCE = 160, 40
LARGEST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Example:
    """A task, and the networks that are trained alike on it."""

    name: str
    networks: dict[str, Callable[[], nn.Module]]
    batch: Callable[[np.random.Generator], Batch]  # of training
    test: Callable[[], Batch]
    n_steps: int
    rate: float = 2e-3


def main(example: Example, about: str | None) -> None:
    """The command line of an example."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=example.networks, default=list(example.networks))
    parser.add_argument("--out", type=Path, default=Path("out/examples"), help="where networks and curves are kept")
    parser.add_argument("--steps", type=int, default=example.n_steps)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="train even what has been trained")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        path = given.out / f"{example.name}-{name}.pt"
        if given.again or not path.exists():
            network = build(example, name)
            curve = train(network, example, given.steps, name)
            path.with_suffix(".json").write_text(json.dumps(curve))
            torch.save(network.state_dict(), path)


def build(example: Example, name: str) -> nn.Module:
    """The network before training, the same at every call."""
    torch.manual_seed(SEED)
    return example.networks[name]()


def train(network: nn.Module, example: Example, n_steps: int, name: str) -> dict[str, list]:
    """Train in place; the curve: steps, losses (mean since the last look) and accuracies."""
    rng, test = np.random.default_rng(SEED + 1), _first(example.test(), LOOK)
    optimizer = torch.optim.AdamW(network.parameters(), lr=example.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / n_steps))
    curve: dict[str, list] = {"step": [], "loss": [], "accuracy": [], "seconds": []}
    losses, start, every = [], time.perf_counter(), max(1, n_steps // N_LOOKS)
    for step in range(1, n_steps + 1):
        inputs, labels = example.batch(rng)
        network.train()
        loss = F.cross_entropy(network(*_tensors(inputs)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), MOST_NORM)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % every == 0 or step == n_steps:
            accuracy = float((logits(network, test[0]).argmax(1) == test[1]).mean())
            seconds = time.perf_counter() - start
            for key, value in zip(curve, (step, float(np.mean(losses)), accuracy, round(seconds, 1))):
                curve[key].append(value)
            print(f"{example.name} {name}: step {step}, loss {np.mean(losses):.3f}, accuracy {accuracy:.3f}, "
                  f"{seconds:.0f} s", flush=True)  # fmt: skip
            losses = []
    return curve


def _rate(done: float) -> float:
    """Up in a line, down along a cosine."""
    return done / WARM_UP if done < WARM_UP else 0.5 + 0.5 * math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))


def logits(network: nn.Module, inputs: Arrays) -> np.ndarray:
    """What PyTorch makes of inputs, a few at a time."""
    network.eval()
    with torch.inference_mode():
        n = len(next(iter(inputs.values())))
        parts = [network(*_tensors(_rows(inputs, at))) for at in range(0, n, AT_ONCE)]
    return torch.cat(parts).numpy()


def _tensors(inputs: Arrays) -> list[Tensor]:
    return [torch.from_numpy(array) for array in inputs.values()]


def _rows(inputs: Arrays, at: int, n: int = AT_ONCE) -> Arrays:
    return {name: np.ascontiguousarray(array[at : at + n]) for name, array in inputs.items()}


def _first(batch: Batch, n: int) -> Batch:
    return _rows(batch[0], 0, n), batch[1][:n]
