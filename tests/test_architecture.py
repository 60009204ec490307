"""The spine: each floor imports only those below it, and each privilege has one owner.

cli -> serving | calibration | export -> model -> huggingface -> layers -> graph | plan -> functional -> _dispatch
    -> reference | kernels | _ext;   weights, _threads, _config, arrays, errors on the ground floor
"""

import ast
import re
from pathlib import Path

import pytest

import pyclattn

ROOT = Path(pyclattn.__file__).parent

# What each room may import besides itself. A room that is not listed may not exist: give it a place here.
GROUND = {"errors", "arrays", "_config", "_threads", "_blas", "_tables", "weights"}
BELOW = {
    "errors": set(),
    "arrays": set(),
    "_config": {"errors"},
    "_threads": {"errors", "_config"},
    "_blas": set(),
    "_tables": set(),
    "weights": {"errors", "arrays", "_config"},
    "reference": {"errors", "arrays"},
    "kernels": {"errors", "arrays", "_config"},
    "_ext": {"errors", "arrays", "_config"},
    "_dispatch": {"errors", "_config", "_threads", "reference", "kernels", "_ext"},
    "functional": {*GROUND, "_dispatch"},
    "plan": {"errors", "arrays", "weights", "_tables"},
    "graph": {*GROUND, "functional"},
    "layers": {*GROUND, "functional", "graph", "plan"},
    "huggingface": {*GROUND, "functional", "graph", "plan", "layers"},
    "model": {*GROUND, "functional", "graph", "plan", "layers", "huggingface"},
    "calibration": {*GROUND, "functional", "layers", "graph", "plan", "model"},
    "serving": {*GROUND, "functional", "layers", "graph", "plan", "model"},
    "cli": {*GROUND, "functional", "layers", "graph", "plan", "model", "calibration", "serving"},
}
# The package's own face: may import any room, and no room imports it.
FACE = "__init__"

# What only one file may use, as a pattern of its path.
OWNED_IMPORTS = {
    "_thread": "_threads.py",
    "concurrent": "_threads.py",
    "multiprocessing": "_threads.py",
    "numba": "kernels/*",
    "llvmlite": "kernels/_jit.py",
}
LOCKS = {"Lock", "RLock"}  # a lock is no thread: any room may guard its own state
BANNED = ("onnx", "onnxruntime", "onnxscript", "torch", "transformers", "openvino", "pyclattn_export")
JIT_NAMES = {"njit", "jit", "vectorize", "guvectorize", "stencil", "cfunc"}


def modules(root):
    """Each Python and Cython file below root, as (path from root, its source)."""
    found = [path for suffix in ("py", "pyx", "pxd") for path in sorted(root.rglob(f"*.{suffix}"))]
    return {path.relative_to(root).as_posix(): path.read_text() for path in found}


def imports_of(path, source, for_types=True):
    """Dotted names a file imports, wherever the statement stands; relative ones resolved against its place.

    Without ``for_types`` those under ``if TYPE_CHECKING:`` are left out: they never run.
    """
    package = ["pyclattn", *path.split("/")[:-1]]
    if not path.endswith(".py"):  # Cython: a statement a line, or names in parentheses
        names = []
        for match in re.finditer(r"^\s*(?:from\s+(\S+)\s+)?c?import\s+(\([^)]*\)|.+)$", source, re.MULTILINE):
            parts = [part.split(" as ")[0].strip(" ()\\\n") for part in match[2].split("#")[0].split(",")]
            names += [f"{match[1]}.{part}" if match[1] else part for part in parts if part]
        return names
    names, tree, unread = [], ast.parse(source), set()
    for node in ast.walk(tree):
        if not for_types and isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            unread |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in unread:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{start}.{alias.name}" for alias in node.names]
    return names


