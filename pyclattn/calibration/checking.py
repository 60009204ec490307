"""How a plan does on inputs: the error of every attention, measured along an exact run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pyclattn.calibration.probing import Comparison, is_fixed
from pyclattn.calibration.samples import check_model, checked
from pyclattn.graph.spec import Observed
from pyclattn.model import Model
from pyclattn.plan import Plan


def errors_of(model: Model, plan: Plan, samples: Sequence[Mapping[str, np.ndarray]]) -> list[dict]:
    """The error of each attention on each input, if it alone ran by the plan.

    Parameters
    ----------
    model : Model
    plan : Plan
    samples : sequence of mappings of input name to array
        Inputs that the plan was not calibrated on tell the most.

    Returns
    -------
    list of dict
        ``sample`` (its position), ``attention``, ``tokens``, ``error`` (relative, Frobenius), ``seconds`` and
        ``exact_seconds``.

    Raises
    ------
    ArgumentError
        Before any run, for samples that do not fit, and for a plan of another model.
    """
    check_model(model)
    plan = Plan.of(plan, model.attentions, (model.fingerprint, *model.origins))
    found: list[dict] = []
    number = 0

    def observe(seen: Observed) -> None:
        n_queries, n_keys = seen.query.shape[2], seen.key.shape[2]
        choices = plan.choices(seen.name, n_queries, n_keys)
        entry = {"sample": number, "attention": seen.name, "tokens": max(n_queries, n_keys), "error": 0.0,
                 "seconds": seen.seconds, "exact_seconds": seen.seconds}  # fmt: skip
        if not is_fixed(seen) and any(choice.method != "exact" for choice in choices):
            comparison = Comparison(seen)
            probe = comparison.run(*choices)
            entry.update(error=comparison.relative(probe), seconds=probe.seconds)
        found.append(entry)

    exact = Model(
        model.program, attention="exact", n_threads=model.n_threads, max_memory=model.max_memory, path=model.path,
        observe=observe,
    )  # fmt: skip
    for feed in checked(model, samples):
        exact(**feed)
        number += 1
    return found
