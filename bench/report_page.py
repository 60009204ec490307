"""``python -m bench report``: all results in bench/results as one page, Markdown and HTML with its pictures inside.

Nothing is measured here: each part is what the command named beside it wrote, with the machine and versions it ran on.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import report_plots
from bench.rows import Row, table, tally

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE, FOLDER = ROOT / "bench" / "results", ROOT / "docs" / "report.md", ROOT / "out" / "report"
PARTS = {
    "models": "Whole models",
    "attention": "Attention",
    "dense": "Dense layers, float32",
    "quantised": "int8 weights",
    "bfloat16": "bfloat16 instructions",
    "upsampling": "Transposed convolutions",
    "functions": "Functions of single numbers",
    "pareto": "Error against time",
    "methods": "CAST, Centroid and clustered encoders",
    "outputs": "Models with clustered attention",
    "calibration": "Calibration and estimates",
    "serving": "Service",
    "scale": "Batch engines",
}
# Drawn by the command itself; the Markdown page lies beside it.
DRAWN = {
    "pareto": ("Error of a layer against speed, each method", ROOT / "docs" / "pareto.png"),
    "methods": ("Speed and memory of encoders against length", ROOT / "docs" / "methods.png"),
}
HEADER = ("what", "at", "measured", "bar", "", "note")
VERSIONS = ("cpu", "isa", "n_threads", "pyclattn", "python", "numpy", "onnxruntime", "openvino", "torch", "load_before")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:78em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:left}
td:nth-child(3),td:nth-child(4){text-align:right;white-space:nowrap}.ok{color:#2e7d4f}.MISS{color:#c0392b;font-weight:600}
.note,small{color:#777;font-size:13px}img{max-width:100%}"""


@dataclass
class Part:
    """One command's results."""

    name: str
    rows: list[Row]
    machine: dict[str, Any]
    content: dict[str, Any]
    pictures: list[tuple[str, Path]] = field(default_factory=list)

    @property
    def about(self) -> str:
        """Where and with what it was measured."""
        known = [f"{name} {self.machine[name]}" for name in VERSIONS if self.machine.get(name) is not None]
        marks = sorted({row.measured for row in self.rows if row.measured})
        if marks:
            known.append(f"rows measured {marks[0]}" + (f" to {marks[-1]}" if len(marks) > 1 else ""))
        return ", ".join(known) + "."


def parts(folder: Path) -> list[Part]:
    """Of every result there is."""
    found = []
    for name in PARTS:
        path = folder / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text())
            rows = [Row.from_dict(row) for row in content.get("rows", [])]
            pictures = [own for own in (DRAWN.get(name),) if own and own[1].exists()]
            found.append(Part(name, rows, content.get("machine", {}), content, pictures))
    return found


def cells(row: Row) -> tuple[str, ...]:
    """One line of a table."""
    return row.what, row.at, row.shown, row.shown_bar, row.verdict, row.note


def missing(folder: Path) -> str:
    """A sentence on what was not measured."""
    names = [f"`python -m bench {name}`" for name in PARTS if not (folder / f"{name}.json").exists()]
    return f"Without results yet: {', '.join(names)}." if names else ""


def opening(found: list[Part]) -> str:
    """How it was measured, and how many bars hold."""
    every = [row for part in found for row in part.rows]
    return (
        f"{tally(every)}. Equal numbers of threads for all; each round takes every engine in turn; figures are medians "
        "of rounds, ratios medians of the ratios of a round. Peak memory is that of the process that runs the model."
    )


def markdown(found: list[Part], folder: Path) -> str:
    """The whole page; its pictures lie beside it."""
    lines = ["# Report", "", opening(found), "", missing(folder)]
    for part in found:
        lines += ["", f"## {PARTS[part.name]}", "", f"`python -m bench {part.name}`: {part.about}"]
        for caption, picture in part.pictures:
            lines += ["", f"![{caption}]({picture.name})"]
        if part.rows:
            lines += ["", table(HEADER, [tuple(cell.replace("|", "\\|") for cell in cells(row)) for row in part.rows])]
    return "\n".join(lines) + "\n"


def page(found: list[Part], folder: Path) -> str:
    """The same as one HTML file that needs no other."""
    body = [f"<h1>pyclattn: report</h1><p>{html.escape(opening(found))}</p><p>{missing(folder)}</p>"]
    for part in found:
        body.append(
            f"<h2>{html.escape(PARTS[part.name])}</h2><p><small>python -m bench {part.name}: "
            f"{html.escape(part.about)}</small></p>"
        )
        for caption, picture in part.pictures:
            data = base64.b64encode(picture.read_bytes()).decode()
            body.append(f'<p><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"></p>')
        if not part.rows:
            continue
        body.append(f"<table><tr>{''.join(f'<th>{name}</th>' for name in HEADER)}</tr>")
        for row in part.rows:
            shown = [html.escape(cell) for cell in cells(row)]
            line = "".join(f"<td>{cell}</td>" for cell in shown[:4])
            body.append(f'<tr>{line}<td class="{shown[4]}">{shown[4]}</td><td class="note">{shown[5]}</td></tr>')
        body.append("</table>")
    head = f"<meta charset=utf-8><title>pyclattn: report</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en>{head}<body>{''.join(body)}</body></html>\n"


def main(given: list[str] | None = None) -> int:
    """Write the page; 1 if there is nothing to write of."""
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results (%(default)s)")
    parser.add_argument("--html", type=Path, default=FOLDER, help="folder of index.html (%(default)s)")
    parser.add_argument("--markdown", type=Path, default=PAGE, help="(%(default)s); pictures are put beside it")
    options = parser.parse_args(given)
    found = parts(options.results)
    if not found:
        print(f"no results in {options.results}: run python -m bench models", file=sys.stderr)
        return 1
    options.markdown.parent.mkdir(parents=True, exist_ok=True)
    options.html.mkdir(parents=True, exist_ok=True)
    contents = {part.name: part.content for part in found}
    for part in found:
        for kind, (name, caption, draw) in report_plots.PLOTS.items():
            picture = options.markdown.with_name(f"report_{kind}.png")
            if name == part.name and draw(picture, contents):
                part.pictures.append((caption, picture))
    options.markdown.write_text(markdown(found, options.results))
    (options.html / "index.html").write_text(page(found, options.results))
    print(f"{tally(row for part in found for row in part.rows)}\n{options.html / 'index.html'}\n{options.markdown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
