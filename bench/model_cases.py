"""The cases of ``python -m bench models``: models, inputs, engines, bars; and the rows that figures become.

An engine is written NAME or NAME-KIND: "openvino-bf16", "pyclattn-int8", "torch-sdpa"; "int8+bf16" is weights of dense
layers in int8, and bfloat16 for the other products. "coclustered" is co-clustered attention with one setting for all
layers, which keeps their mean error within 2 %; "calibrated" has a plan that keeps every layer within 2 %. The error of
a layer is estimated in the run, from exact outputs of some of its queries.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.rows import Row

Found = dict[str, dict[str, Any]]  # what `bench.models.measure` returns
# What counts as the same answer, for us and for peers: layers' error, and correlation of heat maps.
LAYER_ERROR, CORRELATION = 0.02, 0.999
# The setting of "coclustered", by pixels a side: query clusters, and keys that a query attends to exactly, in the mean.
# Clusters fill whole panels of 48 lanes, near 1.5 sqrt(tokens); keys go in steps of 16. Of all that keep the mean error
# of layers within LAYER_ERROR, by the estimate in the run and beside an exact one, the fastest; the same for float32,
# bf16 and int8, but where int8's own error leaves less of CORRELATION to the keys. 1022 takes more keys than longer
# sequences since one of its layers alone, the second, has 8 to 10 %.
UNIFORM = {"1022": (144, 416), "1526": (192, 192), "2044": (192, 176), "2044 int8+bf16": (192, 352)}


@dataclass(frozen=True)
class Case:
    """A model and input, and the engines it runs in, ours in float32 first.

    ``bars``: of (one, another), how many times faster the one must be; ``clustered_bar``: how many times faster than
    OpenVINO the best clustered engine must be.
    """

    name: str
    engines: tuple[str, ...]
    bars: dict[tuple[str, str], float] = field(default_factory=dict)
    is_memory_barred: bool = False  # at most OpenVINO's
    clustered_bar: float | None = None
    products_bar: float | None = None  # co-clustered, float32: time at most so many times that of the products within
    memory_share_bar: float | None = None  # at most so much of ONNX Runtime's; then nothing is timed


OURS = ("pyclattn", "pyclattn-bf16", "pyclattn-int8")
PEERS = ("openvino", "openvino-bf16", "onnxruntime", "onnxruntime-int8")
TORCH = ("torch-eager", "torch-sdpa")
CLUSTERED = tuple(f"{name}{kind}" for name in ("coclustered", "calibrated") for kind in ("", "-bf16", "-int8+bf16"))
TEXT_BARS = {("pyclattn", "onnxruntime"): 1.0, ("pyclattn-int8", "onnxruntime-int8"): 1.0}
IMAGE_BARS = {
    ("pyclattn", "openvino"): 1.1,
    ("pyclattn", "onnxruntime"): 1.8,
    ("pyclattn-bf16", "openvino-bf16"): 1.1,
}
# ONNX Runtime cannot allocate 2044, and needs most of a minute for 1526 with any weights. What has no bar at the
# longest is left out there.
CASES = (
    Case("minilm 32 128", (*OURS, *PEERS, *TORCH), TEXT_BARS),
    Case("minilm 1 512", (*OURS, *PEERS, *TORCH), TEXT_BARS),
    Case("saliency 1022", (*OURS, *CLUSTERED, *PEERS), IMAGE_BARS, True),
    Case("saliency 1526", (*OURS[:2], *CLUSTERED, *PEERS[:3]), IMAGE_BARS, True, 4.0),
    Case("saliency 2044", (*OURS[:2], *CLUSTERED, *PEERS[:2]), IMAGE_BARS, True, 7.0, 1.5),
    Case("encoder 16384", ("pyclattn", "onnxruntime"), memory_share_bar=0.1),
)


def seconds(own: dict[str, Any]) -> float:
    """Of one run."""
    return statistics.median(own["seconds"])


def ratio(slow: dict[str, Any], fast: dict[str, Any]) -> float:
    """Median of the ratios of the same rounds; where one ran more often, the ratio of medians."""
    if len(slow["seconds"]) != len(fast["seconds"]):
        return seconds(slow) / seconds(fast)
    return statistics.median(a / b for a, b in zip(slow["seconds"], fast["seconds"]))


def rows(case: Case, found: Found, peak: float | None = None) -> Iterator[Row]:
    """What the case shows, beside its bars; ``peak``: FLOP/s of float32 multiply-adds."""
    if case.memory_share_bar is not None:
        yield memory_share(case, found)
        return
    for name in case.engines:
        yield engine(case, name, found, peak)
    for (fast, slow), bar in case.bars.items():
        if slow in case.engines:
            yield against(case, found, fast, slow, bar)
    if case.is_memory_barred and runs(found, "pyclattn", "openvino"):
        share = found["pyclattn"]["bytes"] / found["openvino"]["bytes"]
        yield Row("models", "pyclattn: peak memory over openvino's", case.name, share, sense="<=", bar=1.0)
    own = found.get("pyclattn-bf16", {})
    if "correlation" in own and case.is_memory_barred:
        note = f"1 - {1 - own['correlation']:.1e}"
        yield Row("models", "pyclattn-bf16: heat map's correlation", case.name, own["correlation"], "r2", bar=0.9999,
                  note=note)  # fmt: skip
    if any(name.startswith("coclustered") for name in case.engines):
        yield from clustered(case, found)


def uniform(model: str, precision: str = "") -> dict[str, Any]:
    """How "coclustered" attends in a saliency model.

    Examples
    --------
    >>> uniform("saliency 1526")
    {'method': 'coclustered', 'n_query_clusters': 192, 'n_exact': 192}
    """
    side = model.split()[1]
    n_query_clusters, n_exact = UNIFORM.get(f"{side} {precision}", UNIFORM[side])
    return {"method": "coclustered", "n_query_clusters": n_query_clusters, "n_exact": n_exact}


def runs(found: Found, *names: str) -> bool:
    """Whether all of these ran."""
    return all("failed" not in found.get(name, {"failed": ""}) for name in names)


def engine(case: Case, name: str, found: Found, peak: float | None) -> Row:
    """Time, memory and agreement of one engine."""
    own = found.get(name, {"failed": "not run"})
    if "failed" in own:
        return Row("models", f"{name}: time", case.name, None, note=own["failed"])
    note = f"{own['bytes'] / 1e6:,.0f} MB"
    if name != case.engines[0] and "correlation" in own:
        note += f", 1 - correlation {max(0.0, 1 - own['correlation']):.1e}"
    if "layer_error" in own:
        setting = f", {own['setting']}" if own.get("setting") else ""
        note += f"{setting}, mean error of layers {own['layer_error']:.2%} (the worst {own['worst_layer']:.1%})"
    flops = found[case.engines[0]].get("flops")
    if flops and peak and not name.startswith(("coclustered", "calibrated")):
        note += f", {flops / seconds(own) / 1e9:.0f} GFLOP/s"
        note += f", {flops / seconds(own) / peak:.0%} of the peak" if "-" not in name else ""
    return Row("models", f"{name}: time", case.name, seconds(own), "s", note=note,
               detail={**{key: value for key, value in own.items() if key != "products"}, "flops": flops})  # fmt: skip


def against(case: Case, found: Found, fast: str, slow: str, bar: float | None) -> Row:
    """How many times faster one engine is than another."""
    what = f"{fast} against {slow}"
    if not runs(found, fast, slow):
        failed = next(name for name in (fast, slow) if not runs(found, name))
        return Row("models", what, case.name, None, bar=bar, note=f"{failed}: {found.get(failed, {}).get('failed')}")
    note = f"{seconds(found[slow]):.3g} s over {seconds(found[fast]):.3g} s"
    return Row("models", what, case.name, ratio(found[slow], found[fast]), bar=bar, note=note)


def best(found: Found, names: list[str]) -> str | None:
    """The fastest that keeps the correlation, and the mean error of its layers where it is told."""
    fit = [
        name
        for name in names
        if runs(found, name)
        and found[name]["correlation"] >= CORRELATION
        and found[name].get("layer_error", 0.0) <= LAYER_ERROR
    ]
    return min(fit, key=lambda name: seconds(found[name]), default=None)


def clustered(case: Case, found: Found) -> Iterator[Row]:
    """The best of ours against OpenVINO's float32 and against its best; time over products."""
    mine = [name for name in CLUSTERED if name in case.engines]
    plain = best(found, [name for name in mine if "-" not in name])
    small = best(found, [name for name in mine if "-" in name])
    peer = best(found, [name for name in case.engines if name.startswith("openvino")])
    for what, own, other in (("float32", plain, "openvino"), ("best", small, peer)):
        title = f"clustered, {'bf16 or int8' if what == 'best' else what}, against OpenVINO's {what}"
        if own is None or other is None or not runs(found, other):
            yield Row("models", title, case.name, None, bar=case.clustered_bar, note="none that keeps the answer")
            continue
        row = against(case, found, own, other, case.clustered_bar)
        row.what, row.note = title, f"{own} against {other}: {row.note}"
        yield row
    if plain is not None and case.products_bar is not None:
        own = found[plain]
        share = statistics.median(a / b for a, b in zip(own["seconds"], own["products"]))
        yield Row("models", "clustered, float32: time over its products'", case.name, share, sense="<=",
                  bar=case.products_bar, note=plain)  # fmt: skip


def memory_share(case: Case, found: Found) -> Row:
    """Peak memory over ONNX Runtime's; where that could not run, over what it held and asked for."""
    ours, theirs = (found.get(name, {}) for name in ("pyclattn", "onnxruntime"))
    what, bar = "peak memory over onnxruntime's", case.memory_share_bar
    if "failed" in ours or not ours.get("bytes") or not theirs.get("bytes"):
        note = str(ours.get("failed") or theirs.get("failed"))
        return Row("models", what, case.name, None, sense="<=", bar=bar, note=note)
    note = f"{ours['bytes'] / 1e6:,.0f} of {theirs['bytes'] / 1e6:,.0f} MB"
    if "failed" in theirs:
        note += ", at which ONNX Runtime failed to allocate"
    detail = {"bytes": {"pyclattn": ours["bytes"], "onnxruntime": theirs["bytes"]}}
    return Row(
        "models", what, case.name, ours["bytes"] / theirs["bytes"], sense="<=", bar=bar, note=note, detail=detail
    )
