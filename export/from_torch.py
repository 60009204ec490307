"""A PyTorch module as one safetensors file: load and map, validate, save, verify."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pyclattn.graph.serial import save_program
from pyclattn.weights.targets import check_target
from pyclattn_export.convert import Conversion
from pyclattn_export.from_onnx import optimise
from pyclattn_export.validate import validate
from pyclattn_export.verify import keep

if TYPE_CHECKING:
    from torch import nn

    from pyclattn_export.torch_modules import Given


def from_torch(
    module: nn.Module,
    example_inputs: Mapping[str, Given] | Sequence[Given],
    path: str | os.PathLike,
    *,
    dynamic: Mapping[str, Mapping[int, str] | Iterable[int]] | None = None,
    output_names: Sequence[str] | None = None,
    exporter: str = "dynamo",
    float_attention: bool = False,
    verify: bool = True,
    golden: str | os.PathLike | None = None,
    n_threads: int | None = None,
) -> Conversion:
    """Convert a PyTorch module to one safetensors file, and compare the two.

    Parameters
    ----------
    module : torch.nn.Module
        Converted as it is in ``eval()``; left in the mode it was in. Layers of `pyclattn_export.torch_layers` in it
        become operators of pyclattn.
    example_inputs : mapping of str to tensor or array, or sequence of them
        Arguments of ``forward``, by name or in order. None: an argument that is left out.
    path : path-like
        The .safetensors file to write, whole or not at all.
    dynamic : mapping of str to axes, optional
        Axes that stay open, of each input: ``{"tokens": {0: "batch", 1: "length"}}``, or ``{"tokens": (0, 1)}``. Axes
        of one name have one length. By default the first axis of every input, as "batch".
    output_names : sequence of str, optional
        By default the keys of a dict that ``forward`` gives, else "output", or "output_0" and so on.
    exporter : {"dynamo", "script"}
        Which of torch's exporters to ONNX reads the module.
    float_attention : bool
        See `pyclattn.graph.passes.optimize`.
    verify : bool
        Run both on the example inputs, and once more with every open axis one shorter (of length 1: doubled): a length
        that was written into the model by mistake shows there.
    golden : path-like, optional
        Where to write the example inputs and torch's outputs as .npz.
    n_threads : int, optional
        For verification.

    Returns
    -------
    Conversion
        With the attentions found, and the comparison.

    Raises
    ------
    ArgumentError
        For inputs that ``forward`` does not take, and axes that are not there.
    ModelFormatError, UnsupportedOpError
        Where torch cannot export the module, or pyclattn not run it.

    Examples
    --------
    >>> import torch
    >>> from pyclattn_export.torch_layers import CASTAttention
    >>> layer = CASTAttention(32, n_heads=4, n_clusters=8, cluster_size=16)
    >>> done = from_torch(layer, {"x": torch.randn(2, 100, 32)}, "cast.safetensors", dynamic={"x": (0, 1)})
    >>> done.comparison.passed
    True
    """
    from pyclattn_export import torch_modules  # and with it torch: those who convert ONNX files need not have it

    path = check_target("path", path, ".safetensors")
    if golden is not None:
        check_target("golden", golden, others=[path])
    inputs = torch_modules.by_name(module, example_inputs)
    axes = torch_modules.open_axes(inputs, dynamic)
    with torch_modules.evaluating(module):
        outputs = torch_modules.outputs_of(module, inputs, output_names)
        program = torch_modules.program_of(module, inputs, axes, list(outputs), exporter)
        program, report = optimise(program, type(module).__name__, float_attention)
        validate(program, type(module).__name__)
        save_program(path, program)
        if golden is not None:
            keep(golden, torch_modules.arrays(inputs), outputs)
        comparison = torch_modules.compare(module, inputs, axes, path, n_threads) if verify else None
    return Conversion(report, comparison)
