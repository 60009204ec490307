"""``python -m bench calibration``: do plans keep their error on images they have not seen? Are estimates right?

Saliency (ViT-S/14, 5,330 tokens) is calibrated on four crops of four photographs and run on twenty others. Every
attention's error is measured along an exact run, as if it alone ran by the plan. Then: estimated errors beside true
ones, auto beside exact attention, predicted times beside measured ones. Parts are kept as soon as they are measured: a
run that was stopped goes on with what is missing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench.estimates import estimates
from bench.parts import run_parts
from bench.predictions import auto, predictions
from bench.rows import Row, tokens
from bench.tasks import saliency
from bench.tasks.fetch import ASTRONAUT, COFFEE, HUBBLE, WIDE_BASELINE, fetch
from pyclattn import calibrate
from pyclattn.calibration import errors_of
from pyclattn.model import Model, load

RESULTS = Path(__file__).parent / "results" / "calibration.json"
LIMITS, N_SAMPLES, N_FRESH = (0.05, 0.02), 4, 20
WITHIN_BAR, WORST_BAR, TIME_BAR = 0.95, 1.5, 15
# A crop's side, of the shorter side of its photograph.
CROPS = (0.4, 1.0)


def crops(size: int, n: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Square pieces of the photographs in turn, half of them mirrored, as the model takes them."""
    from PIL import Image

    paths = [fetch(ASTRONAUT)[0], fetch(COFFEE)[0], fetch(HUBBLE)[0], fetch(*WIDE_BASELINE)[0]]
    rng, found = np.random.default_rng(seed), []
    for number in range(n):
        with Image.open(paths[number % len(paths)]) as image:
            whole = image.convert("RGB")
        side = int(min(whole.size) * rng.uniform(*CROPS))
        left, top = (int(rng.integers(0, most - side + 1)) for most in whole.size)
        piece = whole.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.asarray(piece, np.float32)[:, :: rng.choice([-1, 1])] / 255
        pixels = (pixels - np.float32(saliency.MEAN)) / np.float32(saliency.DEVIATION)
        found.append({"input_image": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)})
    return found


def plans(limit: float, n_threads: int, size: int = saliency.SIZE) -> Iterator[Row]:
    """Errors on fresh images, and what calibrating took."""
    model = load(saliency.converted(), n_threads=n_threads)
    samples, fresh = crops(size, N_SAMPLES, 0), crops(size, N_FRESH, 1)
    exact = _seconds(model, samples)
    at = tokens((size // saliency.PATCH) ** 2 + 1)
    start = time.perf_counter()
    plan = calibrate(model, samples, limit, progress=False)
    taken = (time.perf_counter() - start) / exact
    found = errors_of(model, plan, fresh)
    errors = np.array([entry["error"] for entry in found])
    speed = sum(e["exact_seconds"] for e in found) / sum(e["seconds"] for e in found)
    name, note = f"plan of {limit:.0%}", f"{len(errors)} attentions of {N_FRESH} images; attention {speed:.2f}x"
    detail = {"errors": errors.round(5).tolist(), "speed": speed}
    yield Row("plans", f"{name}: within its error on unseen images", at, float((errors <= limit).mean()), unit="%",
              bar=WITHIN_BAR, note=note, detail=detail)  # fmt: skip
    yield Row("plans", f"{name}: the worst, of its error", at, float(errors.max() / limit), sense="<=", bar=WORST_BAR)
    yield Row("plans", f"{name}: calibration, in exact runs of one image", at, taken, unit="", sense="<=",
              bar=TIME_BAR, note=f"on {N_SAMPLES} images")  # fmt: skip


def _seconds(model: Model, samples: list[dict]) -> float:
    """Of an exact run: the median after a first one."""
    seconds = []
    for feed in samples:
        start = time.perf_counter()
        model(**feed)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    **{f"plan-{limit:.0%}": partial(plans, limit) for limit in LIMITS},
    "estimates": estimates,
    "auto": auto,
    "predictions": predictions,
}


def main(given: list[str] | None = None) -> int:
    """Measure what is missing, print the table; 1 if a bar is missed."""
    return run_parts("calibration", __doc__, PARTS, RESULTS, given)


if __name__ == "__main__":
    sys.exit(main())
