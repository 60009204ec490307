"""The command line: ``pyclattn-export onnx model.onnx`` or ``torch module.py:build``, ``-o model.safetensors``."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyclattn.errors import ArgumentError, PyclattnError
from pyclattn.plan import parse_attention
from pyclattn.weights.numpy_files import read_arrays

if TYPE_CHECKING:
    from pyclattn_export.convert import Conversion


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 for an error or a verification that failed."""
    arguments = _parser().parse_args(argv)
    try:
        return {"onnx": _onnx, "torch": _torch}[arguments.command](arguments)
    except (PyclattnError, OSError, ModuleNotFoundError) as error:
        print(f"pyclattn-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pyclattn-export: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyclattn-export", description="Convert trained models for pyclattn.")
    commands = parser.add_subparsers(dest="command", required=True)
    onnx = commands.add_parser("onnx", help="an ONNX file of opset 11 to 24")
    onnx.add_argument("model", help="the .onnx file; external data are found beside it")
    onnx.add_argument(
        "--dynamic", action="append", default=[], metavar="INPUT:AXES", help="leave axes open, as input_image:2,3"
    )
    onnx.add_argument(
        "--float-attention",
        action="store_true",
        help="replace attention in models that round its scores to 8 bits; changes results a little",
    )
    onnx.add_argument("--weights", choices=["int8", "fp16", "bf16"], help="store weights in fewer bits")
    onnx.add_argument(
        "--keep-above", type=float, metavar="CHANGE", help="keep weights float32 until the output of --input changes "
        "by no more, as 0.01"
    )  # fmt: skip
    onnx.add_argument("--verify", action="store_true", help="compare with ONNX Runtime on the same input")
    onnx.add_argument(
        "--attention", default="exact", metavar="METHOD", help="attention to verify with: a method, or JSON"
    )
    onnx.add_argument("--input", metavar="FILE", help=".npz to verify and measure on; random input by default")
    onnx.add_argument(
        "--size", action="append", default=[], metavar="NAME=N", help="length of an open axis in random input"
    )
    torch = commands.add_parser("torch", help="a PyTorch module; what it gives is compared with torch")
    torch.add_argument(
        "module", metavar="FILE.py:NAME", help="a function without arguments that makes the module, or (module, sample)"
    )
    torch.add_argument("--weights", metavar="FILE", help="its trained state: .pt, .pth, .ckpt, .bin or .safetensors")
    torch.add_argument("--sample", metavar="FILE", help=".npz of example inputs, by the names of forward's arguments")
    torch.add_argument(
        "--dynamic", action="append", default=[], metavar="INPUT:AXES",
        help="axes to leave open, as tokens:0=batch,1=length or tokens:0,1; by default each input's first",
    )  # fmt: skip
    torch.add_argument("--exporter", choices=("dynamo", "script"), default="dynamo", help="torch's exporter to use")
    for command, name in ((onnx, "ONNX Runtime"), (torch, "torch")):
        command.add_argument("-o", "--output", required=True, metavar="FILE", help="the .safetensors file to write")
        command.add_argument("--golden", metavar="FILE", help=f"write inputs and {name}'s outputs as .npz")
        command.add_argument("--n-threads", type=int, metavar="N", help="threads for verification")
    return parser


def _onnx(arguments: argparse.Namespace) -> int:
    from pyclattn_export import convert  # here: it needs onnx, and says so

    result = convert(
        arguments.model,
        arguments.output,
        dynamic=_dynamic(arguments.dynamic),
        float_attention=arguments.float_attention,
        verify=arguments.verify,
        attention=parse_attention(arguments.attention),
        inputs=_arrays(arguments.input) if arguments.input else None,
        sizes=_sizes(arguments.size),
        golden=arguments.golden,
        n_threads=arguments.n_threads,
        weights=arguments.weights,
        keep_above=arguments.keep_above,
    )
    if result.quantized is not None:
        print(f"{result.quantized}\n")
    return _report(result, arguments.output)


