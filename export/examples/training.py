"""One course for every example: train each network alike, export it, run it in pyclattn, compare on the whole test set.

A network that has been trained is kept beside its curve and not trained again; ``--again`` does.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyclattn
from pyclattn_export.examples import groups
from pyclattn_export.from_torch import from_torch

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
    source: Callable[[], Arrays] | None = None  # of the test set, where it is not made from a seed


def main(example: Example, about: str | None) -> None:
    """The command line of an example."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=example.networks, default=list(example.networks))
    parser.add_argument("--out", type=Path, default=Path("out/examples"), help="where networks and curves are kept")
    parser.add_argument("--steps", type=int, default=example.n_steps)
    parser.add_argument("--n-threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="train even what has been trained")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="also put what tests need here")
    given = parser.parse_args()
    torch.set_num_threads(given.n_threads)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        path = given.out / f"{example.name}-{name}.pt"
        if given.again or not path.exists():
            network = build(example, name)
            curve = train(network, example, given.steps, name)
            path.with_suffix(".json").write_text(json.dumps(curve))
            torch.save(network.state_dict(), path)
    proofs = [prove(example, name, given.out) for name in given.only]
    print(table(example.name, proofs))
    if given.keep:
        keep(example, proofs, given.out, given.keep)


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


def prove(example: Example, name: str, folder: Path) -> dict:
    """Export what was trained and run the whole test set in pyclattn, in PyTorch, and in PyTorch in float64.

    Returns
    -------
    dict
        Name, parameters, accuracy in pyclattn and PyTorch, which sequences PyTorch had right (a bit each, in
        hexadecimal), the share of equal predictions, and the curve of training. How far pyclattn is from PyTorch
        ("pyclattn") and, to compare, PyTorch from itself in float64 ("float64"), each a `Distance`.
    """
    network, path = build(example, name), folder / f"{example.name}-{name}.pt"
    network.load_state_dict(torch.load(path, weights_only=True))
    inputs, labels = example.test()
    from_torch(network, _rows(inputs, 0), path.with_suffix(".safetensors"))
    model = pyclattn.load(path.with_suffix(".safetensors"))
    with groups.in_torch() as found:
        theirs = logits(network, inputs)
    of_theirs = groups.joined(found, len(labels))
    with groups.in_torch() as found:
        exact = logits(network.double(), inputs)
    of_exact = groups.joined(found, len(labels))
    with groups.in_pyclattn() as found:
        ours = np.concatenate([model(**_rows(inputs, at))["output"] for at in range(0, len(labels), AT_ONCE)])
    of_ours = groups.joined(found, len(labels))
    return {
        "name": name,
        "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "n_test": len(labels),
        "accuracy_torch": float((theirs.argmax(1) == labels).mean()),
        "accuracy": float((ours.argmax(1) == labels).mean()),
        "same_predictions": float((ours.argmax(1) == theirs.argmax(1)).mean()),
        "pyclattn": asdict(distance(ours, of_ours, theirs, of_theirs)),
        "float64": asdict(distance(exact, of_exact, theirs, of_theirs)),
        "right": np.packbits(theirs.argmax(1) == labels).tobytes().hex(),
        "curve": json.loads(path.with_suffix(".json").read_text()),
    }


@dataclass(frozen=True)
class Distance:
    """How far a run of a network is from PyTorch's in float32."""

    largest: float  # difference of a logit
    within: float  # share of sequences whose logits differ by at most 1e-4
    alike: float  # share of sequences whose tokens are in the same clusters
    largest_alike: float  # difference of a logit among those


def distance(one: np.ndarray, groups_of_one: np.ndarray, other: np.ndarray, groups_of_other: np.ndarray) -> Distance:
    """Of two runs: logits (sequences, classes) and what `groups.joined` gives."""
    differences = np.abs(one - other).max(1)
    alike = (groups_of_one == groups_of_other).all(1)
    return Distance(
        float(differences.max()), float((differences <= LARGEST_DIFFERENCE).mean()), float(alike.mean()),
        float(differences[alike].max(initial=0)),
    )  # fmt: skip


def keep(example: Example, proofs: list[dict], source: Path, target: Path) -> None:
    """Exported networks, what was found, and the test set where no seed makes it."""
    target.mkdir(parents=True, exist_ok=True)
    for proof in proofs:
        name = f"{example.name}-{proof['name']}.safetensors"
        shutil.copyfile(source / name, target / name)
    (target / f"{example.name}.json").write_text(json.dumps(proofs) + "\n")
    if example.source is not None:
        np.savez_compressed(target / f"{example.name}.npz", **example.source())


def table(title: str, proofs: list[dict]) -> str:
    """What `prove` found, a line for each network."""
    lines = [
        f"{'':46} {'from PyTorch: pyclattn':>30} {'PyTorch in float64':>30}",
        f"{title:16} {'parameters':>10} {'PyTorch':>9} {'same':>8} "
        + 2 * f"{'largest':>10} {'1e-4':>9} {'clusters':>9} ",
    ]
    for p in proofs:
        far = (p["pyclattn"], p["float64"])
        cells = "".join(f"{d['largest']:>10.1e} {d['within']:>9.2%} {d['alike']:>9.2%} " for d in far)
        lines.append(
            f"{p['name']:16} {p['n_parameters']:>10,} {p['accuracy_torch']:>9.1%} {p['same_predictions']:>8.2%} {cells}"
        )
    return "\n".join(lines)


def logits(network: nn.Module, inputs: Arrays) -> np.ndarray:
    """What PyTorch makes of inputs, a few at a time, in the type of the network's parameters."""
    network.eval()
    dtype = next(network.parameters()).dtype
    with torch.inference_mode():
        n = len(next(iter(inputs.values())))
        parts = [network(*_tensors(_rows(inputs, at), dtype)) for at in range(0, n, AT_ONCE)]
    return torch.cat(parts).numpy()


def _tensors(inputs: Arrays, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    tensors = map(torch.from_numpy, inputs.values())
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]


def _rows(inputs: Arrays, at: int, n: int = AT_ONCE) -> Arrays:
    return {name: np.ascontiguousarray(array[at : at + n]) for name, array in inputs.items()}


def _first(batch: Batch, n: int) -> Batch:
    return _rows(batch[0], 0, n), batch[1][:n]
