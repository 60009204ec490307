"""Peak memory of a call, read from the kernel: the high-water mark is reset, the function runs, the mark is read."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no field {field}")


def is_measurable() -> bool:
    """Whether this system lets a process reset its high-water mark (Linux)."""
    try:
        CLEAR.write_text("5")
        return _status("VmHWM") > 0
    except OSError:
        return False


def peak(function: Callable[[], object]) -> int:
    """Bytes the process grew by at most while the function ran, its output included."""
    with suppress(AttributeError):  # glibc keeps freed blocks: the call would seem to need less than it does
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = _status("VmRSS")
    result = function()  # held, so that an output counts
    grown = _status("VmHWM") - before
    del result
    return grown
