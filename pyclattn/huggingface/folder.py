"""Find the files of a folder and the kind of its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pyclattn.errors import ModelFormatError
from pyclattn.graph.program import Program
from pyclattn.huggingface import image, names, text
from pyclattn.huggingface.settings import Settings
from pyclattn.weights import SafeTensors

Kind = text.Text | image.Image
TYPES: dict[str, tuple[Kind, Callable[..., Program]]] = {
    **{
        name: (kind, partial(text.text_program, kind))
        for name, kind in {
            "bert": text.BERT,
            "roberta": text.ROBERTA,
            "xlm-roberta": text.ROBERTA,
            "camembert": text.ROBERTA,
            "distilbert": text.DISTILBERT,
            "albert": text.ALBERT,
        }.items()
    },
    **{name: (kind, partial(image.image_program, kind)) for name, kind in (("vit", image.VIT), ("deit", image.DEIT))},
}
# In the order they are looked for: a folder that has both is read from the safe and mapped one.
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


def read_folder(path: Path) -> Program:
    """The model of a folder with config.json and weights.

    Parameters
    ----------
    path : Path

    Returns
    -------
    Program
        Inputs and outputs have the names Hugging Face's models give them.

    Raises
    ------
    ModelFormatError
        If a file is missing or malformed, if the kind of model or a setting is not supported (what is, is listed), or
        if tensors are missing, unexpected or of another shape (all are listed).
    """
    settings = Settings.read(_existing(path, ("config.json",)))
    type_ = settings.get("model_type")
    if type_ not in TYPES:
        raise ModelFormatError(
            f"{settings.path}: model_type {type_!r} is not supported; supported are {', '.join(TYPES)}"
        )
    kind, make = TYPES[type_]
    weights = _current(_read_weights(_existing(path, WEIGHTS)))
    prefix = f"{kind.prefix}."
    return make(settings, weights, prefix if any(n.startswith(prefix) for n in weights) else "")


def _existing(folder: Path, candidates: tuple[str, ...]) -> Path:
    for name in candidates:
        if (folder / name).is_file():
            return folder / name
    raise ModelFormatError(f"{folder}: no {' or '.join(candidates)} in this folder")


def _read_weights(path: Path) -> Mapping[str, np.ndarray]:
    return SafeTensors(path)


def _current(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under today's names."""
    result = {}
    for name, array in weights.items():
        for old, new in names.OLD_ENDINGS.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        result[name] = array
    return result
