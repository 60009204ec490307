"""Find the files of a folder and the kind of its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.graph.program import Program
from pyclattn.huggingface import image, names, text
from pyclattn.huggingface.settings import Settings
from pyclattn.weights import load_weights

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
    if not (path / "config.json").is_file():
        raise ModelFormatError(f"{path}: no config.json in this folder")
    settings = Settings.read(path / "config.json")
    type_ = settings.get("model_type")
    if not isinstance(type_, str) or type_ not in TYPES:
        raise ModelFormatError(
            f"{settings.path}: model_type {type_!r} is not supported; supported are {', '.join(TYPES)}"
        )
    kind, make = TYPES[type_]
    weights = _current(load_weights(path))
    prefix = f"{kind.prefix}."
    try:
        return make(settings, weights, prefix if any(n.startswith(prefix) for n in weights) else "")
    except ArgumentError as error:  # a layer refuses what the file says
        raise ModelFormatError(f"{settings.path}: {error}") from error


def _current(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under today's names."""
    result = {}
    for name, array in weights.items():
        for old, new in names.OLD_ENDINGS.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        result[name] = array
    return result
