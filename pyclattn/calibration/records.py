"""What was measured: for each attention and sample, the error of each head and the time of each setting tried."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pyclattn.calibration.ladder import FAMILIES
from pyclattn.errors import ModelFormatError
from pyclattn.weights.targets import write_atomically

# Raised when what is measured, or how, changes.
STATE_VERSION = 2


@dataclass
class Probe:
    """One setting on one sample: seconds, and the squared error of each head of keys."""

    seconds: float
    errors: list[float]


@dataclass
class Record:
    """One attention on one sample.

    Attributes
    ----------
    n_heads, n_kv_heads, n_queries, n_keys : int
    seconds : float
        Of exact attention.
    norms : list of float
        Squared norm of the exact output of each head of keys.
    probes : dict of family's name to dict of level to Probe
    is_fixed : bool
        It is masked in a way that only exact attention computes, or too short.
    target : float
        The error that settings were last searched for.
    """

    n_heads: int
    n_kv_heads: int
    n_queries: int
    n_keys: int
    seconds: float
    norms: list[float]
    probes: dict[str, dict[int, Probe]] = field(default_factory=dict)
    is_fixed: bool = False
    target: float = 0.0

    @property
    def n_tokens(self) -> int:
        return max(self.n_queries, self.n_keys)

    def error(self, family: str, level: int) -> float:
        """Relative error of the whole output."""
        return relative(sum(self.probes[family][level].errors), sum(self.norms))


def relative(error: float, norm: float) -> float:
    """The root of a ratio of squares; what has no finite value is infinite, so that it is never chosen."""
    if not (math.isfinite(error) and math.isfinite(norm)):
        return math.inf
    return math.sqrt(error / norm) if norm > 0 else (0.0 if error == 0 else math.inf)


def squares(rows: np.ndarray, n_kv_heads: int, kept: np.ndarray | None = None) -> list[float]:
    """Sum of squares of each head of keys, of rows (B, H, L, E); ``kept`` (B, L): rows that count."""
    sums = np.zeros(rows.shape[1])
    for batch in range(rows.shape[0]):
        for head in range(rows.shape[1]):
            own = rows[batch, head] if kept is None else rows[batch, head][kept[batch]]
            sums[head] += np.einsum("ij,ij->", own, own, dtype=np.float64)
    return sums.reshape(n_kv_heads, -1).sum(axis=1).tolist()


@dataclass
class State:
    """All records of a calibration, and the file that keeps them.

    Attributes
    ----------
    model : str
        The model's fingerprint.
    n_threads : int
    records : dict of attention's name to dict of sample's key to Record
    """

    model: str
    n_threads: int
    records: dict[str, dict[str, Record]] = field(default_factory=dict)
    path: Path | None = None

    def save(self) -> None:
        """Write the file, whole or not at all, if there is one."""
        if self.path is None:
            return
        data = {"format": "pyclattn.calibration", "format_version": STATE_VERSION, "model": self.model,
                "n_threads": self.n_threads,
                "records": {a: {s: asdict(r) for s, r in own.items()} for a, own in self.records.items()}}  # fmt: skip
        text = json.dumps(data, separators=(",", ":"))
        write_atomically(self.path, lambda file: file.write(text.encode()))

    @classmethod
    def open(cls, path: str | os.PathLike | None, model: str, n_threads: int) -> State:
        """The state of a file, to go on with; a new one where there is none.

        Raises
        ------
        ModelFormatError
            If the file is no state, or one of another model, number of threads or version.
        """
        state = cls(model, n_threads, path=None if path is None else Path(path))
        if state.path is None or not state.path.exists():
            return state
        try:
            data = json.loads(state.path.read_text(encoding="utf-8"))
            if data["format"] != "pyclattn.calibration" or data["format_version"] != STATE_VERSION:
                raise ModelFormatError(f"{path}: not a state of calibration that this pyclattn wrote")
            found = str(data["model"]), int(data["n_threads"])
            for attention, own in data["records"].items():
                state.records[attention] = {sample: _record(values) for sample, values in own.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, ModelFormatError):
                raise
            raise ModelFormatError(f"{path}: not a state of calibration: {error!r:.200}") from error
        if found != (model, n_threads):
            raise ModelFormatError(
                f"{path}: measured on model {found[0]} with {found[1]} threads, not on {model} with {n_threads}: "
                "remove the file to start anew"
            )
        return state


def _record(values: dict) -> Record:
    probes = {
        name: {int(level): Probe(float(p["seconds"]), [float(e) for e in p["errors"]]) for level, p in own.items()}
        for name, own in values["probes"].items()
        if name in FAMILIES
    }
    return Record(**{**values, "probes": probes})
