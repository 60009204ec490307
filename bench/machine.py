"""The machine and the versions a result was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyclattn
from bench import peers
from pyclattn import _dispatch, _threads


def _cpu() -> str:
    """Name, and family and model where it has them: virtual machines give several generations the same name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    found = fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        found += f" (family {fields['cpu family']}, model {fields.get('model')})"
    return found


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def isas() -> list[str]:
    """Instruction sets of the compiled kernels that this machine runs, the narrowest first; none where not compiled."""
    try:
        tiles = import_module("pyclattn._ext.isa")
    except ImportError:
        return []
    return list(tiles.available())


def isa() -> str:
    """The instruction set chosen."""
    try:
        return import_module("pyclattn._ext.isa").selected()
    except ImportError:
        return "not compiled"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def moment() -> str:
    """Now, and the version: what a row is marked with."""
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} {_commit()}"


def describe(n_threads: int) -> dict:
    """CPU, instruction set, rooms, versions, threads, and how busy the machine was before."""
    return {
        "cpu": _cpu(),
        "n_cpus": _threads.available_cpus(),
        "n_threads": n_threads,
        "isa": isa(),
        "rooms": {kernel: _dispatch.room_of(kernel) for kernel in _dispatch.OWNERS},
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "pyclattn": f"{pyclattn.__version__} ({_commit()})",
        **{name: _version(name) for name in ("numpy", "numba", "scipy")},
        **peers.versions(),
    }
