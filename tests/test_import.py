"""What importing pyclattn brings along: NumPy, and nothing that takes its time."""

import json
import subprocess
import sys

import pytest

HEAVY = ("numba", "llvmlite", "scipy", "torch", "onnx", "onnxruntime", "openvino", "matplotlib", "hypothesis", "pytest")


def modules_after(program):
    """Names in sys.modules after the program, in a fresh interpreter."""
    program += "\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(ran.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def imported():
    return modules_after("import pyclattn")


@pytest.mark.parametrize("name", HEAVY)
def test_import_leaves_out(imported, name):
    assert "pyclattn.functional.exact" in imported
    assert not {module for module in imported if module.split(".")[0] == name}


def test_import_starts_no_thread_and_reads_no_room(imported):
    assert not {module for module in imported if module.startswith(("pyclattn.kernels", "pyclattn._ext"))}
    ran = subprocess.run(
        [sys.executable, "-c", "import pyclattn, threading; print(threading.active_count())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.strip() == "1"


def test_exact_attention_runs_without_a_compiler():
    """Cython owns it: the first call of a service loads neither Numba nor SciPy."""
    used = modules_after(
        "import numpy as np, pyclattn\n"
        "x = np.ones((1, 2, 700, 16), np.float32)\n"
        "pyclattn.scaled_dot_product_attention(x, x, x, is_causal=True)"
    )
    assert "pyclattn._ext.attention" in used
    assert not {"numba", "scipy"} & used


def test_a_converted_model_needs_no_pass_but_one():
    """Passes are for what is imported from elsewhere; a service's start does not wait for them."""
    used = modules_after("import pyclattn.model")
    assert "pyclattn.graph.passes.lower" in used
    assert not {f"pyclattn.graph.passes.{name}" for name in ("pipeline", "attention", "fold", "norms")} & used


def test_all_lists_what_is_public():
    import pyclattn

    for name in pyclattn.__all__:
        assert getattr(pyclattn, name).__doc__, f"{name} has no docstring"
    assert pyclattn.__all__ == sorted(pyclattn.__all__)