def room_of(dotted, paths):
    """The room a name of pyclattn lies in: the first part below the package, or the face for the package's own."""
    parts = dotted.split(".")[1:]
    rooms = {path.split("/")[0].split(".")[0] for path in paths}
    return parts[0] if parts and parts[0] in rooms else FACE


def upward_imports(files):
    """Imports that run against the spine."""
    wrong = []
    for path, source in files.items():
        room = path.split("/")[0].split(".")[0]
        if room == FACE:
            continue
        if room not in BELOW:
            wrong.append(f"{path}: the room {room} has no place in the spine")
            continue
        for name in imports_of(path, source):
            if name.split(".")[0] == "pyclattn":
                other = room_of(name, files)
                if other != room and other not in BELOW[room]:
                    wrong.append(f"{path} imports {name}")
    return wrong


def module_of(dotted, known):
    """The longest part of a dotted name that is a module."""
    parts = dotted.split(".")
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


def cycles(files):
    """Modules that import each other in a ring."""
    names = {}
    for path in files:
        dotted = "pyclattn." + re.sub(r"\.(py|pyx|pxd)$", "", path).replace("/", ".")
        names.setdefault(dotted.removesuffix(".__init__"), []).append(path)
    edges = {}
    for name, paths in names.items():
        targets = {module_of(t, names) for path in paths for t in imports_of(path, files[path], for_types=False)}
        # a name taken from a package is its submodule or its own; importing the parent package alone is no edge
        edges[name] = {t for t in targets if t and t != name}
    found, state = [], {}

    def visit(name, trail):
        state[name] = "open"
        for target in sorted(edges[name]):
            if state.get(target) == "open":
                found.append(
                    " -> ".join([*trail[trail.index(target) :], target] if target in trail else [name, target])
                )
            elif target not in state:
                visit(target, [*trail, target])
        state[name] = "done"

    for name in sorted(edges):
        if name not in state:
            visit(name, [name])
    return found


def misused(files):
    """Privileges used by a file that does not own them."""
    wrong = []
    for path, source in files.items():
        for name in imports_of(path, source):
            top = name.split(".")[0]
            if top in BANNED:
                wrong.append(f"{path} imports {name}: it belongs in export/")
            owner = OWNED_IMPORTS.get(top)
            if owner and not Path(path).match(owner):
                wrong.append(f"{path} imports {name}: it belongs to {owner}")
        if not path.endswith(".py"):
            if re.search(r"\b(prange|os\.environ|getenv)\b", source):
                wrong.append(f"{path} uses prange or the environment")
            continue
        for node in ast.walk(ast.parse(source)):
            attribute = node.attr if isinstance(node, ast.Attribute) else None
            if attribute in ("environ", "environb", "getenv", "putenv") and path != "_config.py":
                wrong.append(f"{path}:{node.lineno} reads the environment: it belongs to _config.py")
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in ("threading", "os", "numba") and alias.asname:
                        wrong.append(f"{path}:{node.lineno} hides {alias.name} behind another name")
            if isinstance(node, ast.ImportFrom) and node.module == "os" and path != "_config.py":
                for alias in node.names:
                    if alias.name in ("environ", "getenv"):
                        wrong.append(f"{path}:{node.lineno} reads the environment: it belongs to _config.py")
            if path != "_threads.py":
                used = {attribute} if attribute and getattr(node.value, "id", None) == "threading" else set()
                if isinstance(node, ast.ImportFrom) and node.module == "threading":
                    used = {alias.name for alias in node.names}
                for name in sorted(used - LOCKS):
                    wrong.append(f"{path}:{node.lineno} uses threading.{name}: threads belong to _threads.py")
            if path == "kernels/_jit.py":
                continue
            if attribute in JIT_NAMES and isinstance(node.value, ast.Name) and node.value.id in ("numba", "nb"):
                wrong.append(f"{path}:{node.lineno} uses numba.{attribute}: options belong to kernels/_jit.py")
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numba":
                for alias in node.names:
                    if alias.name in JIT_NAMES:
                        wrong.append(f"{path}:{node.lineno} imports numba.{alias.name}: it belongs to kernels/_jit.py")
            keyword = isinstance(node, ast.keyword) and node.arg
            if keyword in ("nogil", "fastmath", "parallel", "boundscheck", "error_model"):
                wrong.append(f"{path}:{node.value.lineno} sets the JIT option {keyword}")
    return wrong


