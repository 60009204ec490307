"""If, Loop and Scan: programs within a program.

Their results can have any shape, so they are built in the run, when their inputs are there. The nested program gets
the outer values it reads as inputs beside its own.
"""

from __future__ import annotations

import numpy as np

from pyclattn.errors import ShapeError
from pyclattn.graph.ops.registry import op
from pyclattn.graph.program import Program
from pyclattn.graph.spec import Kernel, Node, constant


def _outer(node: Node, program: Program) -> dict[str, np.ndarray]:
    """Values around the nested program that it reads. They stand behind the operator's own inputs."""
    names: list[str] = []
    for attribute in node.op.attributes.values():
        if isinstance(attribute, Program):
            names += node.settings.free_names(attribute)
    wanted = set(node.settings.free_names(program))
    start = len(node.op.inputs)
    return {n: node.value(start + i) for i, n in enumerate(names) if n in wanted}


@op("If")
def _if(node: Node) -> Kernel:
    condition = bool(node.scalar(0))
    program = node.attr("then_branch" if condition else "else_branch")
    return constant(node.settings.programs(program).run(_outer(node, program)))


@op("Loop")
def _loop(node: Node) -> Kernel:
    limit = int(node.scalar(0)) if node.has(0) else None
    going = bool(node.scalar(1)) if node.has(1) else True
    body = node.attr("body")
    own = [v.name for v in body.inputs]
    state = [node.value(i) for i in range(2, len(node.op.inputs))]
    outer = _outer(node, body)
    executor = node.settings.programs(body)
    n_states, n_scans = len(state), len(body.outputs) - 1 - len(state)
    scans: list[list[np.ndarray]] = [[] for _ in range(n_scans)]
    i = 0
    while going and (limit is None or i < limit):
        feeds = dict(zip(own, [np.array(i, np.int64), np.array(True), *state]))
        going, *results = executor.run({**feeds, **outer})
        going = bool(going)
        state = results[:n_states]
        for scan, result in zip(scans, results[n_states:]):
            scan.append(result)
        i += 1
    return constant([*state, *(np.stack(s) if s else _nothing(v) for s, v in zip(scans, body.outputs[1 + n_states :]))])


def _nothing(value) -> np.ndarray:
    """The stack of no results."""
    shape = [n if isinstance(n, int) else 0 for n in value.shape if n != "..."]
    return np.empty((0, *shape), value.dtype or "float32")


@op("Scan")
def _scan(node: Node) -> Kernel:
    body = node.attr("body")
    n_scanned = node.attr("num_scan_inputs")
    n_inputs = len(node.op.inputs)
    n_states = n_inputs - n_scanned
    n_results = len(body.outputs) - n_states
    in_axes = node.attr("scan_input_axes", [0] * n_scanned)
    out_axes = node.attr("scan_output_axes", [0] * n_results)
    in_back = node.attr("scan_input_directions", [0] * n_scanned)
    out_back = node.attr("scan_output_directions", [0] * n_results)
    state = [node.value(i) for i in range(n_states)]
    scanned = [np.moveaxis(node.value(n_states + i), in_axes[i], 0) for i in range(n_scanned)]
    lengths = {a.shape[0] for a in scanned}
    if len(lengths) != 1:
        raise ShapeError(f"scanned inputs must have one length, got {sorted(lengths)}")
    n = lengths.pop()
    own = [v.name for v in body.inputs]
    outer = _outer(node, body)
    executor = node.settings.programs(body)
    results: list[list[np.ndarray]] = [[] for _ in range(n_results)]
    for i in range(n):
        row = [a[n - 1 - i if back else i] for a, back in zip(scanned, in_back)]
        values = executor.run({**dict(zip(own, [*state, *row])), **outer})
        state = values[:n_states]
        for collected, value in zip(results, values[n_states:]):
            collected.append(value)
    stacked = []
    for collected, axis, back, value in zip(results, out_axes, out_back, body.outputs[n_states:]):
        whole = np.stack(collected[::-1] if back else collected) if collected else _nothing(value)
        stacked.append(np.moveaxis(whole, 0, axis))
    return constant([*state, *stacked])
