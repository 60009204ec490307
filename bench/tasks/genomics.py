"""``python -m bench.tasks.genomics``: where translation starts, in transcripts and in genes of 30,000 nucleotides.

TIS Transformer (8 layers, one token a nucleotide) on 35 spliced transcripts whose start codon is known, and on
unspliced genes with what follows them. Prints time, peak memory, how often the best score is at the known start codon,
and agreement with exact attention, each attention in a process of its own; draws scores along a transcript and a gene.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.tasks.captures import captured
from bench.tasks.fetch import HUMAN_GENES, TIS_TRANSFORMER, FetchError, fetch
from bench.tasks.records import Transcript, genbank, transcripts
from bench.tasks.tis_transformer import LONGEST, TisTransformer
from bench.tasks.workers import Answer, ask
from pyclattn import _threads, load_weights
from pyclattn.errors import PyclattnError
from pyclattn.plan import Plan, parse_attention

LENGTHS = (10_000, 20_000, 30_000)
# Genes a length: those whose own unspliced RNA is the longest.
N_GENES = 3
PUBLISHED = {"method": "improved-clustered", "n_clusters": 100, "topk": 32}
LARGER = {"method": "improved-clustered", "n_clusters": 256, "topk": 512, "clustering": "metric"}
ATTENTIONS = {
    "exact": "exact",
    "improved, hashing": PUBLISHED,
    "improved, k-means": {**PUBLISHED, "clustering": "kmeans"},
    "improved, metric, larger": LARGER,
    "co-clustered": "coclustered",
    "co-clustered, larger": {"method": "coclustered", "n_exact": 256},
}
WIDTHS = (18, 25, 8, 11, 11, 11, 11, 11)
HEADINGS = ("sequences", "attention", "time", "peak memory", "start codon", "of those", "same as", "largest")
BELOW = ("", "", "", "", "found first", "with 5' end", "exact's", "difference")

Sequences = Sequence[tuple[str, int]]  # (nucleotides, position of the known start codon)


# -- the model and its input ------------------------------------------------------------------------------------------


def network(attention="exact", n_threads: int | None = None) -> TisTransformer:
    """The model with the weights of its package."""
    (path,) = fetch(TIS_TRANSFORMER)
    # Lightning keeps the training's settings beside the weights, as objects of other packages
    return TisTransformer(load_weights(path, key="state_dict", objects="placeholder"), attention, n_threads)


def labelled() -> list[Transcript]:
    """The human transcripts with a known start codon."""
    (path,) = fetch(HUMAN_GENES)
    return list(transcripts(genbank(path)))


def genes(found: Sequence[Transcript], length: int, n_genes: int = N_GENES) -> Sequences:
    """Unspliced genes, cut or prolonged to ``length`` nucleotides, and the place of their start codon."""
    whole = [t for t in found if t.is_whole]
    whole.sort(key=lambda t: -abs(t.exons[-1][0] - t.exons[0][0]))
    cut = [t.unspliced(length) for t in whole]
    return [(sequence, start) for sequence, start in cut if len(sequence) == length and start < length][:n_genes]


def prepare(request: Mapping, inputs: Mapping[str, np.ndarray]):
    """A call that scores all sequences: what `bench.tasks.workers` runs in its process."""
    model = network(request["attention"], request["n_threads"])
    letters, ends = inputs["letters"].tobytes().decode("ascii"), np.cumsum(inputs["lengths"])
    pieces = [letters[end - n : end] for end, n in zip(ends.tolist(), inputs["lengths"].tolist())]
    return lambda: {"scores": np.concatenate([model(piece) for piece in pieces])}


def capture(n_tokens: int = 6_752, n_threads: int | None = None) -> dict[str, np.ndarray]:
    """What the heads that see everything are given: ``"<layer>.global.q"``, k and v, each (3, n_tokens, 16).

    The longest labelled transcript if it has this many tokens (6,752, two of them begin and end), else a gene.
    """
    found = labelled()
    longest = max((t.sequence for t in found), key=len)
    sequence = longest if len(longest) + 2 == n_tokens else genes(found, n_tokens - 2, 1)[0][0]
    model = network("exact", n_threads)
    return captured(lambda: model(sequence), model.attentions)


# -- scores -----------------------------------------------------------------------------------------------------------


def split(scores: np.ndarray, sequences: Sequences) -> list[np.ndarray]:
    """Scores of several sequences, one after the other, as one array each."""
    return np.split(scores, np.cumsum([len(sequence) for sequence, _ in sequences])[:-1])


def n_first(scores: Sequence[np.ndarray], places: Sequence[int]) -> int:
    """How many sequences have their highest score at this place.

    Examples
    --------
    >>> n_first([np.array([0.1, 0.9]), np.array([0.5, 0.2, 0.1])], [1, 2])
    1
    """
    return sum(int(s.argmax()) == place for s, place in zip(scores, places))


def n_first_atg(sequences: Sequences) -> int:
    """How many start codons are simply the first ATG."""
    return sum(sequence.find("ATG") == start for sequence, start in sequences)


# -- table and picture ------------------------------------------------------------------------------------------------


def line(cells: Sequence[str]) -> str:
    """Cells in columns; names to the left, numbers to the right."""
    return "  ".join(f"{c:<{w}}" if i < 2 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, WIDTHS))).rstrip()


def row(name: str, title: str, answer: Answer, sequences: Sequences, exact: np.ndarray) -> str:
    """One line of the table."""
    found, wanted = split(answer.outputs["scores"], sequences), split(exact, sequences)
    places, best = [start for _, start in sequences], [int(s.argmax()) for s in wanted]
    of_whole = [(s, place) for s, place in zip(found, places) if place > 0]
    cells = (
        f"{n_first(found, places)} of {len(found)}",
        f"{n_first(*zip(*of_whole))} of {len(of_whole)}",
        f"{n_first(found, best)} of {len(found)}",
        f"{np.abs(answer.outputs['scores'] - exact).max():.3f}",
    )
    return line((name, title, f"{answer.seconds:.2f} s", f"{answer.peak_bytes / 1e6:,.0f} MB", *cells))


def compare(name: str, sequences: Sequences, attentions: Mapping, n_threads: int, progress) -> dict[str, Answer]:
    """Score sequences with each attention and print its lines."""
    answers: dict[str, Answer] = {}
    inputs = {
        "letters": np.frombuffer("".join(sequence for sequence, _ in sequences).encode("ascii"), np.uint8),
        "lengths": np.array([len(sequence) for sequence, _ in sequences]),
    }
    for title, attention in attentions.items():
        request = {"attention": attention, "n_threads": n_threads}
        answers[title] = answer = ask("bench.tasks.genomics", request, inputs)
        exact = next(iter(answers.values())).outputs["scores"]
        progress.write(row(name, title, answer, sequences, exact))
        progress.update()
    return answers


def draw(path: Path, panels: Sequence[tuple[str, int, Mapping[str, np.ndarray]]]) -> None:
    """Scores along sequences: a column for each (title, start, scores by attention), a row for each attention."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    n_rows = len(panels[0][2])
    figure, axes = pyplot.subplots(
        n_rows, len(panels), figsize=(7 * len(panels), 1.7 * n_rows), layout="constrained", squeeze=False, sharex="col"
    )
    for column, (title, start, by_attention) in zip(axes.T, panels):
        for axis, (attention, scores) in zip(column, by_attention.items()):
            best = int(scores.argmax())
            axis.axvline(start, color="#ffb340", linewidth=5, alpha=0.6)
            axis.vlines(np.arange(len(scores)), 1e-6, np.maximum(scores, 1e-6), color="#1f5fbf", linewidth=0.8)
            axis.plot(best, scores[best], "v", color="#c0392b", markersize=6)
            axis.set(yscale="log", ylim=(1e-5, 3), xlim=(-0.01 * len(scores), 1.01 * len(scores)))
            axis.set_title(f"{attention}: highest {scores[best]:.3g} at {best:,}", fontsize=10, loc="left")
        column[0].set_title(f"{title}, start codon at {start:,} (orange)\n{column[0].get_title('left')}",
                            fontsize=10, loc="left")  # fmt: skip
        column[-1].set_xlabel("nucleotide")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)
    pyplot.close(figure)