def _torch(arguments: argparse.Namespace) -> int:
    try:
        from pyclattn_export.from_torch import from_torch
        from pyclattn_export.state import load_state
    except ImportError as error:
        raise ArgumentError(
            f"converting a PyTorch module needs torch: pip install pyclattn[torch] ({error})"
        ) from error
    module, sample = _built(arguments.module)
    if arguments.sample:
        sample = _arrays(arguments.sample, "--sample")
    if sample is None:
        raise ArgumentError(f"{arguments.module} gives no example inputs beside the module: --sample is needed")
    if arguments.weights:
        load_state(module, arguments.weights)
    result = from_torch(
        module,
        sample,
        arguments.output,
        dynamic=_named_axes(arguments.dynamic) if arguments.dynamic else None,
        exporter=arguments.exporter,
        golden=arguments.golden,
        n_threads=arguments.n_threads,
    )
    return _report(result, arguments.output)


def _report(result: Conversion, output: str) -> int:
    print(result.report)
    print(f"\n{result.report.n_ops_before} operators became {result.report.n_ops_after}: {output}")
    if result.comparison is None:
        return 0
    print(f"\n{result.comparison}")
    return 0 if result.comparison.passed else 1


def _built(given: str) -> tuple[Any, Any]:
    """What ``module.py:build`` makes: a module, and example inputs or None."""
    path, colon, name = given.rpartition(":")
    if not colon or not name.isidentifier() or not Path(path).is_file():
        raise ArgumentError(f"the module is given as file.py:function, got {given!r}")
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)  # it may import what lies beside it
    try:
        build = runpy.run_path(path, run_name="pyclattn_export_module").get(name)
    finally:
        sys.path.remove(folder)
    if not callable(build):
        raise ArgumentError(f"{path} has no function {name!r}")
    made = build()
    return made if isinstance(made, tuple) else (made, None)


def _named_axes(given: Sequence[str]) -> dict[str, dict[int, str]]:
    """``tokens:0=batch,1=length`` as a mapping; an axis without a name has one of its own.

    Examples
    --------
    >>> _named_axes(["tokens:0=batch,1"])
    {'tokens': {0: 'batch', 1: 'tokens_1'}}
    """
    result: dict[str, dict[int, str]] = {}
    for text in given:
        name, colon, axes = text.rpartition(":")
        pairs = [axis.partition("=") for axis in axes.split(",")]
        if not colon or not name or not all(number.isdigit() for number, _, _ in pairs):
            raise ArgumentError(f"--dynamic is given as tokens:0=batch,1=length, got {text!r}")
        result[name] = {int(number): label or f"{name}_{number}" for number, _, label in pairs}
    return result


def _dynamic(given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``input_image:2,3`` as a mapping.

    Examples
    --------
    >>> _dynamic(["input_image:2,3"])
    {'input_image': (2, 3)}
    """
    result = {}
    for text in given:
        name, colon, axes = text.rpartition(":")
        try:
            result[name] = tuple(int(axis) for axis in axes.split(","))
        except ValueError:
            colon = ""
        if not colon or not name:
            raise ArgumentError(f"--dynamic is given as input_image:2,3, got {text!r}")
    return result


def _sizes(given: Sequence[str]) -> dict[str, int]:
    result = {}
    for text in given:
        name, equals, number = text.rpartition("=")
        if not equals or not number.isdigit() or int(number) < 1:
            raise ArgumentError(f"--size is given as sequence=128, got {text!r}")
        result[name] = int(number)
    return result


def _arrays(path: str, option: str = "--input") -> dict[str, np.ndarray]:
    found = read_arrays(path)
    if not isinstance(found, dict):
        raise ArgumentError(f"{option} must be an .npz file with an array for each input, got {path!r}: one array")
    return found


if __name__ == "__main__":
    sys.exit(main())
