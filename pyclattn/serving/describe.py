"""What the service tells of itself, of a model, and of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyclattn.errors import PyclattnError
from pyclattn.graph.run_report import RunReport
from pyclattn.serving.protocol import tensor_metadata
from pyclattn.serving.repository import Version
from pyclattn.serving.runner import Outcome


def server_metadata() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("pyclattn")
    except PackageNotFoundError:
        number = "unknown"
    return {"name": "pyclattn", "version": number, "extensions": ["binary_tensor_data", "model_repository_index"]}


def model_metadata(version: Version) -> dict[str, Any]:
    program = version.model.program
    return {
        "name": version.name,
        "versions": [str(version.number)],
        "platform": "pyclattn",
        "inputs": [tensor_metadata(value) for value in program.inputs],
        "outputs": [tensor_metadata(value) for value in program.outputs],
    }


def plan_of(version: Version) -> dict[str, Any]:
    """What the page shows beside the protocol's metadata."""
    model = version.model
    return {
        "attentions": model.describe_attentions(),
        "batching": version.rule.kind,
        "weight_bytes": model.weight_bytes,
        "precision": model.precision,
        "max_memory": model.max_memory,
        "n_threads": model.n_threads,
    }


def run_parameters(version: Version, inputs: Mapping[str, np.ndarray], outcome: Outcome) -> dict[str, Any]:
    """What a run that was asked to report did."""
    found: dict[str, Any] = {
        "queue_ms": round(1e3 * outcome.queue_seconds, 3),
        "run_ms": round(1e3 * outcome.run_seconds, 3),
    }
    try:
        shapes = {name: array.shape for name, array in inputs.items()}
        found["memory_bytes"] = version.model.estimate(**shapes)
    except PyclattnError:  # shapes that depend on the data
        found["memory_bytes"] = None
    if outcome.report is not None:
        found["attentions"] = _attentions(outcome.report)
    return found


def _attentions(report: RunReport) -> list[dict[str, Any]]:
    rows = []
    for run in report.attentions:
        errors = run.errors if run.errors is not None and run.errors.size and np.isfinite(run.errors).all() else None
        rows.append(
            {
                "name": run.name,
                "method": run.method,
                "parameters": {name: str(value) for name, value in run.parameters.items()},
                "heads": len(run.heads),
                "error": None if errors is None else round(float(errors.mean()), 6),
                "largest_error": None if errors is None else round(float(errors.max()), 6),
                "made_exact": int(run.fell_back.sum()),
                "ms": round(1e3 * run.seconds, 3),
            }
        )
    return rows
