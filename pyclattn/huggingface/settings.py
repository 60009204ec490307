"""config.json, read with care: what is missing is said at once, what is not supported is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyclattn.errors import ModelFormatError
from pyclattn.huggingface.names import IGNORED
from pyclattn.layers._check import floats
from pyclattn.layers.kinds import Template, Tensors
from pyclattn.layers.weights import Names, find

# config.json of real models has 1 to 20 kB; some list 20,000 labels.
MAX_BYTES = 16 << 20
# Far above real models, and a bound on what a number in a file can make us do.
MAX_WHOLE = 1 << 31

MAX_LAYERS = 1000

# Hugging Face's names of activations, as ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}


class Settings:
    """The content of a config.json.

    Parameters
    ----------
    path : Path
        For messages.
    found : mapping
    """

    def __init__(self, path: Path, found: Mapping[str, Any]):
        self.path, self._found = path, found

    @classmethod
    def read(cls, path: Path) -> Settings:
        """A file's settings; ModelFormatError if it is not a JSON object."""
        try:
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise ModelFormatError(f"{path}: {size} bytes, at most {MAX_BYTES} are read")
            found = json.loads(path.read_bytes().decode("utf-8"))
        except OSError as error:
            raise ModelFormatError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, ModelFormatError):
                raise
            raise ModelFormatError(f"{path}: not JSON: {str(error)[:200]}") from error
        if not isinstance(found, dict):
            raise ModelFormatError(f"{path}: must be a JSON object, got {type(found).__name__}")
        return cls(path, found)

    def require(self, keys: Sequence[str]) -> None:
        """Raise ModelFormatError naming all keys that are missing."""
        missing = [k for k in keys if self._found.get(k) is None]
        if missing:
            raise ModelFormatError(
                f"{self.path}: lacks {', '.join(missing)}; a model of type {self._found.get('model_type')!r} "
                f"needs {', '.join(keys)}"
            )

    def get(self, key: str, default: Any = None) -> Any:
        value = self._found.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None, least: int = 0, most: int = MAX_WHOLE) -> int:
        """A whole number."""
        value = self.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise ModelFormatError(f"{self.path}: {key} must be a whole number from {least} to {most}, got {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        """A number of at least 0."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 <= value < float("inf"):
            raise ModelFormatError(f"{self.path}: {key} must be a number of at least 0, got {value!r}")
        return float(value)

    def activation(self, key: str, default: str = "gelu") -> str:
        """The name of an activation, in our words."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ModelFormatError(
                f"{self.path}: {key} {value!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[value]

    def refuse(self, key: str, allowed: Sequence[Any]) -> None:
        """Raise ModelFormatError if a key is there with a value beside those allowed."""
        value = self._found.get(key)
        if value is not None and value not in allowed:
            raise ModelFormatError(
                f"{self.path}: {key} {value!r} is not supported; supported: {', '.join(map(repr, allowed))}"
            )


def fitting(template: Template, weights: Tensors, prefix: str, rules: Names, settings: Settings) -> Tensors:
    """The tensors of a template as float32, by our names; one ModelFormatError for all that is wrong with them."""
    what = f"{settings.path.parent}, a model of type {settings.get('model_type')!r},"
    found = find(template, weights, prefix.removesuffix("."), rules, IGNORED, what)
    return Tensors({name: floats(name, array) for name, array in found.items()})
