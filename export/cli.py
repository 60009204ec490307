"""The command line: ``pyclattn-export onnx model.onnx -o model.safetensors``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from pyclattn.errors import ArgumentError, PyclattnError
from pyclattn.plan import parse_attention
from pyclattn_export.convert import convert


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 for an error or a verification that failed."""
    arguments = _parser().parse_args(argv)
    try:
        return _onnx(arguments)
    except (PyclattnError, OSError) as error:
        print(f"pyclattn-export: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyclattn-export", description="Convert trained models for pyclattn.")
    commands = parser.add_subparsers(dest="command", required=True)
    onnx = commands.add_parser("onnx", help="an ONNX file of opset 11 to 24")
    onnx.add_argument("model", help="the .onnx file; external data are found beside it")
    onnx.add_argument("-o", "--output", required=True, metavar="FILE", help="the .safetensors file to write")
    onnx.add_argument(
        "--dynamic", action="append", default=[], metavar="INPUT:AXES", help="leave axes open, as input_image:2,3"
    )
    onnx.add_argument(
        "--float-attention",
        action="store_true",
        help="replace attention in models that round its scores to 8 bits; changes results a little",
    )
    onnx.add_argument("--verify", action="store_true", help="compare with ONNX Runtime on the same input")
    onnx.add_argument(
        "--attention", default="exact", metavar="METHOD", help="attention to verify with: a method, or JSON"
    )
    onnx.add_argument("--input", metavar="FILE", help=".npz of arrays to verify on; random input by default")
    onnx.add_argument(
        "--size", action="append", default=[], metavar="NAME=N", help="length of an open axis in random input"
    )
    onnx.add_argument("--golden", metavar="FILE", help="write inputs and ONNX Runtime's outputs as .npz")
    onnx.add_argument("--threads", type=int, metavar="N", help="threads for verification")
    return parser


def _onnx(arguments: argparse.Namespace) -> int:
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
        n_threads=arguments.threads,
    )
    print(result.report)
    print(f"\n{result.report.n_ops_before} operators became {result.report.n_ops_after}: {arguments.output}")
    if result.comparison is None:
        return 0
    print(f"\n{result.comparison}")
    return 0 if result.comparison.passed else 1


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


def _arrays(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, AttributeError) as error:
        raise ArgumentError(f"--input must be an .npz file of arrays, got {path!r}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
