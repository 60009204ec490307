"""The command line: pyclattn info | run | calibrate | quantize | warmup | serve.

A subcommand is a function that adds its parser and names what runs; others append theirs to `COMMANDS`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pyclattn._tables import table
from pyclattn.errors import ArgumentError, PyclattnError
from pyclattn.functional.precision import CHOICES
from pyclattn.plan import Plan, parse_attention
from pyclattn.serving import command as serving
from pyclattn.weights.numpy_files import read_arrays, write_npz
from pyclattn.weights.targets import check_target, write_atomically


def size(n: int) -> str:
    """Bytes for people: ``size(1536) == '1.5 kB'``, in powers of 1,000."""
    if n < 1000:
        return f"{n} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if n < 1000 * factor:
            return f"{n / factor:.1f} {unit}"
    return f"{n / 1e9:.2f} GB"


def _shapes(given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``name=1x3x224x224`` or ``name=1,3,224,224``."""
    shapes = {}
    for text in given:
        name, equals, numbers = text.rpartition("=")
        try:
            shapes[name] = tuple(int(n) for n in numbers.replace("x", ",").split(",") if n)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise ArgumentError(f"a shape is given as name=1x3x224x224, got {text!r}")
    return shapes


def _add_info(commands) -> None:
    parser = commands.add_parser("info", help="what is in a model, or which operators run")
    parser.add_argument("file", nargs="?", help="a converted model, or .onnx where a reader is installed")
    parser.add_argument("--ops", action="store_true", help="all operators pyclattn runs (of FILE: all it uses)")
    parser.add_argument("--shape", action="append", default=[], metavar="NAME=1x3x224x224",
                        help="an input's shape, to tell the memory a run takes; once for each input")  # fmt: skip
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> None:
    from pyclattn.graph.ops import supported_ops

    if arguments.file is None:
        if not arguments.ops:
            raise ArgumentError("give a file, or --ops for the operators pyclattn runs")
        print("\n".join(supported_ops()))
        return
    from pyclattn.graph.program import walk
    from pyclattn.model import load

    model = load(arguments.file)
    program = model.program
    for title, values in (("inputs", program.inputs), ("outputs", program.outputs)):
        rows = [(v.name, v.dtype or "?", " x ".join(map(str, v.shape)) or "scalar") for v in values]
        print(f"{title}\n{table(rows, ('name', 'dtype', 'shape'))}\n")
    parameters = sum(a.size for a in program.constants.values())
    counts = Counter(op.kind for op in walk(program))
    print(f"parameters  {parameters:,} ({size(model.weight_bytes)})")
    print(f"operators   {sum(counts.values()):,} of {len(counts)} kinds\n")
    if arguments.ops:
        print(table(counts.most_common(), ("op", "count")) + "\n")
    shapes = _shapes(arguments.shape)
    found = model.describe_attentions(**shapes)
    if found:
        columns = [c for c in found[0] if c != "method"]
        print(f"attentions\n{table([[a.get(c, '') for c in columns] for a in found], columns)}\n")
    else:
        print("attentions  none that can be replaced\n")
    if shapes:
        print(f"memory of a run: {size(model.estimate(**shapes))}")


def _add_run(commands) -> None:
    parser = commands.add_parser("run", help="run a model on arrays in .npy or .npz files")
    parser.add_argument("file")
    parser.add_argument("--input", "-i", action="append", required=True, metavar="[NAME=]FILE",
                        help=".npz with an array for each input, or .npy (NAME= where there are several)")  # fmt: skip
    parser.add_argument("--output", "-o", required=True, help=".npz, or .npy for a model with one output")
    parser.add_argument("--attention", help="a method, a plan's file, or JSON as pyclattn.load takes it; "
                        "by default the plan in the model's file, else exact")  # fmt: skip
    parser.add_argument("--precision", default="float32", choices=CHOICES,
                        help="of dense layers, convolutions and attention (%(default)s)")  # fmt: skip
    parser.add_argument("--n-threads", type=int)
    parser.add_argument("--max-memory", type=_bytes, metavar="BYTES", help="a number, or with MB or GB behind it")
    parser.add_argument("--profile", metavar="TRACE.json", help="print time by op, write a Chrome trace")
    parser.set_defaults(run=_run)


def _bytes(text: str) -> int:
    """A number of bytes: ``_bytes("1.5GB") == 1_500_000_000``."""
    units = {"GB": 10**9, "MB": 10**6, "kB": 10**3}
    unit = text[-2:] if text[-2:] in units else ""
    try:
        return int(float(text.removesuffix(unit)) * units.get(unit, 1))
    except (ValueError, OverflowError):  # not a number, or infinity
        raise argparse.ArgumentTypeError(f"a number, or one with kB, MB or GB behind it, not {text!r}") from None


