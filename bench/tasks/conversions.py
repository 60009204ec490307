"""Models in pyclattn's format, kept beside what they are made of: made once by each version of the converter."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# What decides how a model is converted and written. (Operators run what was written, and may change.)
SOURCES = (
    ("pyclattn_export", "*.py"),
    ("pyclattn", "graph/*.py"),
    ("pyclattn", "graph/passes/*.py"),
    ("pyclattn", "weights/*.py"),
)
STAMP = 12  # digits
OLD = 86_400  # seconds; another checkout may share the cache


def converted(source: Path, **options: Any) -> Path:
    """An ONNX model's file; ``options`` are `pyclattn_export.convert`'s."""

    def make(target: Path) -> None:
        from pyclattn_export import convert  # what runs a model that is there does not need it

        convert(source, target, **options)

    return kept(source, make)


def kept(source: Path, make: Callable[[Path], object], kind: str = "") -> Path:
    """What ``make`` writes, in a folder of this version beside ``source``; those of others go when they are old."""
    name = f"{source.stem}.{kind}" if kind else source.stem
    target = source.parent / stamp() / f"{name}.safetensors"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        make(target)
        for other in source.parent.glob("[0-9a-f]" * STAMP):
            if other.stat().st_mtime < time.time() - OLD:
                shutil.rmtree(other)
    return target


@cache
def stamp() -> str:
    """Of the sources of the converter."""
    digest = hashlib.sha256()
    for package, pattern in SOURCES:
        (folder,) = find_spec(package).submodule_search_locations  # not imported
        for path in sorted(Path(folder).glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:STAMP]
