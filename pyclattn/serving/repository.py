"""Models by name: the stem of each file. A file that changes is loaded again while the old version goes on answering.

A request is looked up in a dictionary and never becomes a path, so no name leads out of a folder. A model is copied to
a private, unlinked file first: whoever overwrites the original in place cannot change what is being answered, or take
the mapped pages away. (Windows keeps a mapped file's name: there the copy stays in the temporary folder.)
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic, perf_counter

from pyclattn.errors import ArgumentError, ModelFormatError, PyclattnError
from pyclattn.graph.serial import save_program
from pyclattn.model import Model, load, read_program
from pyclattn.serving.batching import Rule, rule_of
from pyclattn.serving.errors import RequestError
from pyclattn.serving.warming import warm

# Seconds between looks at the files; a file is loaded once it looks the same twice.
POLL = 1.0
ATTEMPTS = 3
# Seconds until a file is tried again whose loading failed for want of memory, of space or of a permission.
RETRY = 30.0
SUFFIXES = (".safetensors", ".onnx")

Signature = tuple  # what tells that files are other ones: inode, size, time of change
Loader = Callable[[Path], Model]


@dataclass(frozen=True, eq=False)
class Version:
    """A model as loaded from one state of its file."""

    name: str
    path: Path
    number: int
    model: Model
    rule: Rule
    signature: Signature
    seconds: float  # that loading took


class Repository:
    """The models of a service.

    Parameters
    ----------
    paths : sequence of Path
        Model files; Hugging Face folders (config.json inside); folders of model files, where new ones are found.
    loader : callable
        From a path to a Model.
    shares : bool
        Whether requests may share runs.
    copies : bool
        Whether files are copied before they are mapped. Without, processes share the pages, and a file may be replaced
        by renaming only.
    log : callable
        Called with an event and its fields.
    """

    def __init__(
        self, paths: Sequence[Path], loader: Loader = load, *, shares: bool = True, copies: bool = True,
        log: Callable[..., None] = lambda event, **fields: None,
    ):  # fmt: skip
        self._paths, self._loader, self._shares, self._copies, self._log = list(paths), loader, shares, copies, log
        self._versions: dict[str, Version] = {}
        self._seen: dict[str, Signature] = {}  # changed, but not known to be whole yet
        self._failed: dict[str, tuple[Signature, float]] = {}  # what could not be loaded, and when to try it again
        self.n_failures = 0

    def open(self) -> None:
        """Load all models; the first that cannot be loaded raises."""
        found = self._files()
        if not found:
            raise ArgumentError(f"no model in {', '.join(map(str, self._paths)) or 'no path'}")
        for name, paths in found.items():
            self._versions[name] = self._load(name, _only(name, paths))
            self._log("model loaded", **_described(self._versions[name]))

    def names(self) -> list[str]:
        return sorted(self._versions)

    def get(self, name: str, number: str | None = None) -> Version:
        """The model of this name.

        Raises
        ------
        RequestError
            404 if there is none, or not in this version.
        """
        version = self._versions.get(name)
        if version is None:
            raise RequestError(404, f"there is no model {name[:80]!r}; there is: {', '.join(self.names())}")
        if number is not None and number != str(version.number):
            raise RequestError(404, f"model {name!r} has version {version.number}, not {number[:20]!r}")
        return version

    async def watch(self, interval: float = POLL) -> None:
        """Look for changed and new files for ever."""
        told = ""
        while True:
            await asyncio.sleep(interval)
            try:
                await asyncio.to_thread(self.refresh)
                told = ""
            except Exception as error:  # whatever happens to folders, the models that are loaded stay
                if told != str(error):
                    told = str(error)
                    self._log("watch failed", level="error", error=told)

    def refresh(self) -> list[str]:
        """Load what has changed since the last look, and has not since the one before; returns the names."""
        loaded = []
        for name, paths in self._files().items():
            known, now = self._versions.get(name), _signature(paths)
            failed, until = self._failed.get(name, (None, 0.0))
            is_known = known is not None and known.signature == now
            if now is None or is_known or (failed == now and monotonic() < until):
                self._seen.pop(name, None)
            elif self._seen.get(name) != now:
                self._seen[name] = now
            elif self._replace(name, paths, now):
                loaded.append(name)
        return loaded

    def _replace(self, name: str, paths: Sequence[Path], signature: Signature) -> bool:
        del self._seen[name]
        try:
            version = self._load(name, _only(name, paths))
        except Exception as error:  # whatever is wrong with this one, the others are looked at
            self._failed[name] = signature, monotonic() + RETRY if _may_pass(error) else inf
            self.n_failures += 1
            told = str(error) or type(error).__name__
            self._log("model not loaded", level="error", model=name, error=told, still_serving=name in self._versions)
            return False
        self._failed.pop(name, None)
        self._versions[name] = version
        self._log("model loaded", **_described(version))
        return True

    def _files(self) -> dict[str, list[Path]]:
        """Model files by name, now; several where it cannot be told which is meant."""
        found: dict[str, list[Path]] = {}
        for path in self._paths:
            if path.is_dir() and not _is_model_folder(path):
                inner = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES or _is_model_folder(p))
            else:
                inner = [path]
            for file in inner:
                name = _shown(file.resolve().name if file.is_dir() else file.stem)
                if file not in found.setdefault(name, []):
                    found[name].append(file)
        return found

    def _load(self, name: str, path: Path) -> Version:
        start = perf_counter()
        for _ in range(ATTEMPTS):
            signature = signature_of(path)
            if signature is None:
                raise ModelFormatError(f"{path}: no such file")
            model = self._copied(path) if self._copies else self._loader(path)
            if signature_of(path) == signature:
                break
        else:
            raise ModelFormatError(f"{path}: changes while it is read")
        rule = rule_of(model) if self._shares else Rule()
        warm(model)
        number = self._versions[name].number + 1 if name in self._versions else 1
        return Version(name, path, number, model, rule, signature, perf_counter() - start)

    def _copied(self, path: Path) -> Model:
        """The model of a copy that nobody else can open: its name is gone once it is mapped."""
        with tempfile.TemporaryDirectory(prefix="pyclattn-", dir=_scratch(), ignore_cleanup_errors=True) as folder:
            copy = Path(folder) / "model.safetensors"
            if path.suffix.lower() == ".safetensors" and not path.is_dir():
                shutil.copyfile(path, copy)
            else:
                save_program(copy, read_program(path))
            try:
                model = self._loader(copy)
            except PyclattnError as error:
                raise type(error)(str(error).replace(str(copy), str(path))) from error
        model.path = str(path)
        return model


def _scratch() -> str:
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise ArgumentError(f"{error.strerror}: models are copied there; set TMPDIR, or give --no-copy") from error


def _only(name: str, paths: Sequence[Path]) -> Path:
    if len(paths) > 1:
        raise ArgumentError(f"{' and '.join(map(str, paths))} have the same name, {name!r}: rename one")
    return paths[0]


def _is_model_folder(path: Path) -> bool:
    """Also False where it may not be looked into, as lost+found."""
    return os.path.exists(path / "config.json")


def _shown(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 could not be sent."""
    return os.fsencode(name).decode("utf-8", "replace")


def _may_pass(error: BaseException | None) -> bool:
    """Whether loading failed for the machine's reasons, not the file's."""
    while error is not None and not isinstance(error, (OSError, MemoryError)):
        error = error.__cause__
    return error is not None


def _signature(paths: Sequence[Path]) -> Signature | None:
    """Of one path as `signature_of`; of several which they are, since none of them can be meant."""
    return signature_of(paths[0]) if len(paths) == 1 else tuple(map(str, paths))


def signature_of(path: Path) -> Signature | None:
    """What changes when a file, or one of a folder's, is written or replaced; None where there is nothing."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(str(file), os.stat(file)) for file in files]
    except OSError:
        return None
    return tuple((file, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for file, s in stats)


def _described(version: Version) -> dict:
    return {
        "model": version.name,
        "version": version.number,
        "path": str(version.path),
        "seconds": round(version.seconds, 3),
        "weight_bytes": version.model.weight_bytes,
        "batching": version.rule.kind,
    }
