"""``python -m bench COMMAND [options]``."""

import importlib
import sys

COMMANDS = {
    "attention": "exact and clustered attention against their peers, their bars and the border between rooms",
    "dense": "products with a constant weight, against NumPy, ONNX Runtime and PyTorch",
    "quantised": "int8 weights: speed, size and what they change, against ONNX Runtime's int8",
    "bfloat16": "products of bfloat16 in attention, dense layers and a whole model, against OpenVINO's",
    "upsampling": "transposed convolutions by Winograd's products, against ONNX Runtime's and our others",
    "functions": "GELU, SiLU, erf, tanh, exp and others: the largest error of a single number",
    "models": "whole models, time and peak memory, against ONNX Runtime and OpenVINO",
    "overhead": "a short input through a whole model, against ONNX Runtime",
    "pareto": "error against time of every method, on what trained models give it; rivals included",
    "outputs": "what clustered attention changes at the end of three models, and how much faster their attention is",
    "calibration": "plans on images they have not seen; auto beside exact attention at every length",
    "methods": "CAST, Centroid and clustered encoders against the exact one, speed and memory; their bars",
    "serving": "a service under load, its start and memory, and ONNX Runtime behind the same server",
    "scale": "a batch encoder under Ray Data: a killed actor, one and two actors, the curve beyond",
    "report": "all results as one page, Markdown and HTML; measures nothing",
    "demo": "the kernels at 1k to 32k tokens, as a quick table",
}


def main() -> int:
    """Run the command named first; list the commands where there is none."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        return importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])
    if len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help"):
        print(f"no command {sys.argv[1]!r}; there is: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    print("usage: python -m bench COMMAND [--help]\n")
    for name, about in COMMANDS.items():
        print(f"  {name:11} {about}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
