"""``python -m bench overhead``: what a model costs beside its arithmetic: short inputs, against ONNX Runtime.

A BERT of MiniLM's size (6 layers of 384, random weights), exported by torch with and without a padding mask. Both
engines get the same number of threads and take turns; ONNX Runtime is otherwise as it comes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench.measure import interleave
from bench.peers import onnxruntime_session
from bench.rows import Row, heading, tally, tokens
from pyclattn.model import load

LENGTHS = (16, 128)
# The bar is on 16 tokens; longer inputs show where the arithmetic takes over.
BAR, BAR_AT = 2.0, 16
SHAPE = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}


def export(folder: Path, is_masked: bool) -> Path:
    """The model as an ONNX file."""
    import torch
    import transformers

    from bench.tasks.architectures import OPEN, Example, export_example

    ids = torch.randint(5, 99, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if is_masked else {"input_ids": ids}
    model = transformers.BertModel(transformers.BertConfig(**SHAPE), add_pooling_layer=False)
    path = folder / f"bert_{'masked' if is_masked else 'plain'}.onnx"
    export_example(Example(model, inputs, {name: OPEN[name] for name in inputs}, 0), path, "script")
    return path


def rows(path: Path, is_masked: bool, n_threads: int, rounds: int) -> Iterator[Row]:
    """One row for each length: pyclattn's time over ONNX Runtime's."""
    theirs = onnxruntime_session(path, n_threads)
    ours = load(path, n_threads=n_threads)
    for length in LENGTHS:
        ids = np.random.default_rng(0).integers(5, 99, (1, length))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)} if is_masked else {"input_ids": ids}
        functions = {"ours": partial(ours.run, None, feeds), "theirs": partial(theirs.run, None, feeds)}
        timings = interleave(functions, rounds)
        mine, other = (1e3 * timings.median(name) for name in functions)
        best_mine, best_other = (1e3 * min(timings.seconds[name]) for name in functions)
        what = f"BERT {'with' if is_masked else 'without'} mask, {n_threads} thread{'s' * (n_threads > 1)}"
        yield Row(
            "overhead", what, tokens(length), timings.ratio("ours", "theirs").median, "x",
            bar=BAR if length == BAR_AT else None, sense="<=",
            note=f"{mine:.2f} ms, ONNX Runtime {other:.2f} ms; best {best_mine:.2f}, {best_other:.2f}: "
                 f"{best_mine / best_other:.2f}x" + ("" if timings.is_quiet else "; others were busy"),
        )  # fmt: skip


def main(given: list[str] | None = None) -> int:
    """Print the table; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench overhead", description=__doc__)
    parser.add_argument("--n-threads", type=int, nargs="+", default=[1, 2], help="of both engines (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(given)
    found = []
    print(heading(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for is_masked in (False, True):
            path = export(Path(folder), is_masked)
            for n_threads in options.n_threads:
                for row in rows(path, is_masked, n_threads, options.rounds):
                    found.append(row)
                    print(row.line(), flush=True)
    print(f"\n{tally(found)}\nTimes of pyclattn over ONNX Runtime's: medians of rounds in turn.")
    return int(any(row.verdict == "MISS" for row in found))


if __name__ == "__main__":
    sys.exit(main())
