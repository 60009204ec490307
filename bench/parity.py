"""``python -m bench.parity``: pyclattn with exact attention beside ONNX Runtime, on real models and on random ones.

Real models run on real input: a photograph at several sizes, English prose, chemical reactions. Random ones are the
architectures of `bench.tasks.architectures` through both of torch's exporters, at the exported and at another size.

A model that rounds activations to 8 bits is compared with ONNX Runtime with all optimisations off, which computes it as
it is written. Rows without a bar show how far ONNX Runtime's levels of optimisation are from each other, and how far
either engine is from the same model with exact sums.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.tasks import exact_sums, words
from bench.tasks.fetch import INT8_TEXT, TAGGER, TAGGER_VOCAB, FetchError, fetch
from bench.tasks.saliency import DYNAMIC, SALIENCY, normalised
from pyclattn.errors import PyclattnError
from pyclattn.graph.passes import Report
from pyclattn.model import load
from pyclattn_export import convert
from pyclattn_export.verify import TOLERANCE_INT8, compare, difference, run_onnxruntime

# height and width in pixels; 14 to a token
PHOTOGRAPHS = ((224, 224), (518, 518), (1022, 1022), (700, 1120))
N_TEXTS, N_SINGLE = 6, 32
COLUMNS = (
    ("model", 24), ("input", 16), ("difference", -10), ("of range", -9), ("bar", -6), ("argmax", -8), ("attention", -9),
    ("", 6),
)  # fmt: skip


@dataclass
class Row:
    """One model on one input."""

    model: str
    input: str
    difference: float = float("nan")
    relative: float = float("nan")
    bar: float | None = 1e-4
    argmax: float | None = None
    attention: str = ""  # found of all Softmax operators
    note: str = ""

    @property
    def verdict(self) -> str:
        """ok or MISSED; empty where there is no bar."""
        if self.bar is None or self.note:
            return ""
        # A difference of nan is no difference known, and no success.
        is_same = self.bar < TOLERANCE_INT8 or self.argmax == 1.0
        return "ok" if is_same and self.relative <= self.bar else "MISSED"

    def __str__(self) -> str:
        if self.note:
            return f"{self.model:24}  {self.input:16}  {self.note}"
        bar = "" if self.bar is None else f"{self.bar:g}"
        argmax = "" if self.argmax is None else f"{self.argmax:.2%}"
        numbers = f"{self.difference:.1e}", f"{self.relative:.1e}"
        cells = (self.model, self.input, *numbers, bar, argmax, self.attention, self.verdict)
        return line(cells)


def line(cells: tuple[str, ...]) -> str:
    """One aligned line; columns of negative width are set to the right."""
    return "  ".join(f"{cell:{'<' if w > 0 else '>'}{abs(w)}}" for cell, (_, w) in zip(cells, COLUMNS)).rstrip()


class Model:
    """An ONNX file, converted, with its report."""

    def __init__(self, name: str, source: Path, folder: Path, dynamic=None, n_threads: int | None = None):
        self.name, self.source, self.dynamic, self.n_threads = name, source, dynamic, n_threads
        self.target = folder / f"{name.replace(' ', '_')}.safetensors"
        self.report: Report = convert(source, self.target, dynamic=dynamic).report

    def row(self, label: str, inputs: dict[str, np.ndarray]) -> Row:
        result = compare(self.source, self.target, dynamic=self.dynamic, inputs=inputs, n_threads=self.n_threads)
        worst = max(result.differences, key=lambda difference: difference.relative)
        found, kept = len(self.report.attentions), len(self.report.kept)
        return Row(
            self.name,
            label,
            worst.largest,
            worst.relative,
            result.tolerance,
            worst.same_argmax,
            f"{found}/{found + kept}",
        )


def saliency(folder: Path, n_threads: int | None) -> Iterator[Row]:
    (source,) = fetch(SALIENCY)
    model = Model("saliency", source, folder, DYNAMIC, n_threads)
    for height, width in PHOTOGRAPHS:
        row = model.row(f"{height} x {width}", {"input_image": normalised(height, width)})
        row.argmax = None  # a heat map has no classes
        yield row


def texts(folder: Path, n_threads: int | None) -> Iterator[Row]:
    """The two int8 models, each on single sentences and on a padded batch."""
    from bench.tasks.exported import MINILM

    source, tagger, cased, uncased = fetch(INT8_TEXT, TAGGER, TAGGER_VOCAB, MINILM[2])
    model, vocab = Model("int8 text", source, folder, n_threads=n_threads), words.vocabulary(uncased)
    rows = [words.word_pieces(text, vocab, True) for text in words.prose(N_TEXTS)]
    for label, group in (("one sentence", rows[:1]), (f"{N_TEXTS} padded", rows)):
        feeds = words.padded(group)
        yield model.row(label, {**feeds, "token_type_ids": np.zeros_like(feeds["input_ids"])})
    model, vocab = Model("tagger", tagger, folder, n_threads=n_threads), words.vocabulary(cased)
    yield from rounded(model, [words.word_pieces(text, vocab, False) for text in words.prose(N_SINGLE)])


def rounded(model: Model, rows: list[list[int]]) -> Iterator[Row]:
    """A model that rounds its activations, beside ONNX Runtime and beside itself with exact sums."""
    ours = load(model.target, n_threads=model.n_threads)
    found, kept = len(model.report.attentions), len(model.report.kept)

    def rows_of(label: str, group: list[list[int]]) -> list[Row]:
        feeds = words.padded(group)
        padding = feeds["attention_mask"] == 0
        theirs, optimised = (
            run_onnxruntime(model.source, feeds, None, model.n_threads, flag) for flag in (False, True)
        )
        exact, result = exact_sums.run(model.source, feeds), ours(**feeds)
        pairs = {
            model.name: (theirs, result),
            "  ORT optimised, or not": (theirs, optimised),
            "  exact sums, ours": (exact, result),
            "  exact sums, ORT": (exact, theirs),
        }
        made = []
        for name, (wanted, other) in pairs.items():
            d = max((difference(n, wanted[n], other[n], padding) for n in wanted), key=lambda d: d.relative)
            made.append(Row(name, label, d.largest, d.relative, None, d.same_argmax))
        made[0].bar, made[0].attention = TOLERANCE_INT8, f"{found}/{found + kept}"
        return made

    yield from rows_of("one sentence", rows[:1])
    yield from rows_of(f"{N_TEXTS} padded", rows[:N_TEXTS])
    for same in zip(*(rows_of("", [row]) for row in rows)):
        within, equal = (sum(r.relative <= most for r in same) for most in (TOLERANCE_INT8, 0.0))
        note = f"{within} of {len(same)} within {TOLERANCE_INT8:g}, {equal} bit for bit"
        yield Row(same[0].model, f"{len(rows)} singly", note=note)


def exported(folder: Path, n_threads: int | None) -> Iterator[Row]:
    """MiniLM and rxnmapper, exported by torch."""
    from bench.tasks.exported import minilm, rxnmapper

    for exporter in ("dynamo", "script"):
        source, vocab_path = minilm(exporter)
        vocab = words.vocabulary(vocab_path)
        feeds = words.padded([words.word_pieces(text, vocab, True) for text in words.prose(N_TEXTS)])
        yield Model(f"MiniLM {exporter}", source, folder, n_threads=n_threads).row(f"{N_TEXTS} padded", feeds)
        source, vocab_path = rxnmapper(exporter)
        vocab = words.vocabulary(vocab_path)
        feeds = words.padded([words.smiles(text, vocab) for text in words.REACTIONS])
        yield Model(f"rxnmapper {exporter}", source, folder, n_threads=n_threads).row("3 reactions", feeds)


def random_models(folder: Path, n_threads: int | None) -> Iterator[Row]:
    from bench.tasks import architectures

    for name in architectures.ARCHITECTURES:
        for exporter in architectures.EXPORTERS:
            title = f"{name} {exporter}"
            if (name, exporter) in architectures.NOT_EXPORTED:
                yield Row(title, "", note=f"no ONNX file: {architectures.NOT_EXPORTED[name, exporter]}", relative=0.0)
                continue
            source = folder / "random.onnx"
            example = architectures.export(name, exporter, source)
            model = Model(title, source, folder, n_threads=n_threads)
            yield model.row("as exported", architectures.feeds(example))
            if example.open_axes:
                length = 1000 if name == "wav2vec2" else 23
                yield model.row("another size", architectures.feeds(example, batch=3, length=length))


GROUPS: dict[str, Callable[[Path, int | None], Iterator[Row]]] = {
    "saliency": saliency,
    "int8": texts,
    "exported": exported,
    "random": random_models,
}


def main(given: list[str] | None = None) -> int:
    """Print the table; 1 if a row is beyond its bar."""
    parser = argparse.ArgumentParser(prog="python -m bench.parity", description=__doc__)
    parser.add_argument("group", nargs="*", choices=[[], *GROUPS], help=f"of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--n-threads", type=int, help="of both engines")
    options = parser.parse_args(given)
    print(line(tuple(name for name, _ in COLUMNS)))
    print("-" * (sum(abs(w) for _, w in COLUMNS) + 2 * len(COLUMNS) - 2), flush=True)
    all_passed = True
    try:
        with tempfile.TemporaryDirectory() as folder:
            for group in options.group or GROUPS:
                for row in GROUPS[group](Path(folder), options.n_threads):
                    all_passed &= row.verdict != "MISSED"
                    print(row, flush=True)
    except (PyclattnError, FetchError) as error:
        print(f"parity: {error}", file=sys.stderr)
        return 1
    print("\nDifference: the largest, at positions that are not padding. Attention: found, of all Softmax operators.")
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
