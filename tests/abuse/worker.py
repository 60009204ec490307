"""Meets every attack of a table in one process and says what came of each: a line of JSON a case.

Memory is the growth of the process's largest resident set, reset before each case; CPU time is limited a case by the
kernel, so a hang ends the process and the missing line names it.
"""

import gc
import json
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import onnx_files
import pytorch_files
import safetensors_files

from pyclattn import weights
from pyclattn_export.from_onnx import read_program

ADDRESS_SPACE = 8 << 30
CPU_SECONDS = 60  # of one case: all together take a few


def load(path):
    for array in weights.load_weights(path).values():
        array.sum()
    weights.read_checkpoint(path, objects="refuse")


def load_index(path):
    weights.load_weights(path)


def load_inert(path):
    weights.load_weights(path, objects="placeholder")
    weights.read_checkpoint(path)


def load_safetensors(path):
    for array in weights.SafeTensors(path).values():
        array.sum()


TABLES = {
    "pytorch": (load, "attack.pt", {
        **pytorch_files.EXECUTED, **pytorch_files.BOMBS, **pytorch_files.TENSORS, **pytorch_files.NUMPY,
        **pytorch_files.REPEATED, **pytorch_files.ZIPS, **pytorch_files.LEGACY}),
    "inert": (load_inert, "attack.pt", pytorch_files.INERT),
    "index": (load_index, "attack.index.json", pytorch_files.INDICES),
    "safetensors": (load_safetensors, "attack.safetensors", safetensors_files.FILES),
    "onnx": (read_program, "attack.onnx", onnx_files.FILES),
}  # fmt: skip


def status(field):
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def meet(read, path):
    """What a reader makes of a file: the error's name and text, and how much memory it took."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    try:
        read(path)
        name, text = "", ""
    except BaseException as error:
        name, text = type(error).__name__, str(error)
    return {"error": name, "text": text[:2000], "length": len(text), "grown": status("VmHWM") - before}


def main(table):
    read, name, cases = TABLES[table]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.RLIM_INFINITY))
    for case in [next(iter(cases)), *cases]:  # the first twice: imports and caches are not the file's
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / "model"
            home.mkdir()
            path = home / name
            path.write_bytes(cases[case][0](home))
            found = meet(read, path)
            size = sum(p.stat().st_size for p in home.iterdir() if p.is_file() and not p.is_symlink())
            found.update(case=case, size=size, executed=any(Path(folder).rglob("executed")))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