def read_inputs(given: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays by input name from .npy and .npz files."""
    feeds: dict[str, np.ndarray] = {}
    for text in given:
        name, path = _named(text)
        if not path:
            raise ArgumentError(f"an input is given as FILE or NAME=FILE, got {text!r}")
        found = read_arrays(path)
        if isinstance(found, dict):
            feeds.update(found)
        elif not name and len(names) != 1:
            raise ArgumentError(f"{path} is one array, the model has inputs {', '.join(names)}: NAME={path}")
        else:
            feeds[name or names[0]] = found
    return feeds


def _named(text: str) -> tuple[str, str]:
    """Name and path of NAME=FILE, or "" and FILE."""
    name, _, path = text.rpartition("=")
    return ("", text) if Path(text).exists() else (name, path)


def _run(arguments: argparse.Namespace) -> None:
    from pyclattn.model import load

    read = [arguments.file, *(_named(text)[1] for text in arguments.input)]
    out = check_target("--output", arguments.output, ".npz", ".npy", others=read)
    if arguments.profile:
        check_target("--profile", arguments.profile, others=[*read, out])
    model = load(
        arguments.file,
        None if arguments.attention is None else parse_attention(arguments.attention),
        precision=arguments.precision,
        n_threads=arguments.n_threads,
        max_memory=arguments.max_memory,
    )
    outputs = [v.name for v in model.program.outputs]
    if out.suffix.lower() == ".npy" and len(outputs) != 1:
        raise ArgumentError(f"--output must end in .npz for a model with {len(outputs)} outputs, got {str(out)!r}")
    feeds = read_inputs(arguments.input, [v.name for v in model.program.inputs])
    if arguments.profile:
        model(**feeds)  # the first run plans and touches memory; the second is what a service sees
        results, events = model.profile(feeds)
        print(profile_table(events))
        write_atomically(arguments.profile, lambda file: file.write(json.dumps(chrome_trace(events)).encode()))
    else:
        results = model(**feeds)
    if out.suffix.lower() == ".npy":
        write_atomically(out, lambda file: np.save(file, results[outputs[0]], allow_pickle=False))
    else:
        write_atomically(out, lambda file: write_npz(file, results))


def _add_calibrate(commands) -> None:
    parser = commands.add_parser("calibrate", help="find what each attention may run as within an error")
    parser.add_argument("file")
    parser.add_argument("samples", nargs="+", help=".npz with an array for each input (.npy where there is one input)")
    parser.add_argument("--max-error", type=float, default=0.02, help="of each attention's output (%(default)s)")
    parser.add_argument("--metric", metavar="NAME", help="correlation, cosine or top-1: how far outputs are from exact "
                        "ones; attentions' errors are tightened until it holds on every sample")  # fmt: skip
    parser.add_argument("--max-metric", type=float, help="what it may be, as 1e-4")
    parser.add_argument("--output", "-o", required=True, help="the plan, .json")
    parser.add_argument("--report", metavar="DIR", help="write a report with pictures")
    parser.add_argument("--state", metavar="FILE", help="keeps what was measured, to go on after a stop")
    parser.add_argument("--merge", metavar="PLAN", help="a plan whose other length classes are kept")
    parser.add_argument("--embed", metavar="MODEL", help="write the model with the plan in it, .safetensors")
    parser.add_argument("--n-threads", type=int)
    parser.add_argument("--max-memory", type=_bytes, metavar="BYTES", help="a number, or with MB or GB behind it")
    parser.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> None:
    from pyclattn.calibration import calibrate
    from pyclattn.model import load

    check_target("--output", arguments.output, ".json")
    if arguments.embed:
        check_target("--embed", arguments.embed, ".safetensors")
    model = load(arguments.file, "exact", n_threads=arguments.n_threads, max_memory=arguments.max_memory)
    before = None
    if arguments.merge is not None:
        before = Plan.of(Plan.load(arguments.merge), model.attentions, model.fingerprint)
    samples = _samples(model, arguments.samples)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        plan = calibrate(
            model, samples, arguments.max_error, metric=arguments.metric, max_metric=arguments.max_metric,
            state=arguments.state, report=arguments.report,
        )  # fmt: skip
    for warning in said:
        print(f"pyclattn: {warning.message}", file=sys.stderr)
    plan = plan if before is None else before.merge(plan)
    plan.save(arguments.output)
    if arguments.embed:
        model.save(arguments.embed, plan)
    print(plan.summary())


def _samples(model, paths: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """The arrays of these files, checked one by one: what is wrong with one names its file."""
    from pyclattn.calibration.samples import checked

    names, samples = [v.name for v in model.program.inputs], []
    for path in paths:
        arrays = read_inputs([path], names)
        try:
            samples += checked(model, [arrays], needs_attention=False)
        except ArgumentError as error:
            raise ArgumentError(f"{path}: {str(error).removeprefix('samples[0]: ')}") from None
    return samples


def _add_quantize(commands) -> None:
    parser = commands.add_parser("quantize", help="store weights in fewer bits, and say what that changes")
    parser.add_argument("file", help="a converted model, or any that pyclattn.load reads")
    parser.add_argument("--output", "-o", required=True, help="the model to write, .safetensors")
    parser.add_argument("--weights", choices=["int8", "fp16", "bf16"], default="int8")
    parser.add_argument("--samples", nargs="+", default=[], metavar="FILE",
                        help=".npz of inputs (.npy where there is one) to measure the change on")  # fmt: skip
    parser.add_argument("--keep-above", type=float, metavar="CHANGE",
                        help="keep layers in float32 until outputs change by no more, as 0.01")  # fmt: skip
    parser.add_argument("--n-threads", type=int)
    parser.set_defaults(run=_quantize)


def _quantize(arguments: argparse.Namespace) -> None:
    from pyclattn.calibration import quantize
    from pyclattn.model import load

    check_target("--output", arguments.output, ".safetensors", others=[arguments.file])
    model = load(arguments.file, n_threads=arguments.n_threads)
    samples = _samples(model, arguments.samples)
    found = quantize(model, arguments.weights, samples or None, keep_above=arguments.keep_above)
    found.model.save(arguments.output)
    print(found)


def _add_warmup(commands) -> None:
    parser = commands.add_parser("warmup", help="compile and measure now what first calls would wait for")
    parser.add_argument("files", nargs="*", metavar="MODEL", help="load these and run each once on an example, too")
    parser.add_argument("--attention", help="as of pyclattn run")
    parser.add_argument("--n-threads", type=int)
    parser.set_defaults(run=_warmup)


def _warmup(arguments: argparse.Namespace) -> None:
    from pyclattn.functional.warming import prepare
    from pyclattn.model import load
    from pyclattn.serving.warming import warm

    folder = prepare(arguments.n_threads)
    attention = None if arguments.attention is None else parse_attention(arguments.attention)
    for file in arguments.files:
        warm(load(file, attention, n_threads=arguments.n_threads))
    kernels, rates = (len(list(folder.glob(pattern))) for pattern in ("kernels/*/*.nbi", "rates-*.json"))
    print(f"{folder}: {kernels} compiled kernels, rates of {rates} settings")
    if not kernels:
        print("pyclattn: without Numba, clustered attention takes the time of NumPy", file=sys.stderr)


def profile_table(events) -> str:
    """Time by kind of operator, most first."""
    total: Counter = Counter()
    calls: Counter = Counter()
    for op, start, end in events:
        total[op.kind] += end - start
        calls[op.kind] += 1
    whole = max(1, sum(total.values()))
    rows = [(kind, calls[kind], f"{t / 1e6:.3f}", f"{100 * t / whole:.1f}") for kind, t in total.most_common()]
    rows.append(("total", sum(calls.values()), f"{whole / 1e6:.3f}", "100.0"))
    return table(rows, ("op", "calls", "ms", "%"))


def chrome_trace(events) -> dict:
    """Events as chrome://tracing and Perfetto read them."""
    first = events[0][1] if events else 0
    return {
        "traceEvents": [
            {"name": op.name or op.outputs[0], "cat": op.kind, "ph": "X", "pid": 0, "tid": 0,
             "ts": (start - first) / 1e3, "dur": (end - start) / 1e3, "args": {"op": op.kind}}
            for op, start, end in events
        ],
        "displayTimeUnit": "ms",
    }  # fmt: skip


COMMANDS: list[Callable] = [
    _add_info,
    _add_run,
    _add_calibrate,
    _add_quantize,
    _add_warmup,
    partial(serving.add, to_bytes=_bytes),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pyclattn", description="Trained transformers over long input on a CPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in COMMANDS:
        add(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (PyclattnError, OSError) as error:
        print(f"pyclattn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pyclattn: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
