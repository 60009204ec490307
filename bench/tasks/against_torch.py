"""``python -m bench.tasks.against_torch``: whole models with exact attention, in pyclattn and in PyTorch.

The same weights, the same input, rounds that take both in turn in one process, as many threads each; PyTorch runs its
fused attention. Prints medians, their ratio round by round, and how far the results are apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np

from bench.measure import interleave
from bench.tasks import genomics, matching
from bench.tasks.fetch import LIGHTERGLUE, TIS_TRANSFORMER, XFEAT, FetchError, fetch
from bench.tasks.photographs import WALL, pair
from bench.tasks.tis_transformer import tokens_of
from pyclattn import _threads, load_weights

BAR = 1.2
ROUNDS = 5
Runs = dict[str, Callable[[], object]]


def match(n_keypoints: int, n_threads: int) -> tuple[Runs, Callable[[object, object], str]]:
    """Extracting and matching the wide-baseline pair."""
    import torch

    from bench.tasks import torch_twins

    images = pair(WALL)
    both = images.first, images.second
    extract, ours = matching.networks("exact", n_threads)
    extractor, matcher = fetch(XFEAT, LIGHTERGLUE)
    weights = load_weights(extractor)
    twin = torch_twins.LighterGlue(load_weights(matcher, prefix="matcher.", strip="matcher."))

    def in_torch():
        with torch.inference_mode():
            found = [torch_twins.xfeat(weights, image, n_keypoints) for image in both]
        keypoints, descriptors = zip(*found)
        return twin(keypoints, descriptors, [image.shape[1::-1] for image in both])[0].numpy(), keypoints

    def in_pyclattn():
        features = [extract(image, n_keypoints) for image in both]
        return ours(*features)[0], [f.keypoints for f in features]

    def apart(a, b) -> str:
        """As places: equally good keypoints may stand in another order."""
        places = [
            np.concatenate([np.asarray(points)[pairs[:, i]] for i, points in enumerate(keypoints)], 1)
            for pairs, keypoints in (a, b)
        ]
        return f"F1 of matches {matching.f1(*places):.4f}"

    return {"pyclattn": in_pyclattn, "PyTorch": in_torch}, apart


def score(length: int, n_threads: int) -> tuple[Runs, Callable[[object, object], str]]:
    """Scoring a gene."""
    from bench.tasks import torch_twins

    (path,) = fetch(TIS_TRANSFORMER)
    sequence = genomics.genes(genomics.labelled(), length, 1)[0][0]
    ours = genomics.network("exact", n_threads)
    twin = torch_twins.TisTransformer(load_weights(path, key="state_dict", objects="placeholder"))
    tokens = tokens_of(sequence)
    runs: Runs = {"pyclattn": lambda: ours(sequence), "PyTorch": lambda: twin(tokens).numpy()}
    return runs, lambda a, b: f"largest difference {np.abs(np.subtract(a, b)).max():.1e}"


TASKS = {"matching": (match, 8192, "keypoints"), "genomics": (score, 30_000, "nucleotides")}


def main(given: list[str] | None = None) -> int:
    """Time the tasks."""
    parser = argparse.ArgumentParser(prog="python -m bench.tasks.against_torch", description=__doc__)
    parser.add_argument("task", nargs="*", choices=[*TASKS, []], help="default: all")
    parser.add_argument("--n-threads", type=int, help="of both (default: the CPUs there are)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="(%(default)s)")
    options = parser.parse_args(given)
    try:
        import torch
    except ImportError:
        print("against_torch: needs PyTorch", file=sys.stderr)
        return 1
    n_threads = _threads.resolve(options.n_threads)
    torch.set_num_threads(n_threads)
    for name in options.task or TASKS:
        make, size, unit = TASKS[name]
        try:
            runs, apart = make(size, n_threads)
        except FetchError as error:
            print(f"against_torch: {error}", file=sys.stderr)
            return 1
        timings = interleave(runs, options.rounds)
        ratio = timings.ratio("PyTorch", "pyclattn")
        print(f"{name}, {size:,} {unit}, {n_threads} threads, {len(timings.seconds['PyTorch'])} rounds"
              f"{'' if timings.is_quiet else ' (others were using the machine)'}")  # fmt: skip
        for engine in runs:
            print(f"  {engine:8}  {timings.median(engine):7.2f} s")
        print(f"  ratio     {ratio.median:7.2f}    ({ratio.low:.2f} to {ratio.high:.2f}; bar {BAR})")
        print(f"  {apart(*(timings.results[engine][-1] for engine in runs))}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
