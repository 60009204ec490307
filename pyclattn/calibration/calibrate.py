"""`calibrate`: exact runs over the samples, settings tried on the way, a plan from what was measured."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pyclattn.calibration.metrics import Demand, Metric, metric_of
from pyclattn.calibration.probing import Comparison, record_of, search
from pyclattn.calibration.progress import Progress
from pyclattn.calibration.records import Probe, Record, State
from pyclattn.calibration.report import require, write
from pyclattn.calibration.samples import checked, key_of
from pyclattn.calibration.solving import goal, solve_attention
from pyclattn.errors import ArgumentError
from pyclattn.graph.spec import Observed
from pyclattn.model import Model
from pyclattn.plan import Choice, Plan
from pyclattn.plan.classes import RATIO
from pyclattn.weights.targets import check_target

# Where outputs miss the metric the layers' error is cut by this factor, so often at most.
TIGHTER, MOST_ROUNDS = 0.7, 10


def calibrate(
    model: Model,
    samples: Sequence[Mapping[str, np.ndarray]],
    max_error: float = 0.02,
    *,
    metric: Metric | str | None = None,
    max_metric: float | None = None,
    state: str | os.PathLike | None = None,
    report: str | os.PathLike | None = None,
    progress: bool | None = None,
) -> Plan:
    """A plan that keeps the error of every attention within a bound at the least time, found on samples.

    The model runs exactly on each sample; at every attention settings of co-clustered and improved clustered attention
    are tried on what it is given there, and compared with its exact output. The fastest whose error stays within the
    bound, with room for inputs that were not seen, goes into the plan, for each attention, length and head.

    Parameters
    ----------
    model : Model
        However it runs by itself.
    samples : sequence of mappings of input name to array
        What the model will meet: four typical inputs of each length tell much, one tells little. Lengths that differ
        by more than half get choices of their own.
    max_error : float
        Largest relative error ``|found - exact| / |exact|`` (Frobenius) of an attention's output, as if all others were
        exact. 0.02 changed the heat map of a vision transformer by 1e-4 (as 1 - correlation); see docs/calibration.md.
    metric : callable or str, optional
        ``metric(exact, found)`` of two dicts of outputs: a number that is to stay within ``max_metric``, such as one
        minus a correlation. Or one of our own: "correlation" (one minus that of an output's values), "cosine" (one
        minus that of rows along the last axis, the largest), "top-1" (the share of rows whose largest value is at
        another place). The attentions' error is tightened until it does, on all samples.
    max_metric : float, optional
    state : path-like, optional
        A file that keeps what was measured, so that a calibration that was stopped goes on where it was.
    report : path-like, optional
        A folder for a report with pictures; needs ``pip install pyclattn[calibrate]``.
    progress : bool, optional
        Whether to show a progress bar; by default where there is a terminal (and tqdm is installed).

    Returns
    -------
    Plan
        Tied to the model by its fingerprint.

    Raises
    ------
    ArgumentError
        Before any run, for samples that are empty, do not fit, or hold NaN, and for a model without attentions. After
        the first, for a metric that is no number, or above its bound even of exact outputs and themselves.
    ModelFormatError
        If ``state`` is of another model or number of threads.

    Notes
    -----
    Takes about three exact runs for each sample, and beside the model's memory twice the output of one attention.

    Examples
    --------
    >>> import numpy as np, pyclattn
    >>> from pyclattn.graph.program import Op, Program, Value
    >>> x, y = (Value(name, "float32", (1, "length", 2, 16)) for name in "xy")
    >>> model = pyclattn.Model(
    ...     Program([x], [y], [Op("pyclattn:Attention", ("x",) * 3, ("y",), {"name": "only", "layout": "blhd"})])
    ... )
    >>> rng = np.random.default_rng(0)
    >>> samples = [{"x": rng.standard_normal((1, 600, 2, 16), dtype=np.float32)}]
    >>> plan = pyclattn.calibrate(model, samples, max_error=0.02)
    >>> print(plan.summary())  # under 1,024 tokens nothing is faster than exact attention
    attention  tokens  heads  method   error  speed
    only          600  all    exact   0.0000  1.0x
    >>> faster = pyclattn.Model(model.program, attention=plan)
    """
    demand = _demand(max_error, metric, max_metric)
    if report is not None:
        require(report)
    if state is not None:
        check_target("state", state)
    feeds = checked(model, samples)
    known = State.open(state, model.fingerprint, model.n_threads)
    prober = _Prober(known, len(feeds))
    exact = Model(
        model.program, attention="exact", n_threads=model.n_threads, max_memory=model.max_memory, path=model.path,
        observe=prober,
    )  # fmt: skip
    target = max_error
    for _ in range(MOST_ROUNDS):
        prober.target = target
        prober.run(exact, feeds, progress, demand)
        plan = _plan(model, _records(known, feeds), target)
        if demand is None or demand.holds(model, plan, feeds):
            break
        target = TIGHTER * min(target, _expected(plan) or target)
    else:
        warnings.warn(f"no plan keeps the metric within {max_metric}: the plan is exact", stacklevel=2)
        plan = Plan(model=model.fingerprint, max_error=max_error)
    _say_if_one_length(plan)
    if report is not None:
        write(report, model, feeds, _records(known, feeds), plan, target)
    return plan


def _demand(max_error: float, metric: Metric | str | None, max_metric: float | None) -> Demand | None:
    """What is asked of outputs, if anything is; all bounds checked."""
    if not (_is_finite(max_error) and max_error > 0):
        raise ArgumentError(f"max_error must be a positive number, got {max_error!r}")
    if (metric is None) != (max_metric is None):
        raise ArgumentError("metric and max_metric belong together: one was given")
    if metric is None or max_metric is None:
        return None
    if not _is_finite(max_metric):
        raise ArgumentError(f"max_metric must be a finite number, got {max_metric!r}")
    return Demand(metric_of(metric), max_metric)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class _Prober:
    """Observes exact runs, tries settings, keeps records."""

    state: State
    n_samples: int
    target: float = 0.0
    sample: str = ""
    seen: dict[str, int] = field(default_factory=dict)  # how often each attention ran on this sample
    warm: set[str] = field(default_factory=set)  # methods that ran in this process
    bar: Progress | None = None

    def run(self, model: Model, feeds: list[dict], progress: bool | None, demand: Demand | None) -> None:
        """Run all samples that are not measured for the target yet, and those whose exact outputs are asked for."""
        with Progress(len(feeds) * len(model.attentions), progress) as self.bar:
            for feed in feeds:
                self.sample, self.seen = key_of(feed), {}
                if self._is_done(model.attentions) and (demand is None or self.sample in demand.exacts):
                    self.bar.step(len(model.attentions))
                    continue
                outputs = model(**feed)
                if demand is not None:
                    demand.keep(self.sample, outputs)

    def _is_done(self, attentions: list[str]) -> bool:
        known = (self.state.records.get(name, {}).get(self.sample) for name in attentions)
        return all(record is not None and record.target == self.target for record in known)

    def __call__(self, seen: Observed) -> None:
        n = self.seen[seen.name] = self.seen.get(seen.name, 0) + 1
        key = self.sample if n == 1 else f"{self.sample}#{n}"  # in a loop each round is a sample
        own = self.state.records.setdefault(seen.name, {})
        if key not in own or own[key].target != self.target:
            comparison = Comparison(seen)
            record = own.get(key) or record_of(seen, comparison)
            if not record.is_fixed:
                wanted, others = goal(self.target, self.n_samples), _like(record, own, key)
                search(record, lambda choice: self._probe(comparison, choice), wanted, others)
            record.target = self.target
            own[key] = record
            self.state.save()
        if n == 1 and self.bar is not None:
            self.bar.step(1)

    def _probe(self, comparison: Comparison, choice: Choice) -> Probe:
        if choice.method not in self.warm:  # compiled, loaded, memory touched
            self.warm.add(choice.method)
            comparison.run(choice)
        return comparison.run(choice)


def _like(record: Record, own: Mapping[str, Record], key: str) -> list[Record]:
    """Records of the same attention at like lengths."""
    lengths = record.n_tokens / RATIO, record.n_tokens * RATIO
    return [r for k, r in own.items() if k != key and not r.is_fixed and lengths[0] <= r.n_tokens <= lengths[1]]


def _records(state: State, feeds: list[dict]) -> dict[str, list[Record]]:
    """Of each attention those of these samples; a state may hold more."""
    keys = set(map(key_of, feeds))
    found = {
        name: [record for key, record in own.items() if key.partition("#")[0] in keys]
        for name, own in state.records.items()
    }
    return {name: own for name, own in found.items() if own}


def _plan(model: Model, records: dict[str, list[Record]], target: float) -> Plan:
    calibrated = {name: solve_attention(own, target) for name, own in records.items()}
    return Plan(calibrated=calibrated, model=model.fingerprint, max_error=target)


def _expected(plan: Plan) -> float:
    """The largest error that the plan expects of any attention."""
    return max((c.error or 0.0 for known in plan.calibrated.values() for c in known.classes), default=0.0)


def _say_if_one_length(plan: Plan) -> None:
    classes = [c for known in plan.calibrated.values() for c in known.classes]
    lengths = {n for c in classes for n in (c.shortest, c.longest)}
    if len(lengths) == 1 and any(c.choices != (Choice(),) for c in classes):
        warnings.warn(
            f"all samples have {lengths.pop()} tokens: lengths that differ by more than a factor of {RATIO} will run "
            "as calibrated for this one, heads exactly where their estimated error is above the bound. Give samples of "
            "other lengths (docs/calibration.md)", stacklevel=3,
        )  # fmt: skip
