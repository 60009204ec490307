"""`load_weights`: any weight file as a dict of arrays; `read_checkpoint`: all that a PyTorch file holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.weights import kinds
from pyclattn.weights.checkpoint import arrays_of, named_tensors
from pyclattn.weights.pytorch import OBJECTS, read_legacy, read_zip
from pyclattn.weights.safetensors import SafeTensors
from pyclattn.weights.source import Source, beside
from pyclattn.weights.strict_json import parse_json
from pyclattn.weights.targets import as_path
from pyclattn.weights.tensors import Leaf, named

INDEX = ".index.json"
MAX_INDEX = 64 << 20
MAX_SHARDS = 10_000
# What a folder's weights are called, the safer format first.
IN_FOLDER = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")


def load_weights(
    path: str | os.PathLike,
    *,
    key: str | None = None,
    prefix: str | None = None,
    strip: str | Sequence[str] = (),
    widen: bool = True,
    objects: str = "refuse",
    mmap: bool = True,
) -> dict[str, np.ndarray]:
    """Weights of a .pt, .pth, .ckpt, .bin or .safetensors file as arrays, without PyTorch.

    Nothing in the file is run, whatever it says, and its sizes are checked before memory is taken: see docs/weights.md.

    Parameters
    ----------
    path : path-like
        A file torch.save wrote (zip or legacy format), a safetensors file, the ``*.index.json`` of a checkpoint in
        several files, or a folder with one of ``model.safetensors``, ``pytorch_model.bin`` or their indices. The
        kind is told by content, not by name.
    key : str, optional
        Which part of a training checkpoint: ``"state_dict"``, ``"ema.module"``; ``""`` takes everything. By default
        the weights are found where Lightning and usual training code keep them.
    prefix : str, optional
        Only tensors whose names begin so; others cost nothing.
    strip : str or sequence of str
        Beginnings taken off the names that have them, the first that fits: ``strip="module."``.
    widen : bool
        bfloat16 and 8-bit floats become float32, which copies. False keeps them in the types of the package ml_dtypes.
    objects : "refuse" or "placeholder"
        What to do about objects of other classes, such as settings beside the weights. "placeholder" puts inert
        stand-ins, and finds the tensors of modules that were saved whole.
    mmap : bool
        Map the file: arrays are views of it, and pages are read when used. The file must then stay as it is; False
        reads it into memory.

    Returns
    -------
    dict of str to ndarray
        In the file's order, read-only. Tied tensors share memory. Numbers and text beside the tensors are left out
        (`pyclattn.weights.read_checkpoint` gives them).

    Raises
    ------
    ModelFormatError
        If the file is truncated, altered, hostile or of another kind; names the file, the member or tensor, what was
        found and what is allowed.
    ArgumentError
        If nothing in the file fits ``key`` or ``prefix``, or ``strip`` makes two names one.

    Examples
    --------
    >>> import tempfile, os
    >>> from pyclattn.weights import write_safetensors
    >>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
    >>> write_safetensors(path, {"encoder.w": np.ones(2), "head.w": np.zeros(3)})
    >>> load_weights(path, prefix="encoder.", strip="encoder.")
    {'w': array([1., 1.])}
    """
    starts = _checked_arguments(prefix, strip, objects)
    path = _in_folder(as_path("path", path))
    tensors: Mapping[str, Leaf]
    if path.name.endswith(INDEX):
        tensors = _sharded(path, key, widen, objects, mmap)
    else:
        tensors = _tensors(Source.open(path, mmap), key, widen, objects)
    chosen = _selected(tensors, prefix, starts, str(path))
    return {name: named(leaf, name, str(path), widen) for name, leaf in chosen.items()}


def read_checkpoint(
    path: str | os.PathLike, *, widen: bool = True, objects: str = "placeholder", mmap: bool = True
) -> Any:
    """Everything in a file torch.save wrote, as it was saved: dicts, lists, numbers, text, and arrays for tensors.

    Parameters
    ----------
    path : path-like
    widen, objects, mmap
        As for `load_weights`.

    Returns
    -------
    object
        Objects of other classes are `Placeholder`: their class's name, arguments and state, and nothing to call.

    Raises
    ------
    ModelFormatError
        As `load_weights`; also for tensors no array can hold, such as quantised ones, anywhere in the file.
    """
    _checked_arguments(None, (), objects)
    source = Source.open(path, mmap)
    return arrays_of(_tree(source, objects), source.name, widen)


def _checked_arguments(prefix: Any, strip: Any, objects: Any) -> tuple[str, ...]:
    if prefix is not None and not isinstance(prefix, str):
        raise ArgumentError(f"prefix must be text, got {type(prefix).__name__}")
    starts = (strip,) if isinstance(strip, str) else tuple(strip)
    if not all(isinstance(start, str) for start in starts):
        raise ArgumentError(f"strip must be text or a sequence of texts, got {strip!r}")
    if objects not in OBJECTS:
        raise ArgumentError(f"objects must be one of {', '.join(OBJECTS)}, got {objects!r}")
    return starts


def _in_folder(path: Path) -> Path:
    if not os.path.isdir(path):
        return path
    for name in IN_FOLDER:
        if (path / name).exists():
            return path / name
    raise ModelFormatError(f"{path}: a folder without weights; one of {', '.join(IN_FOLDER)} is expected")


def _tree(source: Source, objects: str) -> Any:
    kind = kinds.kind_of(source)
    if kind == kinds.ZIP:
        return read_zip(source, objects)
    if kind == kinds.LEGACY:
        return read_legacy(source, objects)
    if kind == kinds.SAFETENSORS:
        raise ModelFormatError(f"{source.name}: a safetensors file; load_weights reads it")
    raise ModelFormatError(f"{source.name}: {kind}; expected a file of torch.save or safetensors")


def _tensors(source: Source, key: str | None, widen: bool, objects: str) -> Mapping[str, Leaf]:
    if kinds.kind_of(source) == kinds.SAFETENSORS or source.name.endswith(".safetensors"):
        if key:
            raise ArgumentError(f"key={key!r}: a safetensors file has no parts; prefix= chooses by name")
        return SafeTensors.of(source).leaves()
    return named_tensors(_tree(source, objects), source.name, key)


def _sharded(path: Path, key: str | None, widen: bool, objects: str, mmap: bool) -> dict[str, Leaf]:
    """The tensors of all files an index names; each must be where the index says."""
    where = str(path)
    source = Source.open(path, mmap=False)
    if source.size > MAX_INDEX:
        raise ModelFormatError(f"{where}: an index of {source.size} bytes, at most {MAX_INDEX} are read")
    index = parse_json(bytes(source.view), where, source.size)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ModelFormatError(f"{where}: not an index: no weight_map from names of tensors to names of files")
    files = dict.fromkeys(names.values())
    if len(files) > MAX_SHARDS:
        raise ModelFormatError(f"{where}: names {len(files)} files, at most {MAX_SHARDS} are read")
    shards = {}
    for file in files:
        place = beside(path, file, where)
        if file.endswith(INDEX):
            raise ModelFormatError(f"{where}: names another index, {file!r}")
        shards[file] = _tensors(Source.open(place, mmap), key, widen, objects)
    result = {}
    for name, file in names.items():
        if name not in shards[file]:
            raise ModelFormatError(f"{where}: tensor {name!r}: not in {file!r}, where the index has it")
        result[name] = shards[file][name]
    return result


def _selected(tensors: Mapping[str, Leaf], prefix: str | None, starts: tuple[str, ...], where: str) -> dict[str, Leaf]:
    chosen = {name: leaf for name, leaf in tensors.items() if prefix is None or name.startswith(prefix)}
    if prefix is not None and not chosen:
        there = ", ".join(list(dict.fromkeys(name.split(".")[0] for name in tensors))[:20]) or "no tensor"
        raise ArgumentError(f"prefix={prefix!r} begins no name in {where}; they begin with: {there}")
    result: dict[str, Leaf] = {}
    for name, leaf in chosen.items():
        short = next((name[len(start) :] for start in starts if start and name.startswith(start)), name)
        if short in result:
            raise ArgumentError(f"strip={starts} makes two tensors of {where} one: {short!r}")
        result[short] = leaf
    return result