FILES = modules(ROOT)


def test_the_walk_sees_the_house():
    assert {"_config.py", "_threads.py", "_dispatch.py", "kernels/_jit.py"} <= set(FILES)
    assert "pyclattn._dispatch.launch" in imports_of("functional/exact.py", FILES["functional/exact.py"])
    if Path(__file__).parents[1] / "pyclattn" == ROOT:  # what is installed has the extensions without their sources
        names = imports_of("_ext/attention.pyx", FILES["_ext/attention.pyx"])
        assert any(name.startswith("pyclattn._ext.isa") for name in names)


def test_imports_follow_the_spine():
    assert upward_imports(FILES) == []


def test_no_import_cycles():
    assert cycles(FILES) == []


def test_privileges_have_one_owner():
    assert misused(FILES) == []


def test_only_functional_asks_the_dispatch():
    askers = {path.split("/")[0] for path, source in FILES.items() if "_dispatch" in " ".join(imports_of(path, source))}
    assert askers == {"functional"}


def test_no_room_asserts_about_input():
    """`assert` vanishes under -O: errors of callers are raised."""
    for path, source in FILES.items():
        if path.endswith(".py"):
            assert not [n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Assert)], path


BROKEN = {
    "upward": (upward_imports, {"graph/a.py": "from pyclattn.model import load"}),
    "sideways": (upward_imports, {"kernels/a.py": "import pyclattn._ext.isa", "_ext/isa.py": ""}),
    "cython": (upward_imports, {"_ext/a.pyx": "from pyclattn.functional.exact cimport x", "functional/exact.py": ""}),
    "relative": (upward_imports, {"reference/a.py": "from ..functional import exact", "functional/exact.py": ""}),
    "hidden": (upward_imports, {"graph/a.py": "def f():\n    from pyclattn import model", "model.py": ""}),
    "face": (upward_imports, {"graph/a.py": "import pyclattn"}),
    "dispatch": (upward_imports, {"graph/a.py": "from pyclattn import _dispatch", "_dispatch.py": ""}),
    "no_place": (upward_imports, {"cellar/a.py": ""}),
    "cycle": (cycles, {"graph/a.py": "import pyclattn.graph.b", "graph/b.py": "from pyclattn.graph.a import f"}),
    "environment": (misused, {"graph/a.py": "import os\nos.environ['X']"}),
    "getenv": (misused, {"graph/a.py": "from os import getenv"}),
    "threads": (misused, {"graph/a.py": "import threading\nthreading.Thread(target=f)"}),
    "threads_name": (misused, {"graph/a.py": "from threading import Lock, Thread"}),
    "threads_alias": (misused, {"graph/a.py": "import threading as t"}),
    "pool": (misused, {"graph/a.py": "from concurrent.futures import ThreadPoolExecutor"}),
    "njit": (misused, {"kernels/a.py": "import numba\n@numba.njit\ndef f(): pass"}),
    "njit_name": (misused, {"kernels/a.py": "from numba import njit"}),
    "option": (misused, {"kernels/a.py": "f(fastmath=True)"}),
    "numba": (misused, {"graph/a.py": "import numba"}),
    "torch": (misused, {"weights/a.py": "def f():\n    import torch"}),
    "onnx": (misused, {"weights/a.py": "from onnx import helper"}),
    "prange": (misused, {"_ext/a.pyx": "from cython.parallel cimport prange"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_house_is_seen(name):
    check, files = BROKEN[name]
    assert check(files)
