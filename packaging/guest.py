"""A service as a bare container holds it: an unknown user without a home, nothing writable, 512 MB, NumPy alone.

    python packaging/guest.py FOLDER      the environment that runs it is inside FOLDER

Exits with 1 if anything here needs more than that. Linux only: the user is unknown by a user namespace.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

LIMIT = 512 * 2**20  # of address space, which is stricter than a container's limit of resident memory

INSIDE = """
import json, os, sys, resource
from pathlib import Path
import numpy as np
import pyclattn

try:
    Path.home()
    home = True
except RuntimeError:
    home = False
site = Path(pyclattn.__file__).parent
try:
    (site / "probe").write_text("")
    writable = True
except OSError:
    writable = False

rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 4, 3000, 64), dtype=np.float32) for _ in range(3))
exact = pyclattn.scaled_dot_product_attention(q, k, v)
scores = q[0, 0, :5] @ k[0, 0].T / 8
weights = np.exp(scores - scores.max(-1, keepdims=True))
expected = weights / weights.sum(-1, keepdims=True) @ v[0, 0]
near = pyclattn.coclustered_attention(q, k, v, n_exact=1400)

from pyclattn.layers import Linear
from pyclattn.model import Model
from pyclattn.graph.program import Op, Program, Value
weight = rng.standard_normal((64, 64), dtype=np.float32)
program = Program(
    inputs=(Value("x", "float32", ("n", 64)),), outputs=(Value("y", "float32", ("n", 64)),),
    constants={"w": weight}, ops=(Op("MatMul", ("x", "w"), ("y",)),),
)
x = rng.standard_normal((2000, 64), dtype=np.float32)
product = Model(program)(x=x)["y"]

print(json.dumps({
    "user id": os.getuid(), "home": home, "site-packages writable": writable,
    "compiled extension": "pyclattn._ext.attention" in sys.modules,
    "numba or scipy": sorted({"numba", "scipy"} & set(sys.modules)),
    "exact attention": float(np.abs(exact[0, 0, :5] - expected).max()),
    "co-clustered attention": float(np.linalg.norm(near - exact) / np.linalg.norm(exact)),
    "a model": float(np.abs(product - x.astype(np.float64) @ weight).max()),
    "peak resident MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
}))
"""
EXPECTED = {
    "user id": lambda n: n == 12345,
    "home": lambda found: not found,
    "site-packages writable": lambda found: not found,
    "compiled extension": bool,
    "numba or scipy": lambda found: not found,
    "exact attention": lambda error: error < 1e-5,
    "co-clustered attention": lambda error: 0 < error < 0.5,
    "a model": lambda error: 0 < error < 1e-4,
    "peak resident MB": lambda n: n < 512,
}


def main(folder: Path) -> int:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    python = next(folder.glob("slim/bin/python"))
    try:
        ran = subprocess.run(
            ["/usr/bin/unshare", "--user", "--map-user=12345", "--map-group=12345", python, "-c", INSIDE],
            env={}, cwd="/", capture_output=True, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        )  # fmt: skip
    finally:
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o200)
    if ran.returncode:
        print(ran.stderr, file=sys.stderr)
        return 1
    wrong = 0
    for name, value in json.loads(ran.stdout).items():
        is_right = EXPECTED[name](value)
        wrong += not is_right
        print(f"{'ok  ' if is_right else 'MISS'} {name}: {value}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