def panel(sequences: Sequences, answers: Mapping[str, Answer]) -> tuple[str, int, Mapping[str, np.ndarray]]:
    """What `draw` shows: the longest sequence whose start codon exact attention finds, if there is one."""
    scores = {title: split(answer.outputs["scores"], sequences) for title, answer in answers.items()}
    exact = next(iter(scores.values()))
    chosen = max(range(len(sequences)), key=lambda i: (int(exact[i].argmax()) == sequences[i][1], len(sequences[i][0])))
    sequence, start = sequences[chosen]
    return f"{len(sequence):,} nucleotides", start, {title: own[chosen] for title, own in scores.items()}


def table(lengths: Sequence[int], attentions: Mapping, n_threads: int, picture: Path) -> None:
    """Print all lines; draw the longest transcript and a gene of the last length."""
    from tqdm import tqdm

    found = labelled()
    rows: list[tuple[str, Sequences]] = [(f"{len(found)} transcripts", [(t.sequence, t.start) for t in found])]
    rows += [(f"{len(cut)} genes, {n:,} nt", cut) for n in lengths if (cut := genes(found, n))]
    sizes, whole = [len(t.sequence) for t in found], [(t.sequence, t.start) for t in found if t.is_whole]
    print(f"TIS Transformer, {n_threads} threads; transcripts of {min(sizes)} to {max(sizes):,} nucleotides")
    print(f"The first ATG is the start codon in {n_first_atg(rows[0][1])} of {len(found)} transcripts,", end=" ")
    print(f"{n_first_atg(whole)} of the {len(whole)} whose 5' end was seen.\n")
    print(f"{line(HEADINGS)}\n{line(BELOW)}")
    print("-" * (sum(WIDTHS) + 2 * len(WIDTHS) - 2), flush=True)
    panels = []
    with tqdm(total=len(rows) * len(attentions), disable=None, leave=False, unit="run") as progress:
        for name, sequences in rows:
            answers = compare(name, sequences, attentions, n_threads, progress)
            if name in (rows[0][0], rows[-1][0]):
                panels.append(panel(sequences, answers))
    draw(picture, panels)
    print("\nTime: of all sequences of a line, one after the other, best of 3 runs after a first one; of runs longer")
    print("than 10 s the only one. Peak memory: of the whole process. Found first: the highest score is at the start")
    print("codon of the record. Largest difference: between probabilities, from the first line of a block.")
    print(f"Picture: {picture}")


def main(given: list[str] | None = None) -> int:
    """Run the task."""
    parser = argparse.ArgumentParser(prog="python -m bench.tasks.genomics", description=__doc__)
    parser.add_argument(
        "--length", type=int, action="append", help=f"of genes; default: {', '.join(map(str, LENGTHS))}"
    )
    parser.add_argument("--attention", action="append", help="a method or JSON, as pyclattn run takes it; default: all")
    parser.add_argument("--n-threads", type=int, help="default: the CPUs there are")
    parser.add_argument("--picture", type=Path, default=Path("out/genomics.png"), help="(%(default)s)")
    options = parser.parse_args(given)
    lengths = options.length or LENGTHS
    if not all(0 < n <= LONGEST for n in lengths):
        parser.error(f"--length must be from 1 to {LONGEST}, got {', '.join(map(str, lengths))}")
    try:
        chosen = {text: parse_attention(text) for text in options.attention or ()} or ATTENTIONS
        for attention in chosen.values():
            Plan.of(attention, TisTransformer.attentions)
        table(lengths, chosen, _threads.resolve(options.n_threads), options.picture)
    except (PyclattnError, FetchError) as error:
        print(f"genomics: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
